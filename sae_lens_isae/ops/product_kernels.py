"""The Triton kernels behind `sparse.py` and `multistep.py`, and how they are launched.

Written in plain language features, so that all of them run under Triton's interpreter on a CPU,
where the tests compare them with float64. Sums are in float32; nothing here is rounded to TF32.

Programs are small, of one or two warps: with many of them on a multiprocessor, some have data while
others wait for theirs.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int

_SEGMENT = 32
"""Entries that one program of `_accumulate_kernel` adds up: long lists of one latent are shared
among programs, so that a latent that fires on every sample does not hold up the others."""


def _with_adjacent_columns(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _block(n_columns: int, most: int) -> int:
    return min(triton.next_power_of_2(n_columns), most)


@triton.jit
def _combine_kernel(
    matrix_ptr,
    indices_ptr,
    weights_ptr,
    minuend_ptr,
    out_ptr,
    k,
    n_columns,
    matrix_stride,
    HAS_MINUEND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < n_columns
    # reduced over its rows once, at the end
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, k, ROWS):
        slot = start + tl.arange(0, ROWS)
        row = tl.load(indices_ptr + sample * k + slot, mask=slot < k, other=0)
        weight = tl.load(weights_ptr + sample * k + slot, mask=slot < k, other=0.0)
        # rows of weight 0 are not read: codes are often filled up with them
        wanted = (weight != 0.0)[:, None] & exists[None, :]
        entries = tl.load(
            matrix_ptr + row[:, None] * matrix_stride + column[None, :], mask=wanted, other=0.0
        )
        total += weight.to(tl.float32)[:, None] * entries.to(tl.float32)
    out = tl.sum(total, axis=0)
    if HAS_MINUEND:
        out = tl.load(minuend_ptr + sample * n_columns + column, mask=exists).to(tl.float32) - out
    tl.store(out_ptr + sample * n_columns + column, out, mask=exists)


def combine(
    matrix: Float[torch.Tensor, "rows columns"],
    indices: Int[torch.Tensor, "batch k"],
    weights: Float[torch.Tensor, "batch k"],
    minuend: Float[torch.Tensor, "batch columns"] | None = None,
) -> Float[torch.Tensor, "batch columns"]:
    """Weighted sums of rows of `matrix`, or what is left of `minuend` without them, in float32."""
    (batch, k), n_columns = indices.shape, matrix.shape[1]
    matrix = _with_adjacent_columns(matrix)
    out = torch.empty(batch, n_columns, dtype=torch.float32, device=matrix.device)
    columns = _block(n_columns, 128)
    grid = (batch, triton.cdiv(n_columns, columns))
    if out.numel():
        _combine_kernel[grid](
            matrix,
            indices.contiguous(),
            weights.contiguous(),
            out if minuend is None else minuend.contiguous(),
            out,
            k,
            n_columns,
            matrix.stride(0),
            HAS_MINUEND=minuend is not None,
            ROWS=8,
            COLUMNS=columns,
            num_warps=1,
        )
    return out


@triton.jit
def _dot_kernel(
    x_ptr,
    matrix_ptr,
    indices_ptr,
    out_ptr,
    k,
    n_columns,
    x_stride,
    matrix_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.load(indices_ptr + sample * k + slot, mask=slot < k, other=0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, n_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        exists = column < n_columns
        x = tl.load(x_ptr + sample * x_stride + column, mask=exists, other=0.0).to(tl.float32)
        entries = tl.load(
            matrix_ptr + row[:, None] * matrix_stride + column[None, :],
            mask=(slot < k)[:, None] & exists[None, :],
            other=0.0,
        )
        total += x[None, :] * entries.to(tl.float32)
    tl.store(out_ptr + sample * k + slot, tl.sum(total, axis=1), mask=slot < k)


def dot(
    x: Float[torch.Tensor, "batch columns"],
    matrix: Float[torch.Tensor, "rows columns"],
    indices: Int[torch.Tensor, "batch k"],
) -> Float[torch.Tensor, "batch k"]:
    """Inner products of every sample with its rows of `matrix`, in float32."""
    (batch, k), n_columns = indices.shape, matrix.shape[1]
    matrix = _with_adjacent_columns(matrix)
    x = _with_adjacent_columns(x)
    out = torch.empty(batch, k, dtype=torch.float32, device=matrix.device)
    if out.numel():
        _dot_kernel[(batch, triton.cdiv(k, 16))](
            x,
            matrix,
            indices.contiguous(),
            out,
            k,
            n_columns,
            x.stride(0),
            matrix.stride(0),
            ROWS=16,
            # so many bytes of x are one read of a warp
            COLUMNS=_block(n_columns, 256 // x.element_size()),
            num_warps=1,
        )
    return out


@triton.jit
def _accumulate_kernel(
    row_ptr,
    entry_ptr,
    weights_ptr,
    x_ptr,
    more_weights_ptr,
    more_x_ptr,
    out_ptr,
    n_entries,
    k,
    n_columns,
    FIRST: tl.constexpr,
    HAS_MORE: tl.constexpr,
    SEGMENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    start = tl.program_id(0) * SEGMENT
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < n_columns
    stop = tl.minimum(start + SEGMENT, n_entries)
    total = tl.zeros((COLUMNS,), tl.float32)
    current = tl.load(row_ptr + start)
    for position in range(start, stop):
        row = tl.load(row_ptr + position)
        if row != current:
            out = out_ptr + (current.to(tl.int64) - FIRST) * n_columns
            tl.atomic_add(out + column, total, mask=exists, sem="relaxed")
            total = tl.zeros((COLUMNS,), tl.float32)
            current = row
        entry = tl.load(entry_ptr + position)
        sample = entry // k
        weight = tl.load(weights_ptr + entry).to(tl.float32)
        x = tl.load(x_ptr + sample * n_columns + column, mask=exists, other=0.0)
        total += weight * x.to(tl.float32)
        if HAS_MORE:
            weight = tl.load(more_weights_ptr + entry).to(tl.float32)
            x = tl.load(more_x_ptr + sample * n_columns + column, mask=exists, other=0.0)
            total += weight * x.to(tl.float32)
    out = out_ptr + (current.to(tl.int64) - FIRST) * n_columns
    tl.atomic_add(out + column, total, mask=exists, sem="relaxed")


def accumulate(
    indices: Int[torch.Tensor, "batch k"],
    weights: Float[torch.Tensor, "batch k"],
    x: Float[torch.Tensor, "batch columns"],
    n_rows: int,
    more: tuple[Float[torch.Tensor, "batch k"], Float[torch.Tensor, "batch columns"]] | None = None,
) -> Float[torch.Tensor, "rows columns"]:
    """out[indices[b, j]] += weights[b, j] x[b], in float32; `more` are further weights and x."""
    (batch, k), n_columns = indices.shape, x.shape[1]
    out = torch.zeros(n_rows, n_columns, dtype=torch.float32, device=x.device)
    n_entries = batch * k
    if n_entries == 0:
        return out
    # few bits: the sort makes a pass for every 8 of them
    narrow = n_rows <= 1 << 16
    first = -(1 << 15) if narrow else 0
    key = indices.reshape(-1) + first
    row, entry = key.to(torch.int16 if narrow else torch.int32).sort()
    columns = _block(n_columns, 256)
    grid = (triton.cdiv(n_entries, _SEGMENT), triton.cdiv(n_columns, columns))
    more_weights, more_x = (weights, x) if more is None else more
    _accumulate_kernel[grid](
        row,
        entry,
        weights.contiguous(),
        x.contiguous(),
        more_weights.contiguous(),
        more_x.contiguous(),
        out,
        n_entries,
        k,
        n_columns,
        FIRST=first,
        HAS_MORE=more is not None,
        SEGMENT=_SEGMENT,
        COLUMNS=columns,
        num_warps=1,
    )
    return out


@triton.jit
def _values_at_kernel(
    indices_ptr,
    values_ptr,
    at_ptr,
    out_ptr,
    k,
    n_at,
    AT: tl.constexpr,
    SLOTS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * AT + tl.arange(0, AT)
    at = tl.load(at_ptr + sample * n_at + i, mask=i < n_at, other=-1)
    total = tl.zeros((AT,), tl.float32)
    for start in range(0, k, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        index = tl.load(indices_ptr + sample * k + slot, mask=slot < k, other=-2)
        value = tl.load(values_ptr + sample * k + slot, mask=slot < k, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(at[:, None] == index[None, :], value[None, :], 0.0), axis=1)
    tl.store(out_ptr + sample * n_at + i, total, mask=i < n_at)


def values_at(
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    at: Int[torch.Tensor, "batch n"],
) -> Float[torch.Tensor, "batch n"]:
    """Entries of k-sparse codes at other indices, in float32."""
    (batch, k), n_at = indices.shape, at.shape[1]
    out = torch.empty(batch, n_at, dtype=torch.float32, device=at.device)
    if out.numel():
        _values_at_kernel[(batch, triton.cdiv(n_at, 16))](
            indices.contiguous(),
            values.contiguous(),
            at.contiguous(),
            out,
            k,
            n_at,
            AT=16,
            SLOTS=64,
            num_warps=1,
        )
    return out


@triton.jit
def _block_kernel(
    matrix_ptr,
    matrix_grad_ptr,
    rows_ptr,
    columns_ptr,
    left_ptr,
    right_ptr,
    out_ptr,
    n_left,
    n_right,
    matrix_stride,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * LEFT + tl.arange(0, LEFT)
    row = tl.load(rows_ptr + sample * n_left + i, mask=i < n_left, other=0)
    left = tl.load(left_ptr + sample * n_left + i, mask=i < n_left, other=0.0)
    total = tl.zeros((LEFT,), tl.float32)
    for start in range(0, n_right, RIGHT):
        j = start + tl.arange(0, RIGHT)
        column = tl.load(columns_ptr + sample * n_right + j, mask=j < n_right, other=0)
        right = tl.load(right_ptr + sample * n_right + j, mask=j < n_right, other=0.0)
        wanted = (i < n_left)[:, None] & ((j < n_right) & (right != 0.0))[None, :]
        place = row[:, None] * matrix_stride + column[None, :]
        entries = tl.load(matrix_ptr + place, mask=wanted, other=0.0).to(tl.float32)
        total += tl.sum(entries * right[None, :], axis=1)
        wanted = wanted & (left != 0.0)[:, None]
        product = left[:, None] * right[None, :]
        tl.atomic_add(matrix_grad_ptr + place, product, mask=wanted, sem="relaxed")
    tl.store(out_ptr + sample * n_left + i, total, mask=i < n_left)


def multiply_block(
    matrix: Float[torch.Tensor, "rows columns"],
    matrix_grad: Float[torch.Tensor, "rows columns"],
    rows: Int[torch.Tensor, "batch left"],
    left: Float[torch.Tensor, "batch left"],
    columns: Int[torch.Tensor, "batch right"],
    right: Float[torch.Tensor, "batch right"],
) -> Float[torch.Tensor, "batch left"]:
    """sum_j matrix[rows_i, columns_j] right_j for every i; adds left_i right_j to `matrix_grad`.

    `matrix_grad` (float32) is contiguous and has the shape of `matrix`.
    """
    (batch, n_left), n_right = rows.shape, columns.shape[1]
    # the kernel addresses both by one stride
    matrix = matrix.contiguous()
    assert matrix_grad.is_contiguous()
    assert matrix_grad.shape == matrix.shape
    out = torch.empty(batch, n_left, dtype=torch.float32, device=matrix.device)
    if out.numel():
        _block_kernel[(batch, triton.cdiv(n_left, 16))](
            matrix,
            matrix_grad,
            rows.contiguous(),
            columns.contiguous(),
            left.float().contiguous(),
            right.float().contiguous(),
            out,
            n_left,
            n_right,
            matrix.stride(0),
            LEFT=16,
            RIGHT=64,
            num_warps=2,
        )
    return out
