"""A new term fits by its own file: here one with running statistics is added from outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sae_lens import SAE, TopKTrainingSAEConfig
from safetensors.torch import load_file

from sae_lens_isae import ISAETrainingSAE
from sae_lens_isae.losses import LOSS_TERMS, LossTerm, LossTermsConfig, StepContext
from tests.conftest import Activations, isae_config, make_trainer


class MeanFiring(LossTerm):
    name = "mean_firing"

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(d_sae))

    @classmethod
    def from_config(cls, cfg):
        return cls(cfg.d_sae)

    def forward(self, ctx: StepContext):
        self.rate.lerp_((ctx.feature_acts != 0).float().mean(0), 0.1)
        return 0.01 * ctx.feature_acts.abs().mean()

    def metrics(self, ctx):
        return {"firing_max": self.rate.max()}


class WithExtraTerm(ISAETrainingSAE):
    def __init__(self, cfg, use_error_term=False):
        super().__init__(cfg, use_error_term)
        self.build_loss_terms([*LOSS_TERMS, MeanFiring])


def test_running_statistics_are_checkpointed_and_stay_out_of_exports(tmp_path):
    torch.manual_seed(0)
    sae = WithExtraTerm(isae_config("iSAE"))
    make_trainer(sae, Activations(0.5), 5).fit()
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "export")
    assert set(load_file(tmp_path / "export" / "sae_weights.safetensors")) == {
        "W_enc",
        "W_dec",
        "b_enc",
        "b_dec",
    }
    SAE.load_from_disk(tmp_path / "export")

    resumed = WithExtraTerm(isae_config("iSAE"))
    resumed.load_weights_from_checkpoint(tmp_path / "checkpoint")
    rate = resumed.loss_terms["mean_firing"].rate
    assert rate.any()
    assert torch.equal(rate, sae.loss_terms["mean_firing"].rate)
    assert resumed.n_steps == 5

    fresh = WithExtraTerm(isae_config("iSAE"))
    fresh.load_weights_from_checkpoint(tmp_path / "export")
    assert not fresh.loss_terms["mean_firing"].rate.any()
    assert fresh.n_steps == 0


def test_stock_defaults_win_over_the_terms_config():
    """The terms' config stands last among the bases, so a stock default is never overridden."""

    @dataclass
    class WithTerms(TopKTrainingSAEConfig, LossTermsConfig):
        @classmethod
        def architecture(cls):
            return "topk"

    stock, ours = TopKTrainingSAEConfig(4, 8, k=2), WithTerms(4, 8, k=2)
    for name, value in stock.__dict__.items():
        if name != "metadata":
            assert getattr(ours, name) == value
