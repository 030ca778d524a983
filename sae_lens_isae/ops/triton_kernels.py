"""Triton kernels behind `selection.py` and `sparse.py`, and how they are launched.

Written in plain language features, so that all of them run under Triton's interpreter on a CPU,
where the tests compare them with float64. Sums are in float32; nothing here is rounded to TF32.
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

CHUNK = 4096
"""Longest piece of a row that one program of `_select_kernel` holds in registers."""
_EMPTY_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
_LOWEST = tl.constexpr(-0x80000000)
_MAX_CANDIDATES = 16_384
_SEGMENT = 32
"""Entries that one program of `_accumulate_kernel` adds up: long lists of one latent are shared
among programs, so that a latent that fires on every sample does not hold up the others."""


@triton.jit
def _kth_largest(key, k, EMPTY_BITS: tl.constexpr):
    """The largest threshold that at least k keys reach, or a lower one that exactly k reach.

    Down from the largest key in growing strides, the first of which halves the magnitude; then
    bisection of the last stride.
    """
    high = tl.max(key, axis=0).to(tl.int64) + 1
    stride = tl.full((), 1 << 23, tl.int64) >> EMPTY_BITS
    low = tl.maximum(high - stride, _LOWEST)
    n_reached = tl.sum((key >= low.to(tl.int32)).to(tl.int32), axis=0)
    while n_reached < k:
        high = low
        stride = stride * 4
        low = tl.maximum(low - stride, _LOWEST)
        n_reached = tl.sum((key >= low.to(tl.int32)).to(tl.int32), axis=0)
    while (low + 1 < high) & (n_reached != k):
        middle = (low + high) >> 1
        n_middle = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), axis=0)
        enough = n_middle >= k
        low = tl.where(enough, middle, low)
        n_reached = tl.where(enough, n_middle, n_reached)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def _select_kernel(
    u_ptr,
    addend_ptr,
    sum_ptr,
    source_ptr,
    indices_ptr,
    values_ptr,
    n_columns,
    k,
    u_stride,
    addend_stride,
    n_chunks,
    SIGNED: tl.constexpr,
    HAS_ADDEND: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    EMPTY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    exists = column < n_columns
    u_ptr += row * u_stride
    addend_ptr += row * addend_stride
    u = tl.load(u_ptr + column, mask=exists, other=0.0).to(tl.float32)
    if HAS_ADDEND:
        addend = tl.load(addend_ptr + column, mask=exists, other=0.0)
        u += addend.to(tl.float32)
    if WRITE_SUM:
        tl.store(sum_ptr + row * n_columns + column, u, mask=exists)
    if HAS_SOURCE:
        source = tl.load(source_ptr + row * n_columns + column, mask=exists, other=-1)
        exists = exists & (source >= 0)
    else:
        source = column
    bits = u.to(tl.int32, bitcast=True)
    if SIGNED:  # noqa: SIM108
        key = bits & 0x7FFFFFFF
    else:
        # the order of floats as an order of integers: negative ones count downwards
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # bits that are 0 in every number of a narrow type
    key = key >> EMPTY_BITS
    key = tl.where(exists, key, _LOWEST)
    threshold = _kth_largest(key, k, EMPTY_BITS)
    above = key > threshold
    tied = key == threshold
    n_above = tl.sum(above.to(tl.int32), axis=0)
    # both counts in one scan: neither exceeds BLOCK, which fits into 15 bits
    counts = tl.cumsum(above.to(tl.int32) + (tied.to(tl.int32) << 16), axis=0)
    tie_rank = counts >> 16
    chosen = above | (tied & (tie_rank <= k - n_above))
    slot = tl.where(above, (counts & 0xFFFF) - 1, n_above + tie_rank - 1)
    start = (row * n_chunks + chunk) * k
    tl.store(indices_ptr + start + slot, tl.where(exists, source, -1), mask=chosen)
    tl.store(values_ptr + start + slot, u, mask=chosen)


def _warps(block: int) -> int:
    return max(1, min(8, block // 1024))


def can_select(n_columns: int, k: int) -> bool:
    """Whether `select` serves this size: the candidates of a row must fit one program."""
    n_chunks = triton.cdiv(n_columns, CHUNK)
    return k <= min(CHUNK, n_columns) and (n_chunks == 1 or n_chunks * k <= _MAX_CANDIDATES)


def select(
    u: Float[torch.Tensor, "batch columns"],
    k: int,
    signed: bool,
    addend: Float[torch.Tensor, "batch columns"] | None = None,
    want_sum: bool = False,
) -> tuple[
    Int[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch columns"] | None,
]:
    """The `k` largest of u + addend per row, by magnitude or value; of equal ones the first.

    Rows longer than CHUNK are cut: the k largest of the pieces' k largest are those of the row.

    Returns:
        Indices (unsorted), values (in float32) and, where `want_sum`, u + addend.
    """
    batch, n_columns = u.shape
    u = u if u.stride(-1) == 1 else u.contiguous()
    if addend is not None and addend.stride(-1) != 1:
        addend = addend.contiguous()
    total = torch.empty_like(u, memory_format=torch.contiguous_format) if want_sum else None
    block = min(triton.next_power_of_2(n_columns), CHUNK)
    n_chunks = triton.cdiv(n_columns, block)
    indices = torch.empty(batch, n_chunks * k, dtype=torch.int64, device=u.device)
    values = torch.empty(batch, n_chunks * k, dtype=torch.float32, device=u.device)
    if batch == 0:
        return indices[:, :k], values[:, :k], total
    _select_kernel[(batch, n_chunks)](
        u,
        addend if addend is not None else u,
        total if total is not None else u,
        u,
        indices,
        values,
        n_columns,
        k,
        u.stride(0),
        addend.stride(0) if addend is not None else 0,
        n_chunks,
        SIGNED=signed,
        HAS_ADDEND=addend is not None,
        WRITE_SUM=want_sum,
        HAS_SOURCE=False,
        EMPTY_BITS=0 if addend is not None else _EMPTY_BITS[u.dtype],
        BLOCK=block,
        num_warps=_warps(block),
    )
    if n_chunks > 1:
        candidates, source = values, indices
        indices = torch.empty(batch, k, dtype=torch.int64, device=u.device)
        values = torch.empty(batch, k, dtype=torch.float32, device=u.device)
        block = triton.next_power_of_2(n_chunks * k)
        _select_kernel[(batch, 1)](
            candidates,
            candidates,
            candidates,
            source,
            indices,
            values,
            n_chunks * k,
            k,
            candidates.stride(0),
            0,
            1,
            SIGNED=signed,
            HAS_ADDEND=False,
            WRITE_SUM=False,
            HAS_SOURCE=True,
            EMPTY_BITS=_EMPTY_BITS[u.dtype] if addend is None else 0,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return indices, values, total


@triton.jit
def _combine_kernel(
    matrix_ptr,
    indices_ptr,
    weights_ptr,
    out_ptr,
    k,
    n_columns,
    matrix_stride,
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
    tl.store(out_ptr + sample * n_columns + column, tl.sum(total, axis=0), mask=exists)


def combine(
    matrix: Float[torch.Tensor, "rows columns"],
    indices: Int[torch.Tensor, "batch k"],
    weights: Float[torch.Tensor, "batch k"],
) -> Float[torch.Tensor, "batch columns"]:
    """Weighted sums of rows of `matrix`, in float32."""
    (batch, k), n_columns = indices.shape, matrix.shape[1]
    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    out = torch.empty(batch, n_columns, dtype=torch.float32, device=matrix.device)
    columns = min(triton.next_power_of_2(n_columns), 256)
    grid = (batch, triton.cdiv(n_columns, columns))
    if out.numel():
        _combine_kernel[grid](
            matrix,
            indices.contiguous(),
            weights.contiguous(),
            out,
            k,
            n_columns,
            matrix.stride(0),
            ROWS=8,
            COLUMNS=columns,
            num_warps=2,
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
    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    x = x if x.stride(1) == 1 else x.contiguous()
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
            COLUMNS=min(triton.next_power_of_2(n_columns), 256),
            num_warps=4,
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
            out = out_ptr + current.to(tl.int64) * n_columns
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
    out = out_ptr + current.to(tl.int64) * n_columns
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
    # 32 bits: the sort makes a pass for every 8 of them
    row, entry = indices.reshape(-1).to(torch.int32).sort()
    columns = min(triton.next_power_of_2(n_columns), 256)
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
        HAS_MORE=more is not None,
        SEGMENT=_SEGMENT,
        COLUMNS=columns,
        num_warps=2,
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

    `matrix` and `matrix_grad` (float32) are contiguous and of one shape.
    """
    (batch, n_left), n_right = rows.shape, columns.shape[1]
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
            num_warps=4,
        )
    return out
