"""The Triton kernel behind `selection.py`, and how it is launched.

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
from jaxtyping import Float, Int

CHUNK = 4096
"""Longest piece of a row that one program of `_select_kernel` holds in registers."""
_EMPTY_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
_LOWEST = tl.constexpr(-0x80000000)
_MAX_CANDIDATES = 16_384


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
) -> tuple[
    Int[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch columns"] | None,
]:
    """The `k` largest of u + addend per row, by magnitude or value; of equal ones the first.

    Rows longer than CHUNK are cut: the k largest of the pieces' k largest are those of the row.

    Returns:
        Indices (unsorted), values (in float32) and, where there is an addend, the sum.
    """
    batch, n_columns = u.shape
    u = u if u.stride(-1) == 1 else u.contiguous()
    total = None
    if addend is not None:
        addend = addend.contiguous()
        total = torch.empty_like(u, memory_format=torch.contiguous_format)
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
            HAS_SOURCE=True,
            EMPTY_BITS=_EMPTY_BITS[u.dtype] if addend is None else 0,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return indices, values, total
