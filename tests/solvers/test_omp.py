"""OMP against scikit-learn, against least squares, and where theory promises exact recovery."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp

from sae_lens_isae.solvers import gram_matrix, omp


def unit_atoms(d_sae, d_in, seed):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(atoms, dim=-1)


def signals(n, d_in, seed=0):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def pursue_by_hand(x, atoms, k, signed=False, closed=()):
    """Algorithm 1 of 'Which Sparse Code?', one sample, refitted from scratch at every step."""
    support, residual = [], x
    for _ in range(k):
        score = atoms @ residual if signed else (atoms @ residual).abs()
        score[[*closed, *support]] = -torch.inf
        support.append(int(score.argmax()))
        fit = torch.linalg.lstsq(atoms[support].T, x[:, None]).solution[:, 0]
        residual = x - fit @ atoms[support]
    code = torch.zeros(len(atoms), dtype=x.dtype)
    code[support] = fit if k else 0.0
    return code


@given(
    d_in=st.integers(3, 20),
    overcomplete=st.integers(1, 4),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_equals_scikit_learn(d_in, overcomplete, data, seed):
    d_sae = d_in * overcomplete
    k = data.draw(st.integers(1, d_in - 1))
    atoms = unit_atoms(d_sae, d_in, seed)
    x = signals(5, d_in, seed)
    expected = orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=k).T.reshape(5, d_sae)
    for gram in (None, gram_matrix(atoms, block=7)):
        codes = omp(x, atoms, k, gram=gram)
        np.testing.assert_allclose(codes.to_dense().numpy(), expected, atol=1e-7)


def test_recovers_codes_below_the_coherence_bound():
    """k < (1 + 1/mu) / 2 guarantees exact recovery (Tropp 2004)."""
    d_in = 64
    # identity and a normalised Hadamard basis: coherence 1/8, so k <= 4 is always recovered
    hadamard = torch.tensor([[1.0]], dtype=torch.float64)
    while len(hadamard) < d_in:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    atoms = torch.cat([torch.eye(d_in).double(), hadamard / 8])
    coherence = (atoms @ atoms.T - torch.eye(128).double()).abs().max()
    assert (1 + 1 / coherence) / 2 > 4
    codes = torch.zeros(200, 128, dtype=torch.float64)
    support = torch.rand(200, 128).topk(4, dim=-1).indices
    codes.scatter_(-1, support, torch.randn(200, 4, dtype=torch.float64))
    torch.testing.assert_close(omp(codes @ atoms, atoms, 4).to_dense(), codes)


def test_atoms_are_normalised_and_dependent_atoms_stay_finite():
    atoms = unit_atoms(6, 4, 0)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(omp(x, 7 * atoms, 2).to_dense(), omp(x, atoms, 2).to_dense())
    doubled = torch.cat([atoms, atoms, torch.zeros(1, 4).double()])
    codes = omp(x, doubled, 10).to_dense()  # more atoms than dimensions
    assert codes.isfinite().all()
    torch.testing.assert_close(codes @ doubled, x)


@pytest.mark.parametrize("k", [0, 7])
def test_bad_k(k):
    with pytest.raises(ValueError, match="k must be between 1 and d_sae = 6"):
        omp(torch.randn(2, 4), torch.randn(6, 4), k)


def test_bad_shape():
    with pytest.raises(ValueError, match="d_in = 4"):
        omp(torch.randn(2, 5), torch.randn(6, 4), 1)


@given(
    seed=st.integers(0, 2**31),
    k=st.lists(st.integers(0, 6), min_size=9, max_size=9),
    selection=st.sampled_from(["absolute", "signed"]),
    with_gram=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_each_sample_with_its_own_k_and_excluded_atoms(seed, k, selection, with_gram):
    atoms, x = unit_atoms(24, 8, seed), signals(9, 8, seed)
    exclude = torch.rand(9, 24, generator=torch.Generator().manual_seed(seed)).topk(3).indices
    gram = gram_matrix(atoms) if with_gram else None
    codes = omp(x, atoms, torch.tensor(k), selection=selection, exclude=exclude, gram=gram)
    for i, code in enumerate(codes.to_dense()):
        by_hand = pursue_by_hand(x[i], atoms, k[i], selection == "signed", exclude[i].tolist())
        torch.testing.assert_close(code, by_hand, atol=1e-8, rtol=1e-6)


def test_both_ways_to_the_correlations_choose_by_size(monkeypatch):
    """The Gram matrix is an optimisation: whether it is built must not show."""
    atoms, x = unit_atoms(40, 10, 0), signals(50, 10)
    built = omp(x, atoms, 5)
    module = sys.modules[omp.__module__]
    monkeypatch.setattr(sys.modules[gram_matrix.__module__], "GRAM_BYTES", 0)
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 7 * 50)
    not_built = omp(x, atoms, 5)
    assert torch.equal(built.indices, not_built.indices)
    torch.testing.assert_close(built.values, not_built.values)


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3])
def test_nearly_equal_atoms_in_float32(angle):
    """Coefficients of nearly dependent atoms are large and must still give the projection."""
    atoms = unit_atoms(30, 12, 0).float()
    near = torch.nn.functional.normalize(atoms + angle * unit_atoms(30, 12, 1).float(), dim=-1)
    dictionary, x = torch.cat([atoms, near]), signals(200, 12).float()
    codes = omp(x, dictionary, 6)
    residual = x - codes.decode(dictionary)
    touched = torch.nn.functional.normalize(dictionary, dim=-1)[codes.indices]
    on_support = torch.einsum("nkd,nd->nk", touched, residual)[codes.values != 0]
    assert on_support.abs().max() < 1e-4


@pytest.mark.gpu
def test_gpu_equals_cpu():
    atoms, x = unit_atoms(512, 64, 0), signals(300, 64)
    k = torch.arange(300) % 20
    on_gpu = omp(x.cuda(), atoms.cuda(), k)
    torch.testing.assert_close(on_gpu.to_dense().cpu(), omp(x, atoms, k).to_dense())


def test_bad_arguments():
    atoms, x = unit_atoms(6, 4, 0), signals(2, 4)
    with pytest.raises(ValueError, match="selection must be"):
        omp(x, atoms, 1, selection="largest")
    with pytest.raises(ValueError, match="d_sae = 6 less 2 excluded atoms, got 5"):
        omp(x, atoms, 5, exclude=torch.tensor([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"integers \[samples = 2\]"):
        omp(x, atoms, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="between 0 and d_sae = 6, got 1 to 7"):
        omp(x, atoms, torch.tensor([1, 7]))
    assert omp(x[:0], atoms, 2).to_dense().shape == (0, 6)
