"""Fails when SAELens or TransformerLens move a private name that we use."""

from __future__ import annotations

import torch
import transformer_lens.loading_from_pretrained as tl_loading

from sae_lens_isae import ISAEMETrainingSAEConfig
from sae_lens_isae._private import (
    allow_local_model,
    count_tokens,
    parse_runner_config,
    writes_to,
)
from tests.conftest import BATCH, Activations, isae_config, make_sae, make_trainer


def test_sae_lens_flags_are_parsed_without_starting_a_run():
    cfg = parse_runner_config(
        ["--architecture", "isae_me", "--k", "7", "--step_matrix", "tied", "--lr", "0.5"]
    )
    assert isinstance(cfg.sae, ISAEMETrainingSAEConfig)
    assert (cfg.sae.k, cfg.sae.step_matrix, cfg.lr) == (7, "tied", 0.5)


def test_transformer_lens_accepts_an_allowed_folder():
    allow_local_model("some/folder")
    allow_local_model("some/folder")
    assert tl_loading.OFFICIAL_MODEL_NAMES.count("some/folder") == 1
    assert tl_loading.get_official_model_name("some/folder") == "some/folder"


def test_a_bar_counts_every_step_in_tokens(monkeypatch):
    class Bar:
        n, unit, seen, drawn = 0, "it", [], []

        def __init__(self, **settings):
            assert settings["total"] == 250 * BATCH

        def update(self, n):
            self.n += n
            self.seen.append(self.n)

        def set_description(self, text):
            # draws the bar
            assert "mse_loss" in text
            assert self.n == (100 * len(self.drawn) + 99) * BATCH
            self.drawn.append(self.n)

        close = set_description

    monkeypatch.setattr("sae_lens.training.sae_trainer.tqdm", Bar)
    monkeypatch.setattr(Bar, "close", lambda self: None)
    trainer = make_trainer(make_sae(isae_config("iSAE")), Activations(), 250)
    count_tokens(trainer)
    trainer.fit()
    # nor back and forth with the updates of SAELens itself, every hundred steps
    assert Bar.seen == [BATCH * (step + 1) for step in range(250)]
    assert len(Bar.drawn) == 2


def test_torch_counts_writes():
    x = torch.zeros(2)
    before = writes_to(x)
    x += 1
    assert writes_to(x) == before + 1
    with torch.inference_mode():
        assert writes_to(torch.zeros(2)) is None
