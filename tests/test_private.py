"""Fails when SAELens or TransformerLens move a private name that we use."""

from __future__ import annotations

import transformer_lens.loading_from_pretrained as tl_loading

from sae_lens_isae import ISAEMETrainingSAEConfig
from sae_lens_isae._private import allow_local_model, parse_runner_config


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
