"""The shared recipe against closed forms, scipy and float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from sae_lens_isae.architectures.dead_latents import dead_latent_acts
from sae_lens_isae.architectures.non_finite import NonFiniteWatch
from sae_lens_isae.architectures.recipe import geometric_median, unit_norm_mse
from tests.conftest import (
    D_IN,
    D_SAE,
    NORMALIZATIONS,
    VARIANTS,
    Activations,
    isae_config,
    make_sae,
    make_trainer,
    step_input,
    train_sae,
)


def test_geometric_median_minimises_the_summed_distance():
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[:10] += 50  # outliers that the mean would follow
    found = geometric_median(points)
    best = scipy.optimize.minimize(
        lambda m: np.linalg.norm(points.numpy() - m, axis=1).sum(),
        points.mean(0).numpy(),
        tol=1e-12,
    )
    assert np.linalg.norm(points.numpy() - found.numpy(), axis=1).sum() <= best.fun * (1 + 1e-6)


def test_geometric_median_survives_an_estimate_on_a_point():
    points = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(geometric_median(points), torch.zeros(2))


@pytest.mark.parametrize(
    "points",
    [torch.tensor([[-0.9, 1.3, 0.2, -0.8]]), torch.full((6, 4), 2.5), torch.zeros(5, 4)],
    ids=["one sample", "equal samples", "zeros"],
)
def test_geometric_median_of_one_point(points):
    """A first batch of one sample, of equal ones, or of nothing is no reason for NaN."""
    torch.testing.assert_close(geometric_median(points), points[0])
    sae = make_sae(isae_config("iSAE", d_in=4))
    make_trainer(sae, itertools.chain([points], iter(lambda: torch.randn(9, 4), None)), 2).fit()
    assert sae.b_dec.isfinite().all()


def test_unit_norm_mse_is_the_mse_on_unit_norm_inputs():
    x = (
        torch.randn(8, 5, dtype=torch.float64)
        * torch.logspace(-3, 3, 8, dtype=torch.float64)[:, None]
    )
    out = x + 0.1 * x.norm(dim=-1, keepdim=True) * torch.randn(8, 5, dtype=torch.float64)
    norm = x.norm(dim=-1, keepdim=True)
    expected = (x / norm - out / norm).pow(2).sum(-1).mean()
    torch.testing.assert_close(unit_norm_mse(out, x), expected)


def test_zero_tokens_drop_out_of_the_loss():
    x, out = torch.randn(4, 5), torch.randn(4, 5)
    x[2] = 0
    assert unit_norm_mse(out, x).isfinite()
    out_changed = out.clone()
    out_changed[2] += 100
    assert unit_norm_mse(out, x) == unit_norm_mse(out_changed, x)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_dead", [0, 1, 3, 9, 10])
def test_dead_latent_acts_selects_among_the_dead_only(signed, n_dead):
    pre = torch.randn(6, 10, generator=torch.Generator().manual_seed(n_dead))
    dead = torch.arange(10) < n_dead
    acts = dead_latent_acts(pre, dead, k_aux=3, signed=signed)
    assert (acts[:, ~dead] == 0).all()
    for row, codes in zip(pre[:, dead], acts[:, dead], strict=True):
        order = (row.abs() if signed else row).argsort(descending=True)[:3]
        expected = torch.zeros_like(row)
        expected[order] = row[order] if signed else row[order].relu()
        torch.testing.assert_close(codes, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_latent_loss_is_the_residual_that_dead_latents_explain(variant):
    cfg = isae_config(variant, aux_loss_coefficient=0.25)
    sae = make_sae(cfg)
    x = next(Activations(0.5))
    sae.initialize_bias(x)
    dead = torch.arange(D_SAE) < 5
    losses = sae.training_forward_pass(step_input(x, dead)).losses
    with torch.no_grad():
        pre = (x - sae.b_dec) @ sae.W_enc
        pre_dead = pre[:, :5] if cfg.activation == "abstopk" else pre[:, :5].relu()
        recons = pre_dead @ sae.W_dec[:5]
        norm = x.norm(dim=-1, keepdim=True)
        residual = (x - sae(x)) / norm
        error = (recons / norm - residual).pow(2).sum(-1).mean()
    expected = 0.25 * 5 / (D_IN // 2) * error
    torch.testing.assert_close(losses["auxiliary_reconstruction_loss"], expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_latent_loss_leaves_the_step_matrix_alone(variant):
    sae = make_sae(isae_config(variant))
    step = step_input(next(Activations(0.5)), torch.arange(D_SAE) < 5)
    out = sae.training_forward_pass(step)
    aux = sae.calculate_aux_loss(step, out.feature_acts, out.hidden_pre, out.sae_out)
    aux["auxiliary_reconstruction_loss"].backward()
    for name, parameter in sae.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (name in ("W_enc", "W_dec", "b_dec")), name


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_mse_loss_is_on_the_unit_norm_scale(normalization):
    """A perfect half: reconstructing x / 2 costs 1/4 whatever the norms."""
    sae = make_sae(isae_config("AbsTopK", normalize_activations=normalization))
    x = next(Activations(0.5)) * torch.rand(64, 1)
    out = sae.training_forward_pass(step_input(x))
    expected = ((x - out.sae_out).pow(2).sum(-1) / x.pow(2).sum(-1)).mean()
    torch.testing.assert_close(out.losses["mse_loss"], expected)


def test_constant_norm_rescale_matches_the_default_where_the_bias_is_zero():
    """The papers' placement of the normalisation and the stateless form are one loss at b = 0."""
    x = next(Activations())
    losses = []
    for normalization in ("none", "constant_norm_rescale"):
        sae = make_sae(isae_config("iSAE-ME", normalize_activations=normalization))
        sae._bias_is_set = True
        dead = torch.arange(D_SAE) < 5
        losses.append(sae.training_forward_pass(step_input(x, dead)).losses)
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_atoms_have_unit_norm_in_every_step(variant):
    sae = make_sae(isae_config(variant))
    trainer = make_trainer(sae, Activations(0.5), 5)
    for _ in range(5):
        trainer.step(next(trainer.data_provider))
        sae.training_forward_pass(step_input(next(trainer.data_provider)))
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoders_gradient_lies_as_the_encoder_does(variant, tmp_path):
    """Latent by latent; so nothing is transposed, and a loaded model goes on like that."""
    sae = make_sae(isae_config(variant))
    sae.save_model(tmp_path)
    for each in (sae, type(sae).load_from_disk(tmp_path)):
        each.training_forward_pass(step_input(next(Activations(0.5)))).loss.backward()
        assert each.W_enc.grad.stride() == each.W_enc.stride() == (1, D_IN)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bias_has_one_gradient_whatever_else_needs_one(variant):
    """It takes a short way where activations need no gradient, and a hook may need one, too."""
    x = next(Activations(0.5))
    scale = torch.ones((), requires_grad=True)
    found = {}
    for case in ("alone", "activations", "hook"):
        sae = make_sae(isae_config(variant))
        sae.initialize_bias(x)
        sae_in = x.clone().requires_grad_(case == "activations")
        if case == "hook":
            sae.hook_sae_input.add_hook(lambda acts, hook: acts * scale)
        sae.training_forward_pass(step_input(sae_in)).loss.backward()
        found[case] = sae.b_dec.grad
        if case == "activations":
            assert sae_in.grad.norm() > 1e-4
    assert found["alone"].norm() > 1e-4
    for case, grad in found.items():
        error = (grad - found["alone"]).norm() / found["alone"].norm()
        assert error < 1e-4, case
    assert scale.grad.abs() > 1e-4


