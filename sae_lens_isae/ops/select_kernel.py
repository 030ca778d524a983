"""The selection behind `selection.py` as Triton kernels, and how they are launched.

A short row is searched by one program; of longer ones see `select_long_rows.py`.

Written in plain language features, so that they run under Triton's interpreter on a CPU, where the
tests compare them with float64.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int

from sae_lens_isae.ops.select_keys import LOWEST, Rows, as_key, kth_largest, load, warps
from sae_lens_isae.ops.select_long_rows import select_from_long_rows

_SHORT = 2048
"""Row up to which one program is faster than the kernels for long rows."""
_LONGEST = 4096
"""Longest row that one program can search."""
_MOST_OF_LONG = 512
"""Entries that the kernels for long rows select, at most."""


@triton.jit
def _row_kernel(
    u_ptr,
    addend_ptr,
    sum_ptr,
    indices_ptr,
    values_ptr,
    n_columns,
    k,
    u_stride,
    addend_stride,
    SIGNED: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest entries of a row; of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    exists = column < n_columns
    u = load(u_ptr + row * u_stride, addend_ptr + row * addend_stride, column, exists, HAS_ADDEND)
    if HAS_ADDEND:
        tl.store(sum_ptr + row * n_columns + column, u, mask=exists)
    key = tl.where(exists, as_key(u, SIGNED, EMPTY_BITS), LOWEST)
    threshold = kth_largest(key, k, EMPTY_BITS)
    above = key > threshold
    tied = key == threshold
    n_above = tl.sum(above.to(tl.int32), axis=0)
    # both counts in one scan: neither exceeds BLOCK, which fits into 15 bits
    counts = tl.cumsum(above.to(tl.int32) + (tied.to(tl.int32) << 16), axis=0)
    tie_rank = counts >> 16
    chosen = above | (tied & (tie_rank <= k - n_above))
    slot = tl.where(above, (counts & 0xFFFF) - 1, n_above + tie_rank - 1)
    tl.store(indices_ptr + row * k + slot, column, mask=chosen)
    tl.store(values_ptr + row * k + slot, u, mask=chosen)


def can_select(n_columns: int, k: int) -> bool:
    """Whether `select` serves this size."""
    return k <= n_columns and (n_columns <= _LONGEST or k <= _MOST_OF_LONG)


def select(
    u: Float[torch.Tensor, "batch columns"],
    k: int,
    signed: bool,
    addend: Float[torch.Tensor, "batch columns"] | None = None,
) -> tuple[
    Int[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch columns"] | None,
]:
    """The `k` largest of u + addend per row, by magnitude or value; of equal ones the first.

    Returns:
        Indices (unsorted), values (in float32) and, where there is an addend, the sum.
    """
    batch, n_columns = u.shape
    u = u if u.stride(-1) == 1 else u.contiguous()
    indices = torch.empty(batch, k, dtype=torch.int64, device=u.device)
    values = torch.empty(batch, k, dtype=torch.float32, device=u.device)
    total = None
    if addend is not None:
        addend = addend.contiguous()
        total = torch.empty_like(u, memory_format=torch.contiguous_format)
    if batch > 0:
        in_one_program = n_columns <= _SHORT or k > _MOST_OF_LONG
        launch = _select_from_rows if in_one_program else select_from_long_rows
        launch(Rows(u, addend, total, signed), indices, values)
    return indices, values, total


def _select_from_rows(rows: Rows, indices: torch.Tensor, values: torch.Tensor) -> None:
    batch, n_columns = rows.u.shape
    block = triton.next_power_of_2(n_columns)
    _row_kernel[(batch,)](
        *rows.summands,
        rows.stored,
        indices,
        values,
        n_columns,
        indices.shape[1],
        *rows.strides,
        HAS_ADDEND=rows.addend is not None,
        BLOCK=block,
        num_warps=warps(block),
        **rows.order,
    )
