"""Latent self-consistency against its definition, by hand and in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_isae import (
    RegularizedMatchingPursuitTrainingSAEConfig,
    RegularizedStandardTrainingSAEConfig,
    RegularizedTopKTrainingSAEConfig,
)
from sae_lens_isae.losses.self_consistency import SelfConsistencyLoss
from tests.conftest import (
    D_IN,
    D_SAE,
    ENCODED_VARIANTS,
    Activations,
    K,
    isae_config,
    make_sae,
    step_input,
    train_sae,
)

AT_ONCE = {"self_consistency_warm_up_start": 0, "self_consistency_warm_up_end": 0}


def standard(**settings):
    return RegularizedStandardTrainingSAEConfig(
        D_IN, D_SAE, dtype="float64", decoder_init_norm=None, **AT_ONCE, **settings
    )


def topk(**settings):
    return RegularizedTopKTrainingSAEConfig(
        D_IN, D_SAE, k=K, dtype="float64", decoder_init_norm=None, **AT_ONCE, **settings
    )


def randomise(sae, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            weight = getattr(sae, name)
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return sae


def batch():
    return next(Activations(0.5)).double()


def step(x):
    return TrainStepInput(x, {"l1": 1.0}, None, 0, is_logging_step=True)


def loss_of(sae, x):
    return sae.training_forward_pass(step(x)).losses["self_consistency_loss"]


def test_on_relu_codes_all_coordinates_count():
    sae = randomise(make_sae(standard(self_consistency_weight=10.0)))
    x = batch()
    z = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    again = torch.relu(z @ sae.W_dec @ sae.W_enc + sae.b_enc)
    expected = 10 * (((again - z) * sae.W_dec.norm(dim=1)) ** 2).sum(1).mean()
    torch.testing.assert_close(loss_of(sae, x), expected)


def test_on_topk_codes_only_the_support_counts():
    cfg = topk(self_consistency_weight=0.5, rescale_acts_by_decoder_norm=False)
    sae = randomise(make_sae(cfg))
    x = batch()

    def code(target):
        pre = (target - sae.b_dec) @ sae.W_enc + sae.b_enc
        kept = pre.topk(K).indices
        return torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept).relu())

    z = code(x)
    again = code(z @ sae.W_dec + sae.b_dec)
    assert ((again != 0) & (z == 0)).any(), "no support switches, so the mask is not tested"
    moved = torch.where(z != 0, again - z, 0.0) * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(loss_of(sae, x), 0.5 * moved.pow(2).sum(1).mean())


def test_no_scale_can_be_hidden_in_the_decoder():
    sae = randomise(make_sae(standard(self_consistency_weight=1.0)))
    x = batch()
    before = loss_of(sae, x)
    scale = torch.linspace(0.1, 10, D_SAE, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.mul_(scale[:, None])
        sae.W_enc.div_(scale)
        sae.b_enc.div_(scale)
    torch.testing.assert_close(loss_of(sae, x), before)


def test_orthonormal_atoms_are_consistent():
    cfg = RegularizedStandardTrainingSAEConfig(
        D_IN, D_IN, dtype="float64", self_consistency_weight=1.0, **AT_ONCE
    )
    sae = make_sae(cfg)
    rotation = torch.linalg.qr(torch.randn(D_IN, D_IN, dtype=torch.float64)).Q
    with torch.no_grad():
        sae.W_dec.copy_(rotation)
        sae.W_enc.copy_(rotation.T)
    x = batch()
    assert loss_of(sae, x) < 1e-20
    assert sae.training_forward_pass(step(x)).metrics["self_consistency_kept"] == 1


@pytest.mark.parametrize("variant", ENCODED_VARIANTS)
def test_second_pass_of_the_recipe_is_its_own_encoder(variant):
    """The recipe encodes on supports; values and gradients are those of the dense encoder."""
    cfg = replace(isae_config(variant), dtype="float64", self_consistency_weight=0.5, **AT_ONCE)
    sae = make_sae(cfg)
    x = batch()
    sae.initialize_bias(x)
    sae.training_forward_pass(step(x))
    term = sae.loss_terms["self_consistency_loss"]
    kept = []
    original = term.forward
    term.forward = lambda ctx, *given: kept.append(original(ctx, *given)) or kept[-1]
    loss = sae.training_forward_pass(step(x)).loss
    del term.forward
    weights = [p for p in sae.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(kept[0], weights, allow_unused=True, retain_graph=True)
    z = sae.encode(x)
    again = sae.encode(sae.decode(z))
    moved = torch.where(z != 0, again - z, 0.0).pow(2).sum(1) / x.pow(2).sum(1)
    torch.testing.assert_close(kept[0], 0.5 * moved.mean())
    expected = torch.autograd.grad(0.5 * moved.mean(), weights, allow_unused=True)
    for found, reference, weight in zip(gradient, expected, weights, strict=True):
        # the recipe's gradient has no part along the atoms
        along = (reference * weight).sum(1, keepdim=True) * weight if weight is sae.W_dec else 0
        torch.testing.assert_close(found, reference - along)
    assert loss.isfinite()


def test_the_recipe_measures_on_unit_norm_inputs():
    sae = make_sae(replace(isae_config("iSAE"), self_consistency_weight=0.5, **AT_ONCE))
    with torch.no_grad():
        sae.b_dec.zero_()
    sae._bias_is_set = True
    x = next(Activations())
    values = [
        sae.training_forward_pass(step_input(scale * x)).losses["self_consistency_loss"]
        for scale in (1.0, 100.0)
    ]
    torch.testing.assert_close(*values)
    assert values[0] > 0


def test_warm_up_is_delayed_and_linear():
    term = SelfConsistencyLoss(weight=2.0, start=600, end=1200, in_support=True)
    steps = (0, 600, 750, 900, 1200, 5000)
    assert [term.weight_at(s) for s in steps] == [0, 0, 0.5, 1.0, 2.0, 2.0]
    at_once = SelfConsistencyLoss(weight=2.0, start=600, end=600, in_support=True)
    assert [at_once.weight_at(s) for s in (599, 600)] == [0, 2.0]


def test_training_sees_the_warm_up():
    settings = {"self_consistency_warm_up_start": 2, "self_consistency_warm_up_end": 4}
    sae = make_sae(replace(isae_config("AbsTopK"), self_consistency_weight=1.0, **settings))
    x = next(Activations(0.5))
    losses = [
        sae.training_forward_pass(step_input(x)).losses["self_consistency_loss"].item()
        for _ in range(5)
    ]
    assert losses[0] == losses[1] == 0
    assert losses[2] == pytest.approx(losses[3] / 2)
    assert losses[3] == pytest.approx(losses[4])


@pytest.mark.parametrize(("make_config", "weight"), [(topk, 3.0), (standard, 10.0)])
def test_the_regulariser_makes_codes_more_consistent(make_config, weight):
    residuals = []
    x = batch()
    for self_consistency_weight in (0.0, weight):
        cfg = make_config(self_consistency_weight=self_consistency_weight)
        sae = train_sae(cfg, n_steps=400)
        z = sae.encode(x)
        moved = torch.where(z != 0, sae.encode(sae.decode(z)) - z, 0.0)
        residuals.append(moved.norm() / z.norm())
    assert residuals[1] < 0.8 * residuals[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"self_consistency_weight": -1.0}, "must be a number >= 0, got -1"),
        ({"self_consistency_weight": float("nan")}, "must be a number >= 0, got nan"),
        ({"self_consistency_warm_up_start": 5, "self_consistency_warm_up_end": 4}, "5 and 4"),
        ({"self_consistency_warm_up_start": -1}, "-1 and 1200"),
        (
            {"self_consistency_weight": 1.0, "normalize_activations": "layer_norm"},
            "not in the same units",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RegularizedStandardTrainingSAEConfig(D_IN, D_SAE, **settings)


def test_matching_pursuit_is_compared_on_its_support():
    cfg = RegularizedMatchingPursuitTrainingSAEConfig(
        D_IN, D_SAE, decoder_init_norm=1.0, max_iterations=K, self_consistency_weight=1.0
    )
    term = SelfConsistencyLoss.from_config(cfg)
    assert isinstance(term, SelfConsistencyLoss)
    assert term.in_support
