"""The Triton kernels behind `accumulate_rows` of `sparse.py`, and how they are launched.

Written in plain language features, so that all of them run under Triton's interpreter on a CPU,
where the tests compare them with float64. Sums are in float32.
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

from sae_lens_isae.ops.product_kernels import columns_per_program

_SEGMENT = 32
"""Entries that one program of `_accumulate_kernel` adds up: long lists of one latent are shared
among programs, so that a latent that fires on every sample does not hold up the others."""
_LARGEST_HALF = tl.constexpr(32768.0)
"""What the largest entry of a row is scaled to, for float16."""
_LEAST_SCALE = tl.constexpr(1e-37)


@triton.jit
def _term(
    position,
    last,
    row_ptr,
    entry_ptr,
    weights_ptr,
    x_ptr,
    more_weights_ptr,
    more_x_ptr,
    k,
    n_columns,
    exists,
    HAS_MORE: tl.constexpr,
):
    """The row of one entry and what is to be added to it; nothing past the last."""
    at = tl.minimum(position, last)
    row = tl.load(row_ptr + at)
    entry = tl.load(entry_ptr + at)
    place = (entry.to(tl.int32) // k).to(tl.int64) * n_columns
    weight = tl.load(weights_ptr + entry, mask=position <= last, other=0.0).to(tl.float32)
    term = weight * tl.load(x_ptr + place, mask=exists, other=0.0).to(tl.float32)
    if HAS_MORE:
        weight = tl.load(more_weights_ptr + entry, mask=position <= last, other=0.0)
        x = tl.load(more_x_ptr + place, mask=exists, other=0.0)
        term += weight.to(tl.float32) * x.to(tl.float32)
    return row, term


@triton.jit
def _add(total, current, row, term, out_ptr, n_columns, exists, FIRST: tl.constexpr):
    """The sum of the current row with one more term; that of another row is written first."""
    if row != current:
        place = (current.to(tl.int64) - FIRST) * n_columns
        tl.atomic_add(out_ptr + place, total, mask=exists, sem="relaxed")
        total = tl.zeros_like(total)
        current = row
    return total + term, current


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
    x_ptr += column
    more_x_ptr += column
    out_ptr += column
    last = tl.minimum(start + SEGMENT, n_entries) - 1
    total = tl.zeros((COLUMNS,), tl.float32)
    current = tl.load(row_ptr + start)
    # four entries are under way at a time, because each is a chain of reads
    for i in range(start, last + 1, 4):
        row_0, term_0 = _term(
            i,
            last,
            row_ptr,
            entry_ptr,
            weights_ptr,
            x_ptr,
            more_weights_ptr,
            more_x_ptr,
            k,
            n_columns,
            exists,
            HAS_MORE,
        )
        row_1, term_1 = _term(
            i + 1,
            last,
            row_ptr,
            entry_ptr,
            weights_ptr,
            x_ptr,
            more_weights_ptr,
            more_x_ptr,
            k,
            n_columns,
            exists,
            HAS_MORE,
        )
        row_2, term_2 = _term(
            i + 2,
            last,
            row_ptr,
            entry_ptr,
            weights_ptr,
            x_ptr,
            more_weights_ptr,
            more_x_ptr,
            k,
            n_columns,
            exists,
            HAS_MORE,
        )
        row_3, term_3 = _term(
            i + 3,
            last,
            row_ptr,
            entry_ptr,
            weights_ptr,
            x_ptr,
            more_weights_ptr,
            more_x_ptr,
            k,
            n_columns,
            exists,
            HAS_MORE,
        )
        total, current = _add(total, current, row_0, term_0, out_ptr, n_columns, exists, FIRST)
        total, current = _add(total, current, row_1, term_1, out_ptr, n_columns, exists, FIRST)
        total, current = _add(total, current, row_2, term_2, out_ptr, n_columns, exists, FIRST)
        total, current = _add(total, current, row_3, term_3, out_ptr, n_columns, exists, FIRST)
    place = (current.to(tl.int64) - FIRST) * n_columns
    tl.atomic_add(out_ptr + place, total, mask=exists, sem="relaxed")


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
    columns = columns_per_program(n_columns)
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
        num_warps=2,
    )
    return out


@triton.jit
def _scale_kernel(
    x_ptr, weights_ptr, x_out_ptr, weights_out_ptr, k, n_columns, COLUMNS: tl.constexpr
):
    sample = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, n_columns, COLUMNS):
        column = start + place
        x = tl.load(x_ptr + sample * n_columns + column, mask=column < n_columns, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    scale = tl.maximum(tl.max(largest, axis=0) / _LARGEST_HALF, _LEAST_SCALE)
    for start in range(0, n_columns, COLUMNS):
        column = start + place
        x = tl.load(x_ptr + sample * n_columns + column, mask=column < n_columns, other=0.0)
        tl.store(x_out_ptr + sample * n_columns + column, x / scale, mask=column < n_columns)
    for start in range(0, k, COLUMNS):
        slot = start + place
        weight = tl.load(weights_ptr + sample * k + slot, mask=slot < k, other=0.0)
        tl.store(weights_out_ptr + sample * k + slot, weight.to(tl.float32) * scale, mask=slot < k)


def scaled_to_half(
    weights: Float[torch.Tensor, "batch k"], x: Float[torch.Tensor, "batch columns"]
) -> tuple[Float[torch.Tensor, "batch k"], Float[torch.Tensor, "batch columns"]]:
    """The same products of weights and x, with x in float16 and each of its rows scaled to fit."""
    (batch, k), n_columns = weights.shape, x.shape[1]
    halves = torch.empty_like(x, dtype=torch.float16, memory_format=torch.contiguous_format)
    scaled = torch.empty(weights.shape, dtype=torch.float32, device=weights.device)
    if batch:
        _scale_kernel[(batch,)](
            x.contiguous(),
            weights.contiguous(),
            halves,
            scaled,
            k,
            n_columns,
            COLUMNS=min(triton.next_power_of_2(max(n_columns, 1)), 1024),
        )
    return scaled, halves
