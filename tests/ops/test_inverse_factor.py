"""The growing inverse factor against float64's Cholesky decomposition and least squares."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae.ops import use_backend
from sae_lens_isae.ops.inverse_factor import add_atom
from tests.ops.conftest import BACKENDS_AND_DEVICES


def grown(atoms, x, backend):
    """The factor and the coefficients after every atom, as OMP gets them."""
    batch, n, _ = atoms.shape
    factor = atoms.new_zeros(batch, n, n)
    values = atoms.new_zeros(batch, n)
    for taken in range(n):
        new = atoms[:, taken]
        residual = x - torch.einsum("bn,bnd->bd", values, atoms)
        with use_backend(backend):
            change = add_atom(
                factor,
                torch.einsum("bnd,bd->bn", atoms[:, :taken], new),
                new.square().sum(-1),
                (residual * new).sum(-1),
            )
        values[:, : taken + 1] += change
    return factor, values


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("n", [1, 2, 17, 70])
def test_it_is_the_inverse_of_the_cholesky_factor(n, backend, device):
    g = torch.Generator().manual_seed(n)
    atoms = torch.nn.functional.normalize(torch.randn(3, n, 200, generator=g), dim=-1).to(device)
    x = torch.randn(3, 200, generator=g).to(device)
    factor, values = grown(atoms, x, backend)
    gram = atoms.double() @ atoms.double().mT
    expected = torch.linalg.inv(torch.linalg.cholesky(gram))
    torch.testing.assert_close(factor.double(), expected, rtol=1e-4, atol=1e-4)
    solved = torch.linalg.solve(gram, (atoms.double() @ x.double()[..., None]))[..., 0]
    torch.testing.assert_close(values.double(), solved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_a_dependent_atom_changes_nothing(backend, device):
    atoms = torch.eye(3, 5, device=device)[None].repeat(2, 1, 1)
    atoms[1, 1] = (atoms[1, 0] + 1e-5 * atoms[1, 1]) / (1 + 1e-10) ** 0.5
    factor, values = grown(atoms, torch.ones(2, 5, device=device), backend)
    torch.testing.assert_close(factor[0], torch.eye(3, device=device))
    assert (factor[1, 1] == 0).all()
    assert values[1].tolist() == pytest.approx([1, 0, 1])
