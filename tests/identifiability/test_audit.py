"""The audit against closed forms, and its verdicts on SAEs made to meet or to fail them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_isae import audit
from sae_lens_isae.identifiability.audit_report import AuditReport, conclusion, joint_theorem
from sae_lens_isae.identifiability.distribution import Distribution
from sae_lens_isae.inputs.activations import from_generator
from sae_lens_isae.synthetic import signed_synthetic_model
from tests.conftest import D_IN, D_SAE
from tests.inputs.test_linear_sae import ARCHITECTURES, NORMALIZATIONS, stock_sae


def verdicts(found):
    return {a.name: a.verdict for a in found.assumptions}


def orthonormal_sae(d=6, k=2):
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=d, d_sae=d, k=k))
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(torch.randn(d, d)).Q)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.normal_()
    return sae


def sparse_data(sae, n, k=2):
    codes = torch.zeros(n, sae.cfg.d_sae)
    support = torch.rand(n, sae.cfg.d_sae).topk(k, dim=-1).indices
    codes.scatter_(1, support, torch.randn(n, k))
    return codes @ sae.W_dec.detach() + sae.b_dec.detach()


def test_a_perfect_sae_meets_everything():
    torch.manual_seed(0)
    sae = orthonormal_sae()
    found = audit(sae, sparse_data(sae, 3000))[0]
    assert verdicts(found) == dict.fromkeys(["A1", "A2", "A3", "A4", "A5", "A6"], "not refuted")
    assert found.pairs.delta.max == pytest.approx(0, abs=1e-5)
    assert found.error.max == pytest.approx(0, abs=1e-5)
    assert found.coherence.mu == pytest.approx(0, abs=1e-5)
    assert found.self_consistency.residual.max == pytest.approx(0, abs=1e-4)
    assert found.self_consistency.lipschitz == pytest.approx(1, abs=1e-5)
    assert found.theorem.holds
    assert found.theorem.proof_holds
    assert not found.theorem.dictionary_bound_is_vacuous
    assert "The condition of Theorem 3.6 is not refuted" in conclusion([found])
    assert found.health.usage_entropy == pytest.approx(1, abs=0.01)
    assert found.health.coherence_rms == pytest.approx(0, abs=1e-5)


def test_each_failure_is_named():
    torch.manual_seed(0)
    sae = orthonormal_sae()
    x = sparse_data(sae, 2000)
    with torch.no_grad():
        sae.W_enc.mul_(0.5)  # the right support, half the coefficients
    found = audit(sae, x)[0]
    assert verdicts(found)["A6"] == "refuted"
    assert verdicts(found)["A3"] == "refuted"
    assert found.least_squares.median == pytest.approx(1, abs=1e-3)
    assert found.error.median == pytest.approx(0.5, abs=1e-3)
    assert "Refuted: A3 and A6." in conclusion([found])
    with torch.no_grad():
        sae.W_dec[1] = sae.W_dec[0]
    found = audit(sae, x)[0]
    assert verdicts(found)["A1"] == "refuted"
    assert found.coherence.mu == pytest.approx(1)
    assert found.coherence.latents == (0, 1)
    assert "Theorem 3.6 says nothing" in conclusion([found])


def test_numbers_equal_their_definitions():
    torch.manual_seed(1)
    sae = stock_sae("abstopk")
    x = torch.randn(700, D_IN)
    found = audit(sae, x, n_kept=500)[0]
    atoms = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1).double().numpy()
    norms = sae.W_dec.detach().norm(dim=-1)
    gram = np.abs(atoms @ atoms.T - np.eye(D_SAE))
    assert found.coherence.mu == pytest.approx(gram.max(), abs=1e-5)
    assert gram[found.coherence.latents] == pytest.approx(gram.max(), abs=1e-5)
    assert found.health.coherence_rms == pytest.approx(
        math.sqrt((gram**2).sum() / D_SAE**2), abs=1e-5
    )
    to_self = (sae.W_dec @ sae.W_enc).detach() / norms[:, None] * norms
    assert found.self_consistency.lipschitz == pytest.approx(
        torch.linalg.matrix_norm(to_self.double(), 2).item(), rel=1e-4
    )
    z = (sae.encode(x) * norms).detach()
    again = (sae.encode(sae(x)) * norms).detach()
    moved = (again - z).norm(dim=-1) / z.norm(dim=-1)
    inside = ((again - z) * (z != 0)).norm(dim=-1) / z.norm(dim=-1)
    assert found.self_consistency.residual.mean == pytest.approx(moved.mean().item(), rel=1e-4)
    assert found.self_consistency.lower_bound == pytest.approx(
        inside.mean().item() / found.self_consistency.lipschitz, rel=1e-4
    )
    scale = (x - sae.b_dec).norm(dim=-1)
    error = ((x - sae(x)).norm(dim=-1) / scale).detach()
    assert found.error.max == pytest.approx(error.max().item(), rel=1e-4)
    assert found.error.p95 == pytest.approx(error.quantile(0.95).item(), rel=1e-3)
    usage = (z != 0).double().mean(0)
    p = usage / usage.sum()
    entropy = -(p * (p + 1e-12).log()).sum().item() / math.log(D_SAE)
    assert found.health.usage_entropy == pytest.approx(entropy, rel=1e-6)
    assert found.code_norm.max == pytest.approx((z.norm(dim=-1) / scale).max().item(), rel=1e-4)


def test_lower_bound_holds_where_its_assumptions_do():
    """Dictionary known, no noise, one linear map and a fixed support: the certificate is below the
    true error."""
    torch.manual_seed(2)
    atoms = torch.nn.functional.normalize(torch.randn(10, 30), dim=-1)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=30, d_sae=10, k=10))
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
        sae.b_dec.zero_()
    truth = torch.randn(200, 10)
    found = audit(sae, truth @ atoms)[0]
    z = sae.encode(truth @ atoms)
    true_error = ((z - truth).norm(dim=-1) / z.norm(dim=-1)).mean().item()
    assert 0 < found.self_consistency.lower_bound <= true_error


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_architecture_goes_through(architecture, normalization):
    found = audit(stock_sae(architecture, normalization), torch.randn(200, D_IN))[0]
    data = json.loads(json.dumps(AuditReport(saes=[found]).to_dict(), allow_nan=False))
    assert data["schema"] == "sae-lens-isae/audit/2"
    assert [a["name"] for a in data["saes"][0]["assumptions"]] == [f"A{i}" for i in range(1, 7)]
    assert (found.proxy is not None) == (architecture in ("topk", "abstopk", "isae_me"))


def test_two_saes_are_judged_by_the_worst_of_each_constant():
    a = audit(stock_sae("topk", seed=0), torch.randn(300, D_IN))[0]
    b = audit(stock_sae("abstopk", seed=1), torch.randn(300, D_IN))[0]
    joint = joint_theorem([a, b])
    assert joint.epsilon == max(a.theorem.epsilon, b.theorem.epsilon)
    assert joint.zeta == min(a.theorem.zeta, b.theorem.zeta)


def test_samples_at_the_bias_and_dead_saes():
    torch.manual_seed(0)
    sae = orthonormal_sae()
    x = sparse_data(sae, 50)
    x[:7] = sae.b_dec.detach()
    assert audit(sae, x)[0].n_at_offset == 7
    with torch.no_grad():
        sae.W_enc.zero_()
    with pytest.raises(ValueError, match="no sample has an active latent"):
        audit(sae, x)


def test_one_sample_is_enough():
    torch.manual_seed(0)
    sae = orthonormal_sae()
    assert audit(sae, sparse_data(sae, 1))[0].n_samples == 1


def test_what_some_supports_show_of_zeta_does_not_meet_the_condition():
    """Supports that are seen once leave zeta open: with it, A3 can be refuted and not be met."""
    torch.manual_seed(0)
    sae = orthonormal_sae(d=12)
    often = sparse_data(sae, 1).expand(4, -1) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    codes = torch.zeros(4, 12)
    codes[:, :2] = torch.randn(4, 2)
    often = codes @ sae.W_dec.detach() + sae.b_dec.detach()
    found = audit(sae, torch.cat([often, sparse_data(sae, 40)]))[0]
    assert 0 < found.diversity.n_estimable < found.diversity.n_supports
    assert found.theorem.holds
    assert verdicts(found)["A3"] == "not estimable"
    (a4,) = [a for a in found.assumptions if a.name == "A4"]
    assert f"{found.diversity.n_estimable} of {found.diversity.n_supports}" in a4.evidence
    data = AuditReport(saes=[found]).to_dict()
    assert data["theorem"]["condition"] == "not estimable"
    assert "cannot be said" in data["conclusion"]
    assert "at most" in next(a.sentence for a in found.assumptions if a.name == "A3")


def test_saes_audited_together_see_the_same_samples():
    sae = stock_sae("abstopk")
    source = from_generator(signed_synthetic_model(20, D_IN, 2, seed=0), 300)
    one, two = audit({"one": sae, "two": sae}, source)
    assert one.theorem == two.theorem
    assert one.error == two.error


def test_zero_rows_are_left_out():
    sae, x = stock_sae("abstopk"), torch.randn(300, D_IN)
    found = audit(sae, torch.cat([torch.zeros(700, D_IN), x]))[0]
    assert found.error == audit(sae, x)[0].error
    assert (found.n_samples, found.n_zero_rows) == (300, 700)
    with pytest.raises(ValueError, match="all 5 activations are zero"):
        audit(sae, torch.zeros(5, D_IN))


def test_quantiles_of_more_values_than_torch_takes():
    values = torch.arange(2**24 + 2, dtype=torch.float32)
    found = Distribution.of(values)
    assert found.n == len(values)
    assert found.median == pytest.approx(2**23, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["abstopk", "standard"])
def test_gpu_equals_cpu(architecture):
    sae, x = stock_sae(architecture), torch.randn(300, D_IN)
    on_cpu, on_gpu = audit(sae, x)[0], audit(sae.to("cuda"), x)[0]
    assert on_gpu.theorem.epsilon == pytest.approx(on_cpu.theorem.epsilon, rel=1e-3)
    assert on_gpu.theorem.delta == pytest.approx(on_cpu.theorem.delta, rel=1e-3)
    assert on_gpu.coherence.mu == pytest.approx(on_cpu.coherence.mu, rel=1e-4)
    assert on_gpu.least_squares.median == pytest.approx(on_cpu.least_squares.median, rel=1e-2)
