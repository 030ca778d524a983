"""aRIP: the estimator is unbiased, the measurement exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.registry import get_sae_training_class

from sae_lens_isae import RegularizedGatedTrainingSAEConfig
from sae_lens_isae.losses import StepContext
from sae_lens_isae.losses.arip import (
    arip_delta,
    arip_estimate,
    gram_eigenvalues,
    r_arip,
    sae_supports,
)
from sae_lens_isae.ops.selection import select_largest
from tests.architectures.test_recipe import step_input
from tests.conftest import (
    BATCH,
    D_IN,
    D_SAE,
    Activations,
    K,
    isae_config,
    make_sae,
    make_trainer,
)


def random_problem(seed, d_sae=30, d_in=12, n=4, size=6):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    supports = torch.rand(n, d_sae, generator=generator).topk(size, dim=-1).indices
    return torch.nn.functional.normalize(atoms, dim=-1), supports


@given(seed=st.integers(0, 2**31), size=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_eigenvalues_give_equation_6(seed, size):
    """sum (lambda - 1)^2 / |S| = tr(G^2) / |S| - 1, and delta is the operator norm of G - I."""
    atoms, supports = random_problem(seed, size=size)
    eigenvalues = gram_eigenvalues(3 * atoms, supports)  # atoms are normalised inside
    for row, support in zip(eigenvalues, supports, strict=True):
        G = atoms[support] @ atoms[support].T
        trace = torch.trace(G @ G) / size - 1
        torch.testing.assert_close(r_arip(row[None])[0], trace)
        delta = torch.linalg.matrix_norm(G - torch.eye(size, dtype=torch.float64), ord=2)
        torch.testing.assert_close(arip_delta(row[None])[0], delta)


def test_orthogonal_atoms_have_no_deviation_and_equal_atoms_have_the_largest():
    atoms = torch.eye(6, dtype=torch.float64)
    supports = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(r_arip(gram_eigenvalues(atoms, supports)), torch.zeros(1).double())
    opposite = atoms.clone()
    opposite[1] = -opposite[0]
    torch.testing.assert_close(
        arip_delta(gram_eigenvalues(opposite, torch.tensor([[0, 1]]))), torch.ones(1).double()
    )


def test_estimator_is_unbiased():
    """The mean of many one-sample estimates is within 4 standard errors of the exact value."""
    atoms, supports = random_problem(0)
    exact = r_arip(gram_eigenvalues(atoms, supports)).mean()
    noise = torch.randn(20_000, *supports.shape, dtype=torch.float64)
    estimates = torch.stack([arip_estimate(atoms, supports, n) for n in noise])
    error = estimates.std() / len(estimates) ** 0.5
    assert (estimates.mean() - exact).abs() < 4 * error
    assert error < 0.01 * exact + 0.01


def test_gradient_of_the_estimator_is_unbiased():
    atoms, supports = random_problem(1, n=2)
    atoms.requires_grad_()
    G = atoms[supports] @ atoms[supports].mT
    exact = (G.pow(2).sum((-1, -2)) / supports.shape[1] - 1).mean()
    (expected,) = torch.autograd.grad(exact, atoms)
    total, square, n = 0.0, 0.0, 4000
    for noise in torch.randn(n, *supports.shape, dtype=torch.float64):
        (grad,) = torch.autograd.grad(arip_estimate(atoms, supports, noise), atoms)
        total, square = total + grad, square + grad.pow(2)
    mean = total / n
    error = ((square / n - mean.pow(2)) / n).sqrt()
    assert ((mean - expected).abs() <= 5 * error + 1e-12).all()


def test_estimator_gradcheck():
    atoms, supports = random_problem(2, d_sae=8, d_in=5, n=2, size=4)
    noise = torch.randn(supports.shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a: arip_estimate(a, supports, noise), (atoms.requires_grad_(),)
    )


@pytest.mark.parametrize("signed", [True, False])
def test_support_holds_the_code(signed):
    pre = torch.randn(50, 20)
    ranked = pre.abs() if signed else pre
    code = ranked.topk(4, dim=-1).indices
    support = select_largest(pre, 8, signed).indices
    assert all(set(c) <= set(s) for c, s in zip(code.tolist(), support.tolist(), strict=True))


def test_noise_is_keyed_by_seed_and_step():
    x = next(Activations())

    def losses(arip_seed, global_seed):
        sae = make_sae(isae_config("iSAE", arip_seed=arip_seed))
        torch.manual_seed(global_seed)
        return [
            sae.training_forward_pass(step_input(x, step=s)).losses["arip_loss"].item()
            for s in range(3)
        ]

    assert losses(0, 1) == losses(0, 2)
    assert losses(0, 1) != losses(1, 1)
    assert len(set(losses(0, 1))) == 3


def test_measurement_is_logged_on_logging_steps_only():
    sae = make_sae(isae_config("iSAE-ME"))
    trainer = make_trainer(sae, Activations(0.5), 10)
    x = next(trainer.data_provider)
    assert sae.training_forward_pass(step_input(x)).metrics == {}
    out = sae.training_forward_pass(step_input(x, logging=True))
    log = trainer.build_train_step_log_dict(out, BATCH)
    supports = select_largest(out.hidden_pre, 2 * K, signed=True).indices[:64]
    eigenvalues = gram_eigenvalues(sae.W_dec, supports)
    assert log["metrics/r_arip"] == pytest.approx(r_arip(eigenvalues).mean().item(), rel=1e-4)
    delta = arip_delta(eigenvalues)
    assert log["metrics/arip_delta_max"] == pytest.approx(delta.max().item(), rel=1e-4)
    assert log["metrics/arip_delta_median"] <= log["metrics/arip_delta_p95"] <= delta.max() + 1e-6
    assert "losses/arip_loss" in log


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_without_k_supports_have_twice_the_running_l0(architecture):
    cfg = get_sae_training_class(f"regularized_{architecture}")[1](D_IN, D_SAE, arip_weight=0.1)
    sae = make_sae(cfg)
    term = sae.loss_terms["arip_loss"]
    with torch.no_grad():
        getattr(sae, "b_gate" if architecture == "gated" else "b_enc").fill_(-0.3)
    data = Activations(0.5)
    running = None
    for _ in range(5):
        step = replace(step_input(next(data)), coefficients={"l1": 1.0, "l0": 1.0})
        step.is_logging_step = True
        l0 = (sae.encode(step.sae_in) != 0).float().sum(1).mean().item()
        running = l0 if running is None else running
        expected = round(2 * running)
        assert 2 < expected < D_SAE
        assert sae.training_forward_pass(step).metrics["arip_support_size"] == expected
        running += 0.01 * (l0 - running)
        assert term.running_l0.item() == pytest.approx(running, rel=1e-5)
        with torch.no_grad():
            sae.W_enc.mul_(3)


def test_where_gates_decide_active_latents_come_first():
    sae = make_sae(RegularizedGatedTrainingSAEConfig(D_IN, D_SAE, arip_weight=0.1))
    acts, hidden_pre = torch.zeros(2, D_SAE), torch.randn(2, D_SAE)
    hidden_pre[:, 7] = 1e6  # a large magnitude behind a closed gate
    acts[0, [3, 5]] = hidden_pre[0, [3, 5]] = 1e-3
    ctx = StepContext(
        sae=sae,
        sae_in=torch.randn(2, D_IN),
        feature_acts=acts,
        hidden_pre=hidden_pre,
        sae_out=acts,
        dictionary=sae.W_dec,
    )
    (three,) = sae_supports(ctx, 3, n_samples=1).tolist()
    assert set(three) == {3, 5, 7}


def test_a_resumed_run_goes_on_with_its_l0(tmp_path):
    cfg = RegularizedGatedTrainingSAEConfig(D_IN, D_SAE, arip_weight=0.1)
    sae = make_sae(cfg)
    make_trainer(sae, Activations(0.5), 4).fit()
    sae.save_model(tmp_path)
    resumed = make_sae(cfg)
    resumed.load_weights_from_checkpoint(tmp_path)
    resumed.prepare_terms(next(Activations(9.0, seed=5)))
    assert resumed.loss_terms["arip_loss"].size == sae.loss_terms["arip_loss"].size
