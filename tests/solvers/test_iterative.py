"""IHT and GD-sparse against the algorithms of 'Which Sparse Code?', sample by sample."""

from __future__ import annotations

import sys

import pytest
import torch

from sae_lens_isae.solvers import SparseCodes, gd_sparse, gram_matrix, iht, omp
from tests.solvers.test_omp import signals, unit_atoms


def hard_threshold(z, k, signed):
    kept = (z.abs() if signed else z).topk(k).indices
    return torch.zeros_like(z).scatter(0, kept, z[kept])


def iht_by_hand(x, atoms, k, z, step_size, n_iterations, signed):
    for _ in range(n_iterations):
        z = z + step_size * atoms @ (x - z @ atoms)
        z = hard_threshold(z if signed else z.clamp_min(0), k, signed)
    return z


@pytest.mark.parametrize("signed", [False, True])
def test_iht_equals_algorithm_2(signed):
    atoms, x = unit_atoms(30, 12, 0), signals(20, 12)
    k = torch.arange(20) % 5 + 1
    dense = torch.relu(signals(20, 30, 3)) * (torch.rand(20, 30) < 0.1)
    found = iht(x, atoms, k, init=SparseCodes.from_dense(dense), n_iterations=40, signed=signed)
    for i, code in enumerate(found.to_dense()):
        by_hand = iht_by_hand(x[i], atoms, int(k[i]), dense[i], 0.05, 40, signed)
        torch.testing.assert_close(code, by_hand)


def test_iht_from_random_supports():
    atoms, x = unit_atoms(30, 12, 0), signals(20, 12)
    first = iht(x, atoms, 3, n_iterations=1, step_size=0.0)
    assert ((first.values > 0).sum(-1) == 3).all()
    assert first.values.max() <= 0.1
    again, other = iht(x, atoms, 3, seed=1), iht(x, atoms, 3, seed=2)
    assert torch.equal(again.to_dense(), iht(x, atoms, 3, seed=1).to_dense())
    assert not torch.equal(again.to_dense(), other.to_dense())
    shared = iht(x, atoms, 3, seed=1, gram=gram_matrix(atoms))
    torch.testing.assert_close(shared.to_dense(), again.to_dense())


def test_iht_without_a_gram_matrix(monkeypatch):
    atoms, x = unit_atoms(30, 12, 0), signals(20, 12)
    k = torch.arange(20) % 5
    built = iht(x, atoms, k)
    monkeypatch.setattr(sys.modules[gram_matrix.__module__], "GRAM_BYTES", 0)
    torch.testing.assert_close(iht(x, atoms, k).to_dense(), built.to_dense())


def test_gd_sparse_chunk_by_chunk(monkeypatch):
    atoms, x = unit_atoms(30, 12, 0), signals(7, 12)
    whole = gd_sparse(x, atoms, 3, n_iterations=100)
    monkeypatch.setattr(sys.modules[gd_sparse.__module__], "_CHUNK_NUMBERS", 3 * 30)
    torch.testing.assert_close(
        gd_sparse(x, atoms, 3, n_iterations=100).to_dense(), whole.to_dense()
    )


def test_progress_bars(capsys):
    atoms, x = unit_atoms(30, 12, 0), signals(7, 12)
    for solver in (omp, iht, gd_sparse):
        solver(x, atoms, 3, progress=f"by {solver.__name__}")
        assert f"by {solver.__name__}" in capsys.readouterr().err
        solver(x, atoms, 3)
        assert not capsys.readouterr().err


def test_iht_on_an_orthonormal_dictionary_keeps_the_largest():
    """There the problem decouples: the best k-sparse code is the k largest coefficients."""
    atoms = torch.linalg.qr(signals(10, 10)).Q
    x = signals(15, 10, 5)
    found = iht(x, atoms, 4, signed=True, step_size=1.0, n_iterations=3).to_dense()
    exact = torch.stack([hard_threshold(z, 4, True) for z in x @ atoms.T])
    torch.testing.assert_close(found, exact)


def test_iht_refuses_a_start_of_another_problem():
    atoms, x = unit_atoms(30, 12, 0), signals(20, 12)
    with pytest.raises(ValueError, match="3 codes over 30 atoms, expected 20 over 30"):
        iht(x, atoms, 2, init=SparseCodes.from_dense(torch.eye(30).double()[:3]))


def gd_by_hand(x, atoms, k, z, n_iterations):
    z = torch.nn.Parameter(z.clone())
    optimizer, penalty = torch.optim.Adam([z], lr=1e-3), 1e-3
    for step in range(1, n_iterations + 1):
        optimizer.zero_grad()
        ((x - z @ atoms).pow(2).sum() + penalty * z.abs().sum()).backward()
        torch.nn.utils.clip_grad_norm_([z], 1.0)
        optimizer.step()
        with torch.no_grad():
            z.clamp_min_(0)
        if step % 50 == 0:
            active = int((z != 0).sum())
            if active > 1.2 * k:
                penalty *= 1.5
            elif active < 0.8 * k:
                penalty *= 0.7
    return hard_threshold(z.detach(), k, False)


def test_gd_sparse_equals_algorithm_3():
    atoms, x = unit_atoms(30, 12, 0), 3 * signals(6, 12)
    generator = torch.Generator().manual_seed(4)
    start = torch.rand(6, 30, generator=generator).double()
    start = start * 0.01 * x.norm(dim=-1, keepdim=True) / 30**0.5
    k = torch.tensor([1, 2, 3, 4, 20, 29])
    found = gd_sparse(x, atoms, k, n_iterations=400, seed=4).to_dense()
    for i, code in enumerate(found):
        by_hand = gd_by_hand(x[i], atoms, int(k[i]), start[i], 400)
        # torch's clip_grad_norm_ divides by the norm plus 1e-6
        torch.testing.assert_close(code, by_hand, atol=1e-5, rtol=1e-3)


def test_signed_gd_sparse_finds_negative_coefficients():
    atoms = torch.linalg.qr(signals(10, 10)).Q
    codes = torch.zeros(8, 10).double()
    codes[:, 2], codes[:, 7] = 0.3, -0.4
    found = gd_sparse(codes @ atoms, atoms, 2, signed=True, n_iterations=800).to_dense()
    # the l1 penalty shrinks coefficients, it does not move them to other atoms
    assert torch.equal(found.sign(), codes.sign())
    assert (found.abs() <= codes.abs()).all()


@pytest.mark.parametrize("solver", [iht, gd_sparse])
def test_bad_k(solver):
    with pytest.raises(ValueError, match="k must be between 1 and d_sae = 6"):
        solver(signals(2, 4), unit_atoms(6, 4, 0), 7)


def test_zero_signals_and_zero_k():
    atoms, k = unit_atoms(12, 6, 0), torch.tensor([2, 0])
    for solver in (iht, gd_sparse):
        codes = solver(torch.zeros(2, 6).double(), atoms, k).to_dense()
        assert codes.isfinite().all()
        assert (codes[1] == 0).all()
