"""The only place that touches names which SAEBench and sae-probes do not promise to keep.

Seen in sae-bench 0.6.0 with sae-probes 0.4.2; `tests/saebench/test_upstream.py` fails when one
moves.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jaxtyping
import torch

from sae_lens_isae.saebench.installed import module
from sae_lens_isae.saebench.texts import TextSet, TwoLabelTexts


@contextlib.contextmanager
def contained() -> Generator[None]:
    """Run SAEBench's code and be as before after it.

    Its annotations, checked by beartype, contradict its own calls, so these checks are off
    meanwhile. SCR and TPP leave gradients switched off for the whole process.
    """
    checks_off: bool = jaxtyping.config.jaxtyping_disable
    gradients = torch.is_grad_enabled()
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            # a warning for each of some thousand probes
            warnings.filterwarnings("ignore", module="sklearn")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks_off)
        torch.set_grad_enabled(gradients)


@contextlib.contextmanager
def with_texts(texts: Mapping[str, TextSet | TwoLabelTexts]) -> Generator[None]:
    """Let SAEBench find these data sets under their names; it knows no others but its own."""
    info = module("sae_bench.sae_bench_utils.dataset_info")
    utils = module("sae_bench.sae_bench_utils.dataset_utils")
    creation = module("sae_bench.evals.scr_and_tpp.dataset_creation")
    scr_and_tpp = module("sae_bench.evals.scr_and_tpp.main")
    load_multi_label = utils.get_multi_label_train_test_data
    load_pairs = creation.get_train_test_data
    load_hub = creation.load_dataset

    def multi_label(name: str, train: int, test: int, seed: int) -> Any:
        found = texts.get(name)
        return (
            found.split(train, test)
            if isinstance(found, TextSet)
            else load_multi_label(name, train, test, seed)
        )

    def pairs(name: str, correlated: bool, train: int, test: int, *rest: Any) -> Any:
        found = texts.get(name)
        if isinstance(found, TwoLabelTexts):
            # SAEBench insists on the size that it is told
            train, test = found.sizes(train, test)
        return load_pairs(name, correlated, train, test, *rest)

    def load(name: str, *args: Any, **kwargs: Any) -> Any:
        found = texts.get(name)
        return found.tables if isinstance(found, TwoLabelTexts) else load_hub(name, *args, **kwargs)

    classes = {n: list(t.classes) for n, t in texts.items() if isinstance(t, TextSet)}
    two_label_sets = {n: t for n, t in texts.items() if isinstance(t, TwoLabelTexts)}
    metadata = {n: crossing.metadata for n, crossing in two_label_sets.items()}
    # for TPP the second column is looked up and not used
    second = {n: ("", "") for n in classes} | {n: c.second for n, c in two_label_sets.items()}
    with (
        patch.dict(info.chosen_classes_per_dataset, classes),
        patch.dict(info.dataset_metadata, metadata),
        patch.dict(scr_and_tpp.COLUMN2_VALS_LOOKUP, second),
        patch.object(utils, "get_multi_label_train_test_data", multi_label),
        patch.object(creation, "get_train_test_data", pairs),
        patch.object(creation, "load_dataset", load),
    ):
        yield


@contextlib.contextmanager
def with_model(eval_module: ModuleType, model: Any) -> Generator[None]:
    """Let an eval run on a model that is loaded; it would load one by its name from the hub."""

    class Loaded:
        @staticmethod
        def from_pretrained_no_processing(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG004
            return model

    with patch.object(eval_module, "HookedTransformer", Loaded):
        yield