def test_first_step_starts_the_bias_at_the_geometric_median_and_only_the_first():
    sae = make_sae(isae_config("iSAE"))
    data = Activations(2.0)
    first = next(data)
    sae.training_forward_pass(step_input(first))
    torch.testing.assert_close(sae.b_dec.data, geometric_median(first))
    sae.training_forward_pass(step_input(next(data)))
    torch.testing.assert_close(sae.b_dec.data, geometric_median(first))


def test_the_encoder_starts_at_the_decoders_transpose():
    sae = make_sae(isae_config("iSAE-ME"))
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_dead_latents_come_back():
    """Latents that start with a useless encoder column fire again with the loss, not without."""
    alive = {}
    for weight in (0.0, 1 / 32):
        sae = make_sae(isae_config("AbsTopK", aux_loss_coefficient=weight))
        with torch.no_grad():
            sae.W_enc[:, : D_SAE // 2] *= 1e-3
        trainer = make_trainer(sae, Activations(), 400)
        trainer.fit()
        codes = sae.encode(next(Activations(start=500)))
        alive[weight] = int((codes[:, : D_SAE // 2] != 0).any(0).sum())
    assert alive[0.0] == 0
    assert alive[1 / 32] > 5


def test_watch_names_the_first_bad_step():
    watch = NonFiniteWatch()
    for step, loss in enumerate([1.0, 2.0, float("nan"), 1.0, float("inf")]):
        watch.record(torch.tensor(loss), step)
    with pytest.raises(ValueError, match="training step 2:"):
        watch.check(wait=True)
    with pytest.raises(ValueError, match="training step 2:"):
        watch.check()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_stop_training_and_keep_the_last_checkpoint(bad, tmp_path):
    class Spoiled(Activations):
        def __next__(self):
            x = super().__next__()
            if self.step == 8:  # the batch of training step 7
                x[3, 2] = bad
            return x

    sae = make_sae(isae_config("iSAE-ME"))
    trainer = make_trainer(sae, Spoiled(), 20, n_checkpoints=4, checkpoint_path=str(tmp_path))
    with pytest.raises(ValueError, match="training step 7:"):
        trainer.fit()
    saved = [path for path in tmp_path.iterdir() if (path / "sae_weights.safetensors").exists()]
    assert len(saved) == 1
    sae.load_weights_from_checkpoint(saved[0])
    assert all(p.isfinite().all() for p in sae.parameters())


def test_nothing_is_written_right_after_a_bad_step(tmp_path):
    sae = make_sae(isae_config("iSAE"))
    x = next(Activations())
    x[0, 0] = float("nan")
    sae.training_forward_pass(step_input(x, step=3))
    for save in (sae.save_model, sae.save_inference_model):
        with pytest.raises(ValueError, match="training step 3:"):
            save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_zero_token_gives_a_zero_code_and_no_nan():
    x = next(Activations())
    x[0] = 0
    sae = make_sae(isae_config("iSAE-ME"))
    codes = sae.encode(x)
    assert (codes[0] == 0).all()
    assert sae.decode(codes).isfinite().all()
    out = sae.training_forward_pass(step_input(x, torch.arange(D_SAE) < 3))
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in sae.parameters() if p.grad is not None)


def test_a_token_at_the_bias_gives_a_zero_code_and_a_zero_token_stays_finite():
    sae = train_sae(isae_config("iSAE-ME"))
    assert (sae.encode(sae.b_dec[None]) == 0).all()
    assert sae(torch.zeros(1, D_IN)).isfinite().all()


def test_activations_of_another_dimension_are_named():
    sae = make_sae(isae_config("iSAE"))
    for x in (torch.randn(4, D_IN + 1), torch.randn(2, 4, D_IN)):
        with pytest.raises(ValueError, match=f"d_in is {D_IN}"):
            sae.training_forward_pass(step_input(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_low_precision_trains(variant):
    """bfloat16 parameters, and float32 parameters under autocast as SAELens uses it."""
    for settings in ({"dtype": "bfloat16"}, {}):
        sae = make_sae(isae_config(variant, resample_until=9, resample_every=2, **settings))
        trainer = make_trainer(sae, Activations(0.5), 60, autocast=not settings)
        first = trainer.step(next(trainer.data_provider)).losses["mse_loss"].item()
        trainer.fit()
        last = trainer.step(next(trainer.data_provider)).losses["mse_loss"].item()
        assert last < first


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nothing_in_a_step_waits_for_the_gpu(variant, normalization):
    cfg = isae_config(
        variant,
        normalize_activations=normalization,
        device="cuda",
        resample_until=100,
        resample_every=2,
    )
    sae = make_sae(cfg)
    x, dead = next(Activations(0.5)).cuda(), (torch.arange(D_SAE) < 5).cuda()
    try:
        for step in range(6):
            out = sae.training_forward_pass(step_input(x, dead, step))
            out.loss.backward()
            # the first step sets up buffers and the start of the bias
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.loss.isfinite()
