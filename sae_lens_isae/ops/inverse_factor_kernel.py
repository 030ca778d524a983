"""The Triton kernel behind `inverse_factor.py`: a program reads the factor of one sample once.

Written in plain language features, so that it runs under Triton's interpreter on a CPU, where the
tests compare it with float64. Sums are in float32.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

_PER_PROGRAM = 2048
"""Entries of a factor that a program holds at a time."""


@triton.jit
def _add_atom_kernel(
    factor_ptr,
    overlap_ptr,
    squared_norm_ptr,
    correlation_ptr,
    change_ptr,
    taken,
    width,
    tolerance,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    factor_ptr += sample * width * width
    column = tl.arange(0, WIDTH)
    before = column < taken
    overlap = tl.load(overlap_ptr + sample * taken + column, mask=before, other=0.0)
    overlap = overlap.to(tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    seen = tl.full((), 0.0, tl.float32)
    for start in range(0, taken, ROWS):
        row = start + tl.arange(0, ROWS)
        place = row[:, None] * width + column[None, :]
        exists = (row < taken)[:, None] & before[None, :]
        factor = tl.load(factor_ptr + place, mask=exists, other=0.0).to(tl.float32)
        along = tl.sum(factor * overlap[None, :], axis=1)
        seen += tl.sum(along * along, axis=0)
        total += tl.sum(factor * along[:, None], axis=0)
    new = tl.load(squared_norm_ptr + sample).to(tl.float32) - seen
    is_new = new > tolerance
    inverse = tl.where(is_new, 1.0 / tl.sqrt(tl.where(is_new, new, 1.0)), 0.0)
    written = tl.where(column == taken, inverse, -inverse * total)
    tl.store(factor_ptr + taken * width + column, written, mask=column <= taken)
    length = inverse * tl.load(correlation_ptr + sample).to(tl.float32)
    place = sample * (taken + 1) + column
    tl.store(change_ptr + place, written * length, mask=column <= taken)


def add_atom(
    inverse_factor: Float[torch.Tensor, "batch width width"],
    overlap: Float[torch.Tensor, "batch taken"],
    squared_norm: Float[torch.Tensor, " batch"],
    correlation: Float[torch.Tensor, " batch"],
    tolerance: float,
) -> Float[torch.Tensor, "batch taken+1"]:
    """The kernel's form of `inverse_factor.add_atom`."""
    batch, taken = overlap.shape
    assert inverse_factor.is_contiguous()
    change = inverse_factor.new_empty(batch, taken + 1)
    block = triton.next_power_of_2(taken + 1)
    if batch:
        _add_atom_kernel[(batch,)](
            inverse_factor,
            overlap.contiguous(),
            squared_norm.contiguous(),
            correlation.contiguous(),
            change,
            taken,
            inverse_factor.shape[1],
            tolerance,
            ROWS=max(1, min(_PER_PROGRAM // block, block)),
            WIDTH=block,
            num_warps=2,
        )
    return change
