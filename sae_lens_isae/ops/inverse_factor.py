"""Inverse Cholesky factors of Gram matrices that grow by an atom at a time: the step of OMP."""

from __future__ import annotations

import torch
from jaxtyping import Float

from sae_lens_isae.ops.backends import triton_serves


@torch.no_grad()
def add_atom(
    inverse_factor: Float[torch.Tensor, "batch width width"],
    overlap: Float[torch.Tensor, "batch taken"],
    squared_norm: Float[torch.Tensor, " batch"],
    correlation: Float[torch.Tensor, " batch"],
) -> Float[torch.Tensor, "batch taken+1"]:
    """Fill the next row of the factors, in place, and tell how the coefficients change.

    Row i writes the i-th orthonormal direction with the atoms. An atom that depends linearly on
    those before gets a row of zeros, and changes nothing.

    Args:
        inverse_factor: Row-major, with zeros from row `taken` on.
        overlap: Inner products of the new atom with those that were taken.
        squared_norm: Of the new atom.
        correlation: Its inner product with the residual, which is orthogonal to the others.
    """
    # squared length of what is new in an atom; below it float arithmetic sees only rounding
    tolerance = 16 * torch.finfo(inverse_factor.dtype).eps
    if triton_serves(inverse_factor, overlap):
        from sae_lens_isae.ops import inverse_factor_kernel

        return inverse_factor_kernel.add_atom(
            inverse_factor, overlap, squared_norm, correlation, tolerance
        )
    taken = overlap.shape[1]
    factor = inverse_factor[:, :taken, :taken]
    along = factor @ overlap[..., None]
    new = squared_norm[:, None] - along.square().sum(1)
    inverse = torch.where(new > tolerance, new.clamp_min(tolerance).rsqrt(), 0.0)
    row = inverse_factor[:, taken, : taken + 1]
    row[:, :taken] = -(inverse * (along.mT @ factor)[:, 0])
    row[:, taken] = inverse[:, 0]
    return row * (inverse * correlation[:, None])
