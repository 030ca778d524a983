"""The k largest entries of rows that are too long for one program to search them quickly.

The largest entries of some groups bound the k-th largest from below; one pass over the row keeps
what reaches the bound, a few times k entries, and those are searched.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sae_lens_isae.ops.select_keys import LOWEST, Rows, as_key, kth_largest, load, warps

_CHUNK = 1024
"""Piece of a longer row that one program reads."""
_REREAD = 1024
"""Piece of it that `_whole_row` reads at a time, in a program of one warp: with larger ones the
kernel takes several seconds to compile."""
_SAMPLED = 2
"""One part in so many of a long row bounds its k-th largest entry."""


@triton.jit
def _bound_kernel(
    u_ptr,
    addend_ptr,
    bound_ptr,
    n_columns,
    k,
    u_stride,
    addend_stride,
    SIGNED: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    SAMPLED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A key that at least k entries of a row reach: the k-th largest of the largest entries of
    groups, which are columns with the same remainder of some pieces."""
    row = tl.program_id(0).to(tl.int64)
    u_ptr += row * u_stride
    addend_ptr += row * addend_stride
    group = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), LOWEST, tl.int32)
    for start in range(0, n_columns - GROUPS + 1, SAMPLED * GROUPS):
        u = load(u_ptr, addend_ptr, start + group, group < GROUPS, HAS_ADDEND)
        largest = tl.maximum(largest, as_key(u, SIGNED, EMPTY_BITS))
    tl.store(bound_ptr + row, kth_largest(largest, k, EMPTY_BITS))


