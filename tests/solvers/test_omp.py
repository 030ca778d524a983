"""OMP against scikit-learn and where theory promises exact recovery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp

from sae_lens_isae.solvers import omp


def unit_atoms(d_sae, d_in, seed):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(atoms, dim=-1)


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
    x = torch.randn(5, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=k).T.reshape(5, d_sae)
    np.testing.assert_allclose(omp(x, atoms, k).to_dense().numpy(), expected, atol=1e-7)


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
