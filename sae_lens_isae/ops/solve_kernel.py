"""The Triton kernel behind `least_squares.py`: a program holds the system of one sample in its
registers.

Written in plain language features, so that it runs under Triton's interpreter on a CPU, where the
tests compare it with float64.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

from sae_lens_isae.ops.least_squares import DEPENDENT, N_ROUNDS, SOLVED

_LARGEST = 128
"""Coefficients of a sample: their Gram matrix fills the registers of a program."""
_DEPENDENT = tl.constexpr(DEPENDENT)
_SOLVED = tl.constexpr(SOLVED)


@triton.jit
def _solve_kernel(
    gram_ptr,
    gradient_ptr,
    start_ptr,
    solution_ptr,
    k,
    n_steps,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    both = (row < k) & (column < k)
    gram = tl.load(gram_ptr + sample * k * k + row * k + column, mask=both, other=0.0)
    entry = tl.arange(0, BLOCK)
    exists = entry < k
    gradient = tl.load(gradient_ptr + sample * k + entry, mask=exists, other=0.0)
    start = tl.load(start_ptr + sample * k + entry, mask=exists, other=0.0)
    active = start != 0
    change = tl.zeros((BLOCK,), tl.float32)
    for _ in range(ROUNDS):
        change = tl.where(active, change, -start)
        # G is symmetric: sums over rows, which come back along columns, serve as well
        missed = gradient - tl.sum(gram * change[:, None], axis=0)
        residual = tl.where(active, missed, 0.0)
        direction = residual
        squared = tl.sum(residual * residual, axis=0)
        least = _SOLVED * squared
        for _step in range(n_steps):
            image = tl.where(active, tl.sum(gram * direction[:, None], axis=0), 0.0)
            curvature = tl.sum(direction * image, axis=0)
            length = tl.sum(direction * direction, axis=0)
            goes_on = (squared > least) & (curvature > _DEPENDENT * length)
            step = tl.where(goes_on, squared / tl.where(goes_on, curvature, 1.0), 0.0)
            change += step * direction
            residual -= step * image
            new = tl.where(goes_on, tl.sum(residual * residual, axis=0), 0.0)
            ratio = tl.where(goes_on, new / tl.where(goes_on, squared, 1.0), 0.0)
            direction = residual + ratio * direction
            squared = new
        if ROUNDS > 1:
            active = active & ((start + change) * start > 0)
    solution = tl.where(active, start + change, 0.0)
    tl.store(solution_ptr + sample * k + entry, solution, mask=exists)


def can_solve(k: int) -> bool:
    """Whether a sample's system fits in the registers of a program."""
    return k <= _LARGEST


def solve(
    gram: Float[torch.Tensor, "batch k k"],
    gradient: Float[torch.Tensor, "batch k"],
    start: Float[torch.Tensor, "batch k"],
    n_steps: int,
    keep_sign: bool,
) -> Float[torch.Tensor, "batch k"]:
    """The kernel's form of `least_squares._solve`."""
    k = start.shape[1]
    solution = torch.empty_like(start)
    block = max(16, triton.next_power_of_2(k))
    _solve_kernel[(len(start),)](
        gram.contiguous(),
        gradient.contiguous(),
        start.contiguous(),
        solution,
        k,
        n_steps,
        ROUNDS=N_ROUNDS if keep_sign else 1,
        BLOCK=block,
        num_warps=4 if block <= 64 else 8,
    )
    return solution
