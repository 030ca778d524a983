"""Orthogonal matching pursuit (Pati et al. 1993), batched: the oracle solver of paper 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int


@dataclass(frozen=True)
class SparseCodes:
    """Codes held as indices and values; coefficients refer to unit-norm atoms."""

    indices: Int[torch.Tensor, "samples k"]
    """Distinct in each row."""
    values: Float[torch.Tensor, "samples k"]
    d_sae: int

    def to_dense(self) -> Float[torch.Tensor, "samples d_sae"]:
        """The codes with their zeros."""
        dense = self.values.new_zeros(self.values.shape[0], self.d_sae)
        return dense.scatter(-1, self.indices, self.values)


@torch.no_grad()
def omp(
    x: Float[torch.Tensor, "samples d_in"], dictionary: Float[torch.Tensor, "d_sae d_in"], k: int
) -> SparseCodes:
    """Code each sample with `k` atoms: repeatedly take the atom with the largest |correlation| to
    the residual, then refit all coefficients by least squares.

    An orthonormal basis of the support grows by one vector a step, so nothing is refitted from
    scratch. An atom that depends linearly on those taken gets coefficient 0, and the answer stays
    finite.

    Args:
        dictionary: Atoms; they are normalised here, and an all-zero atom is never useful.

    Raises:
        ValueError: k is not in [1, d_sae], or d_in differs.
    """
    d_sae, d_in = dictionary.shape
    if not 1 <= k <= d_sae:
        raise ValueError(f"k must be between 1 and d_sae = {d_sae}, got {k}")
    if x.ndim != 2 or x.shape[1] != d_in:
        raise ValueError(f"x must be [samples, d_in = {d_in}], got {tuple(x.shape)}")
    atoms = torch.nn.functional.normalize(dictionary, dim=-1)
    correlation = x @ atoms.T
    n = x.shape[0]
    rows = torch.arange(n, device=x.device)
    taken = torch.zeros(n, d_sae, dtype=torch.bool, device=x.device)
    indices = torch.zeros(n, k, dtype=torch.long, device=x.device)
    basis = x.new_zeros(n, k, d_in)
    # row i writes basis vector i as a combination of the chosen atoms
    to_atoms = x.new_zeros(n, k, k)
    projections = x.new_zeros(n, k)
    residual = x
    tolerance = torch.finfo(x.dtype).eps ** 0.5
    for step in range(k):
        if step:
            correlation = residual @ atoms.T
        chosen = correlation.abs().masked_fill(taken, -1).argmax(-1)
        taken[rows, chosen] = True
        indices[:, step] = chosen
        atom = atoms[chosen]
        overlap = torch.einsum("nkd,nd->nk", basis[:, :step], atom)
        rest = atom - torch.einsum("nk,nkd->nd", overlap, basis[:, :step])
        # a second pass keeps the basis orthogonal to working precision
        again = torch.einsum("nkd,nd->nk", basis[:, :step], rest)
        rest = rest - torch.einsum("nk,nkd->nd", again, basis[:, :step])
        overlap = overlap + again
        norm = rest.norm(dim=-1, keepdim=True)
        inverse = torch.where(norm > tolerance, 1 / norm, 0.0)
        basis[:, step] = rest * inverse
        to_atoms[:, step, :step] = (
            -torch.einsum("nk,nkj->nj", overlap, to_atoms[:, :step, :step]) * inverse
        )
        to_atoms[:, step, step] = inverse[:, 0]
        projections[:, step] = torch.einsum("nd,nd->n", residual, basis[:, step])
        residual = residual - projections[:, step, None] * basis[:, step]
    values = torch.einsum("nk,nkj->nj", projections, to_atoms)
    return SparseCodes(indices, values, d_sae)