@triton.jit
def _filter_kernel(
    u_ptr,
    addend_ptr,
    sum_ptr,
    bound_ptr,
    count_ptr,
    kept_ptr,
    n_columns,
    n_kept,
    u_stride,
    addend_stride,
    SIGNED: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The columns of a row's entries that reach its bound, in no order, and their number, which may
    be more than the `n_kept` there is room for."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < n_columns
    u = load(u_ptr + row * u_stride, addend_ptr + row * addend_stride, column, exists, HAS_ADDEND)
    if HAS_ADDEND:
        tl.store(sum_ptr + row * n_columns + column, u, mask=exists)
    reaches = exists & (as_key(u, SIGNED, EMPTY_BITS) >= tl.load(bound_ptr + row))
    count = count_ptr + row + tl.zeros((BLOCK,), tl.int32)
    slot = tl.atomic_add(count, 1, mask=reaches, sem="relaxed")
    tl.store(kept_ptr + row * n_kept + slot, column, mask=reaches & (slot < n_kept))


@triton.jit
def _finish_kernel(
    u_ptr,
    count_ptr,
    kept_ptr,
    indices_ptr,
    values_ptr,
    n_columns,
    k,
    u_stride,
    SIGNED: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    KEPT: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest of the entries that were kept, or of the whole row where there was no room for
    all that reached the bound; of equal ones the first."""
    row = tl.program_id(0).to(tl.int64)
    u_ptr += row * u_stride
    indices_ptr += row * k
    values_ptr += row * k
    n_reached = tl.load(count_ptr + row)
    if n_reached <= KEPT:
        place = tl.arange(0, KEPT)
        exists = place < n_reached
        column = tl.load(kept_ptr + row * KEPT + place, mask=exists, other=0)
        u = tl.load(u_ptr + column, mask=exists, other=0.0).to(tl.float32)
        key = tl.where(exists, as_key(u, SIGNED, EMPTY_BITS), LOWEST)
        threshold = kth_largest(key, k, EMPTY_BITS)
        above = key > threshold
        n_above = tl.sum(above.to(tl.int32), axis=0)
        # of those that are equal to it the first ones of the row
        rank = tl.where(exists & (key == threshold), -column, LOWEST)
        chosen = above | ((rank > LOWEST) & (rank >= kth_largest(rank, k - n_above, 0)))
        slot = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(indices_ptr + slot, column, mask=chosen)
        tl.debug_barrier()
        # in the order of the row, so that of equal ones the first can be told later, too
        place = tl.arange(0, CHOSEN)
        exists = place < k
        column = tl.load(indices_ptr + place, mask=exists, other=0)
        slot = tl.zeros((CHOSEN,), tl.int32)
        for other in range(0, k):
            slot += (tl.load(indices_ptr + other) < column).to(tl.int32)
        tl.debug_barrier()
        u = tl.load(u_ptr + column, mask=exists, other=0.0).to(tl.float32)
        tl.store(indices_ptr + slot, column, mask=exists)
        tl.store(values_ptr + slot, u, mask=exists)
    else:
        _whole_row(u_ptr, indices_ptr, values_ptr, n_columns, k, SIGNED, EMPTY_BITS, BLOCK)


@triton.jit
def _whole_row(
    u_ptr,
    indices_ptr,
    values_ptr,
    n_columns,
    k,
    SIGNED: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest entries of a row by reading it as often as bisection asks for."""
    low = tl.full((), LOWEST, tl.int64)
    high = tl.full((), 1 << 31, tl.int64)
    n_above = tl.full((), 0, tl.int32)
    while low + 1 < high:
        middle = (low + high) >> 1
        n_reached = tl.full((), 0, tl.int32)
        for start in range(0, n_columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            exists = column < n_columns
            u = load(u_ptr, u_ptr, column, exists, False)
            reaches = exists & (as_key(u, SIGNED, EMPTY_BITS) >= middle.to(tl.int32))
            n_reached += tl.sum(reaches.to(tl.int32), axis=0)
        enough = n_reached >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        n_above = tl.where(enough, n_above, n_reached)
    n_stored = tl.full((), 0, tl.int32)
    n_tied = tl.full((), 0, tl.int32)
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        exists = column < n_columns
        u = load(u_ptr, u_ptr, column, exists, False)
        key = as_key(u, SIGNED, EMPTY_BITS)
        above = exists & (key > low.to(tl.int32))
        tied = exists & (key == low.to(tl.int32))
        above_rank = tl.cumsum(above.to(tl.int32), axis=0)
        tie_rank = n_tied + tl.cumsum(tied.to(tl.int32), axis=0)
        chosen = above | (tied & (tie_rank <= k - n_above))
        slot = tl.where(above, n_stored + above_rank - 1, n_above + tie_rank - 1)
        tl.store(indices_ptr + slot, column, mask=chosen)
        tl.store(values_ptr + slot, u, mask=chosen)
        n_stored += tl.sum(above.to(tl.int32), axis=0)
        n_tied += tl.sum(tied.to(tl.int32), axis=0)


def select_from_long_rows(rows: Rows, indices: torch.Tensor, values: torch.Tensor) -> None:
    """Fill `indices`, `values` and, where there is an addend, the sum; see `select`."""
    batch, n_columns = rows.u.shape
    k, device = indices.shape[1], indices.device
    n_kept = max(256, triton.next_power_of_2(3 * _SAMPLED * k))
    bound = torch.empty(batch, dtype=torch.int32, device=device)
    count = torch.zeros(batch, dtype=torch.int32, device=device)
    kept = torch.empty(batch, n_kept, dtype=torch.int32, device=device)
    has_addend = rows.addend is not None
    _bound_kernel[(batch,)](
        *rows.summands,
        bound,
        n_columns,
        k,
        *rows.strides,
        HAS_ADDEND=has_addend,
        SAMPLED=_SAMPLED,
        GROUPS=max(512, triton.next_power_of_2(4 * k)),
        **rows.order,
    )
    _filter_kernel[(batch, triton.cdiv(n_columns, _CHUNK))](
        *rows.summands,
        rows.stored,
        bound,
        count,
        kept,
        n_columns,
        n_kept,
        *rows.strides,
        HAS_ADDEND=has_addend,
        BLOCK=_CHUNK,
        num_warps=2,
        **rows.order,
    )
    _finish_kernel[(batch,)](
        rows.stored,
        count,
        kept,
        indices,
        values,
        n_columns,
        k,
        rows.stored.stride(0),
        KEPT=n_kept,
        CHOSEN=triton.next_power_of_2(k),
        BLOCK=_REREAD,
        num_warps=warps(n_kept),
        **rows.order,
    )
