"""The coefficients of least error on given supports.

On the support S of a sample the best coefficients solve G_S z = D_S (x - b), with G_S the Gram
matrix of the atoms in S. Conjugate gradients solve it for the change from the coefficients that are
there: they need no factorisation, a fixed number of steps suits a recorded CUDA graph, and where
atoms depend on each other they give a finite answer, the one that changes least.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int

from sae_lens_isae.ops.backends import triton_serves
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.selection import SelectedEntries, select_largest
from sae_lens_isae.ops.sparse import dot_rows, sum_rows

_MOST_NUMBERS = 1 << 26
"""Of atoms or Gram matrices at a time."""
_MORE_STEPS = 8
"""Than there are coefficients, which rounding asks for."""
_MOST_STEPS = 128
DEPENDENT = 1e-6
"""Directions in which the Gram matrix is smaller than this are those of dependent atoms: float32
cannot tell it from 0 there."""
SOLVED = 1e-12
"""A squared residual smaller than this share of the first one is rounding."""
N_ROUNDS = 4
"""Solutions that are tried to keep signs."""


@not_compiled
@torch.no_grad()
def least_squares_values(
    target: Float[torch.Tensor, "batch d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    keep_sign: bool,
) -> Float[torch.Tensor, "batch k"]:
    """Coefficients that rebuild `target` with least error, beginning with those of an encoder.

    Entries that are 0 stay 0: they are not in the support.

    Args:
        target: x - b.
        dictionary: The atoms, with unit norm.
        values: The encoder's coefficients.
        keep_sign: No coefficient may have the other sign than `values`. Those that come out with it
            are set to 0 and the rest is solved again, up to three times.
    """
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    target, dictionary, values = target.to(dtype), dictionary.to(dtype), values.to(dtype)
    with torch.autocast(target.device.type, enabled=False):
        # of the residual and not of the target: products in TF32 are off by a share of it
        residual = sum_rows(dictionary, indices, values, minuend=target)
        gradient = dot_rows(residual, dictionary, indices)
        solved = [
            _solve(gram, gradient[rows], values[rows], keep_sign)
            for rows, gram in _gram_matrices(dictionary, indices)
        ]
    return torch.cat(solved) if len(solved) > 1 else solved[0]


@torch.no_grad()
def pruned_least_squares(
    target: Float[torch.Tensor, "batch d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    candidates: Int[torch.Tensor, "batch m"],
    values: Float[torch.Tensor, "batch m"],
    k: int,
    keep_sign: bool,
) -> SelectedEntries:
    """The `k` candidates with the largest coefficients, and the coefficients of least error for
    them: all candidates are solved for, and those that stay once more.

    This is how subspace pursuit (Dai & Milenkovic 2009) prunes its candidates. An encoder ranks
    latents by what each has in common with x; the solution knows what the others explain.

    Args:
        values: The encoder's coefficients; where they are 0 there is no candidate.
        keep_sign: As in `least_squares_values`.
    """
    solved = least_squares_values(target, dictionary, candidates, values, keep_sign)
    if k >= candidates.shape[1]:
        return SelectedEntries(candidates, solved)
    # of entries that are 0 any may fill up: they stay out of the support
    kept = select_largest(solved, k, signed=True).indices
    indices, start = candidates.gather(-1, kept), solved.gather(-1, kept)
    return SelectedEntries(
        indices, least_squares_values(target, dictionary, indices, start, keep_sign)
    )


def _gram_matrices(
    dictionary: Float[torch.Tensor, "d_sae d_in"], indices: Int[torch.Tensor, "batch k"]
) -> Iterator[tuple[slice, Float[torch.Tensor, "samples k k"]]]:
    """The Gram matrix of every support, for some samples at a time."""
    d_sae, d_in = dictionary.shape
    n, k = indices.shape
    # the cheaper of all inner products once, and the atoms of every sample
    whole = dictionary @ dictionary.T if d_sae * d_sae <= n * k * d_in else None
    size = max(1, _MOST_NUMBERS // max(1, k * (k if whole is not None else max(k, d_in))))
    for start in range(0, max(n, 1), size):
        rows = slice(start, start + size)
        some = indices[rows]
        if whole is not None:
            yield rows, whole[some[:, :, None], some[:, None, :]]
        else:
            atoms = dictionary[some]
            yield rows, atoms @ atoms.mT


def _solve(
    gram: Float[torch.Tensor, "batch k k"],
    gradient: Float[torch.Tensor, "batch k"],
    start: Float[torch.Tensor, "batch k"],
    keep_sign: bool,
) -> Float[torch.Tensor, "batch k"]:
    k = start.shape[1]
    n_steps = min(k + _MORE_STEPS, _MOST_STEPS)
    if triton_serves(gram, gradient):
        from sae_lens_isae.ops import solve_kernel

        if solve_kernel.can_solve(k):
            return solve_kernel.solve(gram, gradient, start, n_steps, keep_sign)
    active = start != 0
    change = torch.zeros_like(start)
    for _ in range(N_ROUNDS if keep_sign else 1):
        change = torch.where(active, change, -start)
        missed = gradient - (gram @ change[..., None])[..., 0]
        change = change + _conjugate_gradients(gram, missed, active, n_steps)
        if keep_sign:
            active = active & ((start + change) * start > 0)
    solution = start + change
    return torch.where(active, solution, 0.0)


def _conjugate_gradients(
    gram: Float[torch.Tensor, "batch k k"],
    right: Float[torch.Tensor, "batch k"],
    active: Bool[torch.Tensor, "batch k"],
    n_steps: int,
) -> Float[torch.Tensor, "batch k"]:
    """The solution of G z = right among the active entries."""
    solution = torch.zeros_like(right)
    residual = torch.where(active, right, 0.0)
    direction = residual
    squared = residual.square().sum(-1, keepdim=True)
    least = SOLVED * squared
    for _ in range(n_steps):
        image = torch.where(active, (gram @ direction[..., None])[..., 0], 0.0)
        curvature = (direction * image).sum(-1, keepdim=True)
        length = direction.square().sum(-1, keepdim=True)
        goes_on = (squared > least) & (curvature > DEPENDENT * length)
        if right.device.type == "cpu" and not goes_on.any():
            break
        step = torch.where(goes_on, squared / curvature, 0.0)
        solution = solution + step * direction
        residual = residual - step * image
        # where it stops, it stops for good
        new = torch.where(goes_on, residual.square().sum(-1, keepdim=True), 0.0)
        direction = residual + torch.where(goes_on, new / squared, 0.0) * direction
        squared = new
    return solution
