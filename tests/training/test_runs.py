"""YAML files as SAELens flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig

from sae_lens_isae import (
    ISAEMETrainingSAEConfig,
    ISAETrainingSAEConfig,
    pairwise_identifiability,
)
from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.comparable import what_seeds_varied
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train
from tests.conftest import D_IN, D_SAE, K, isae_config, make_sae
from tests.training.test_recovery import runner_config as lm_config

VARIANT_FIELDS = ("activation", "arip_weight", "encoder_steps", "step_matrix")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
OF_PAPER_1 = [
    path for path in CONFIGS if path.stem.endswith(("topk", "isae", "isae_me", "isae_ls"))
]


def test_every_kind_of_value_comes_through(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        """
model_name: m
checkpoint_path: null
seqpos_slice: [1, 9]
streaming: false
model_kwargs: {a: 1, b: x}
lr: 1e-3
sequence_separator_token: null
sae: {architecture: isae_me, d_in: 8, d_sae: 32, k: 4, dtype: bfloat16, step_matrix: tied}
logger: {log_to_wandb: false, wandb_project: p}
"""
    )
    cfg = load_runner_config(path, ["--lr", "0.25"])
    assert (cfg.checkpoint_path, cfg.seqpos_slice, cfg.streaming) == (None, (1, 9), False)
    assert (cfg.model_kwargs, cfg.lr, cfg.sequence_separator_token) == (
        {"a": 1, "b": "x"},
        0.25,
        None,
    )
    assert isinstance(cfg.sae, ISAEMETrainingSAEConfig)
    assert (cfg.sae.dtype, cfg.dtype, cfg.sae.step_matrix) == ("bfloat16", "float32", "tied")
    assert (cfg.logger.log_to_wandb, cfg.logger.wandb_project) == (False, "p")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_arrive_whole(path):
    cfg = load_runner_config(path, [])
    # a key that SAELens dropped would go unnoticed in a flag that it renamed
    settings = yaml.safe_load(path.read_text())
    for name in settings.keys() - {"sae", "logger"}:
        assert getattr(cfg, name) == settings[name]
    for name in settings["sae"].keys() - {"architecture"}:
        assert getattr(cfg.sae, name) == settings["sae"][name]
    assert cfg.sae.architecture() == settings["sae"]["architecture"]


@pytest.mark.parametrize("path", OF_PAPER_1, ids=lambda path: path.stem)
def test_configs_of_paper_1_say_what_their_name_says(path):
    cfg = load_runner_config(path, [])
    model, variant = path.stem.split("_", 1)
    expected = {
        "topk": ("isae", "topk", 0.0),
        "abstopk": ("isae", "abstopk", 0.0),
        "isae": ("isae", "abstopk", 0.01),
        "isae_me": ("isae_me", "abstopk", 0.01),
        "isae_ls": ("isae_ls", "abstopk", 0.01),
    }[variant]
    assert (cfg.sae.architecture(), cfg.sae.activation, cfg.sae.arip_weight) == expected
    if model == "pythia160m":  # Nelson et al. 2026, section 4
        assert cfg.hook_name == "gpt_neox.layers.11"
        assert (cfg.training_tokens, cfg.train_batch_size_tokens) == (512_000_000, 2048)
        assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == (768, 4096, 40)
        assert abs(cfg.n_batches_in_buffer * cfg.context_size - 500_000) < cfg.context_size


@pytest.mark.parametrize(("name", "weight"), [("relu", 10.0), ("topk", 0.5)])
def test_configs_of_paper_5_have_its_setting(name, weight):
    (path,) = [path for path in CONFIGS if path.stem == f"gpt2_{name}_self_consistency"]
    cfg = load_runner_config(path, [])
    assert cfg.hook_name == "blocks.10.hook_resid_post"  # gpt2 has 12 blocks
    assert cfg.training_tokens == 3000 * cfg.train_batch_size_tokens == 3000 * 16 * 128
    assert (cfg.lr, cfg.sae.d_sae, cfg.sae.self_consistency_weight) == (1e-3, 2048, weight)
    assert cfg.sae.self_consistency_warm_up_start == 600
    assert cfg.sae.self_consistency_warm_up_end == 1200
    assert getattr(cfg.sae, "k", None) == (32 if name == "topk" else None)
    assert getattr(cfg.sae, "l1_coefficient", None) == (10 if name == "relu" else None)


def test_the_configs_of_a_model_differ_in_the_variant_and_its_learning_rate_only():
    for model in ("pythia160m", "smollm2"):
        texts = [yaml.safe_load(p.read_text()) for p in OF_PAPER_1 if p.stem.startswith(model)]
        assert len(texts) == 5
        for settings in texts:
            del settings["output_path"], settings["lr"]
            for name in (
                "architecture",
                "activation",
                "arip_weight",
                "encoder_steps",
                "step_matrix",
            ):
                settings["sae"].pop(name, None)
        assert all(settings == texts[0] for settings in texts)


def runner_config(**settings):
    sae = ISAETrainingSAEConfig(D_IN, D_SAE, k=K)
    return LanguageModelSAERunnerConfig(sae=sae, checkpoint_path=None, **settings)


def test_averaging_ends_with_a_run_whose_tokens_are_no_whole_number_of_steps(
    tiny_model, tmp_path, recwarn
):
    sae = isae_config("iSAE", average_from=4, average_until=6)
    cfg = lm_config(tiny_model, tmp_path, sae=sae, training_tokens=64 * 5 + 1, n_checkpoints=0)
    train(cfg, n_eval_batches=0)
    assert not [w for w in recwarn if "average" in str(w.message)]
    with pytest.raises(InputError, match="which has 6 steps"):
        train(replace(cfg, sae=replace(sae, average_until=5)), n_eval_batches=0)


def test_seeds_must_be_positive():
    with pytest.raises(ValueError, match="seeds must be >= 1, got 0"):
        train(runner_config(), n_seeds=0)


@pytest.mark.parametrize("name", ["from_pretrained_path", "use_cached_activations", "compile_sae"])
def test_what_sae_lens_cannot_do_with_several_saes_is_named(name):
    with pytest.raises(ValueError, match=name):
        train(runner_config(**{name: "x" if name.endswith("path") else True}), n_seeds=2)


def test_a_gpu_too_small_says_what_to_lower(tiny_model, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ActivationsStore, "get_activations", full)
    cfg = lm_config(tiny_model, tmp_path)
    with pytest.raises(InputError, match=r"too small .* Tried to allocate 2.00 GiB. Lower store_b"):
        train(cfg, n_eval_batches=0)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([(0, 0), (1, 1)], "initial weights and the order of the data (weights/data: 0/0 (a)"),
        ([(0, 0), (1, 0)], "Seeds decided the initial weights: all SAEs saw the same batches"),
        ([(0, 0), (0, 1)], "all SAEs began with the same weights"),
        ([(0, 0), (0, 0)], "were trained with the same seeds"),
        ([(0, 0), (None, None)], "The seeds of b are not recorded."),
        ([(None, None)] * 2, None),
        ([(0, 0)], None),
    ],
)
def test_reports_say_what_the_seeds_decided(seeds, said):
    saes = {}
    for name, (init, data) in zip("ab", seeds, strict=False):
        sae = make_sae(ISAETrainingSAEConfig(D_IN, D_SAE, k=K))
        if init is not None:
            sae.cfg.metadata.seed, sae.cfg.metadata.data_seed = init, data
        saes[name] = sae
    found = what_seeds_varied(saes)
    assert found == [] if said is None else said in found[0]
    if len(saes) > 1:
        report = pairwise_identifiability(saes, torch.randn(64, D_IN), n_oracle_samples=0)
        assert report.differences == found
        assert set(found) <= set(report.notes())
