"""Fails when SAEBench or sae-probes move a name that we use; and that nothing of ours stays."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import jaxtyping
import pytest
import torch

from sae_lens_isae.saebench import installed
from sae_lens_isae.saebench.texts import TextSet, TwoLabelTexts
from sae_lens_isae.saebench.upstream import contained, with_model, with_texts
from tests.saebench.conftest import needs_saebench

SET = TextSet("mine", {"a": ["x"] * 20, "b": ["y"] * 20})
TWO_LABEL_SETS = TwoLabelTexts(
    "mine_as_bias_in_bios",
    ("p", "q"),
    ("r", "s"),
    {(a, b): [f"{a}{b}{i}" for i in range(50)] for a in "pq" for b in "rs"},
)


@needs_saebench
def test_saebench_finds_our_texts_and_forgets_them():
    info = importlib.import_module("sae_bench.sae_bench_utils.dataset_info")
    utils = importlib.import_module("sae_bench.sae_bench_utils.dataset_utils")
    creation = importlib.import_module("sae_bench.evals.scr_and_tpp.dataset_creation")
    main = importlib.import_module("sae_bench.evals.scr_and_tpp.main")
    before = (
        dict(info.chosen_classes_per_dataset),
        dict(info.dataset_metadata),
        dict(main.COLUMN2_VALS_LOOKUP),
        utils.get_multi_label_train_test_data,
        creation.get_train_test_data,
        creation.load_dataset,
    )
    with with_texts({SET.name: SET, TWO_LABEL_SETS.name: TWO_LABEL_SETS}):
        assert info.chosen_classes_per_dataset["mine"] == ["a", "b"]
        # the route of sparse probing, and that of TPP
        for train, test in (
            utils.get_multi_label_train_test_data("mine", 8, 4, 0),
            creation.get_train_test_data("mine", False, 8, 4, 0),
        ):
            assert train == {"a": ["x"] * 4, "b": ["y"] * 4}
            assert test == {"a": ["x"] * 2, "b": ["y"] * 2}
        assert main.COLUMN2_VALS_LOOKUP[TWO_LABEL_SETS.name] == ("r", "s")
        train, _ = creation.get_train_test_data(
            TWO_LABEL_SETS.name, True, 4000, 1000, 0, TWO_LABEL_SETS.first, TWO_LABEL_SETS.second
        )
        assert all(text.startswith("pr") for text in train["male_professor / female_nurse"])
        with pytest.raises(ValueError, match="not supported"):
            utils.get_multi_label_train_test_data("another", 8, 4, 0)
    assert before == (
        info.chosen_classes_per_dataset,
        info.dataset_metadata,
        main.COLUMN2_VALS_LOOKUP,
        utils.get_multi_label_train_test_data,
        creation.get_train_test_data,
        creation.load_dataset,
    )


@needs_saebench
@pytest.mark.parametrize("name", ["sparse_probing", "scr_and_tpp"])
def test_evals_run_on_a_model_that_is_loaded(name):
    main = importlib.import_module(f"sae_bench.evals.{name}.main")
    own = main.HookedTransformer
    with with_model(main, "the model"):
        assert main.HookedTransformer.from_pretrained_no_processing("x", device="cpu") == (
            "the model"
        )
    assert main.HookedTransformer is own


def test_type_checks_and_gradients_come_back():
    assert not jaxtyping.config.jaxtyping_disable
    with contained():
        assert jaxtyping.config.jaxtyping_disable
        torch.set_grad_enabled(False)
    assert not jaxtyping.config.jaxtyping_disable
    assert torch.is_grad_enabled()


def test_versions_that_do_not_fit_are_named(monkeypatch):
    for found, fits in (("0.5.1", False), ("0.6.0", True), ("0.6.4", True), ("0.7.0", False)):
        monkeypatch.setattr(installed, "version", lambda name, found=found: found)
        if fits:
            assert installed.saebench_version() == found
        else:
            with pytest.raises(FileNotFoundError, match=f"sae-bench {found} is installed.*make be"):
                installed.saebench_version()


def test_what_is_missing_is_named_with_the_command(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", missing)
    with pytest.raises(FileNotFoundError, match="sae-bench is not installed: run `make bench`"):
        installed.module("sae_bench.evals.core.main")
    monkeypatch.setattr(installed, "version", lambda name: "0.6.0")
    with pytest.raises(FileNotFoundError, match="needs the package nowhere"):
        installed.module("nowhere")

    def clash(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(installed, "importlib", SimpleNamespace(import_module=clash))
    with pytest.raises(FileNotFoundError, match="pip uninstall torchvision"):
        installed.module("sae_bench.evals.core.main")
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="sae-probes is not installed"):
        installed.probes_folder()
