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
_LONG, _FIRST = 8, 2
"""A row of so many pieces is bounded by its first ones."""


@triton.jit
def _as_key(u, SIGNED: tl.constexpr, EMPTY_BITS: tl.constexpr):
    """Integers in the order of the numbers, or of their magnitudes."""
    bits = u.to(tl.int32, bitcast=True)
    if SIGNED:  # noqa: SIM108
        key = bits & 0x7FFFFFFF
    else:
        # the order of floats as an order of integers: negative ones count downwards
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # bits that are 0 in every number of a narrow type
    return key >> EMPTY_BITS


@triton.jit
def _kth_largest(key, k, lowest, n_reached, EMPTY_BITS: tl.constexpr):
    """The largest threshold that at least k keys reach, or a lower one that exactly k reach; or
    `lowest`, which `n_reached` keys reach, where these are no more than k.

    Down from the largest key in growing strides, the first of which halves the magnitude; then
    bisection of the last stride.
    """
    least = lowest.to(tl.int64)
    low = least
    high = least
    if n_reached > k:
        high = tl.max(key, axis=0).to(tl.int64) + 1
        stride = tl.full((), 1 << 23, tl.int64) >> EMPTY_BITS
        low = tl.maximum(high - stride, least)
        n_reached = tl.sum((key >= low.to(tl.int32)).to(tl.int32), axis=0)
        while n_reached < k:
            high = low
            stride = stride * 4
            low = tl.maximum(low - stride, least)
            n_reached = tl.sum((key >= low.to(tl.int32)).to(tl.int32), axis=0)
    while (low + 1 < high) & (n_reached > k):
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
    bound_ptr,
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
    HAS_BOUND: tl.constexpr,
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
    key = tl.where(exists, _as_key(u, SIGNED, EMPTY_BITS), _LOWEST)
    lowest = tl.full((), _LOWEST, tl.int32)
    n_reached = tl.full((), BLOCK, tl.int32)
    if HAS_BOUND:
        bound = tl.load(bound_ptr + row).to(tl.float32)
        # -0 is below 0 here, but may be what 0 was the minimum of; a NaN bounds nothing
        bound_key = _as_key(bound, SIGNED, EMPTY_BITS) - (bound == 0.0).to(tl.int32)
        lowest = tl.where(bound == bound, bound_key, lowest)  # noqa: PLR0124
        n_reached = tl.sum((key >= lowest).to(tl.int32), axis=0)
    threshold = _kth_largest(key, k, lowest, n_reached, EMPTY_BITS)
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


def _least(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """What the k-th largest entry of a row reaches at least, by any k entries of the row."""
    return (values.abs() if signed else values).amin(-1)


def _launch(
    u: torch.Tensor,
    k: int,
    signed: bool,
    empty_bits: int,
    *,
    addend: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of every piece of every row, or of the whole row where they have a
    `source`; an index of -1 where a piece has fewer above the bound."""
    batch, n_columns = u.shape
    block = triton.next_power_of_2(n_columns)
    if source is None:
        block = min(block, CHUNK)
    n_chunks = triton.cdiv(n_columns, block)
    indices = torch.full((batch, n_chunks * k), -1, dtype=torch.int64, device=u.device)
    values = torch.empty(batch, n_chunks * k, dtype=torch.float32, device=u.device)
    _select_kernel[(batch, n_chunks)](
        u,
        u if addend is None else addend,
        u if total is None else total,
        u if source is None else source,
        u if bound is None else bound,
        indices,
        values,
        n_columns,
        k,
        u.stride(0),
        0 if addend is None else addend.stride(0),
        n_chunks,
        SIGNED=signed,
        HAS_ADDEND=addend is not None,
        HAS_SOURCE=source is not None,
        HAS_BOUND=bound is not None,
        EMPTY_BITS=empty_bits,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return indices, values


def select(
    u: Float[torch.Tensor, "batch columns"],
    k: int,
    signed: bool,
    addend: Float[torch.Tensor, "batch columns"] | None = None,
    near: Int[torch.Tensor, "batch near"] | None = None,
) -> tuple[
    Int[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch k"],
    Float[torch.Tensor, "batch columns"] | None,
]:
    """The `k` largest of u + addend per row, by magnitude or value; of equal ones the first.

    Rows longer than CHUNK are cut: the k largest of the pieces' k largest are those of the row. A
    bound on the row's k-th largest saves most pieces the search for their own: it comes from the
    entries `near`, or from the first pieces of a long row.

    Returns:
        Indices (unsorted), values (in float32) and, where there is an addend, the sum.
    """
    batch, n_columns = u.shape
    u = u if u.stride(-1) == 1 else u.contiguous()
    total = None
    if addend is not None:
        addend = addend.contiguous()
        total = torch.empty_like(u, memory_format=torch.contiguous_format)
    if batch == 0:
        indices = torch.empty(0, k, dtype=torch.int64, device=u.device)
        return indices, indices.float(), total
    n_chunks = triton.cdiv(n_columns, CHUNK)
    bound = None
    if addend is None and n_chunks > 1:
        if near is not None:
            bound = _least(u.gather(-1, near), signed)
        elif n_chunks >= _LONG:
            bound = _least(select(u[:, : _FIRST * CHUNK], k, signed)[1], signed)
    # sums have all bits
    empty_bits = _EMPTY_BITS[u.dtype] if addend is None else 0
    indices, values = _launch(u, k, signed, empty_bits, addend=addend, total=total, bound=bound)
    if n_chunks > 1:
        indices, values = _launch(values, k, signed, empty_bits, source=indices)
    return indices, values, total
