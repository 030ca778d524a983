"""Numbers as integers in the order of their values or magnitudes, and the k-th largest of them:
what both kinds of selection kernels need."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl

EMPTY_BITS_OF = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Bits that are 0 in every number of a type, once it is stored as float32."""
LOWEST = tl.constexpr(-0x80000000)
"""Below the key of any number."""


@triton.jit
def as_key(u, SIGNED: tl.constexpr, EMPTY_BITS: tl.constexpr):
    """Integers in the order of the numbers, or of their magnitudes."""
    bits = u.to(tl.int32, bitcast=True)
    if SIGNED:  # noqa: SIM108
        key = bits & 0x7FFFFFFF
    else:
        # the order of floats as an order of integers: negative ones count downwards
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key >> EMPTY_BITS


@triton.jit
def load(u_ptr, addend_ptr, column, exists, HAS_ADDEND: tl.constexpr):
    """Entries of u, or of u + addend as it is stored."""
    u = tl.load(u_ptr + column, mask=exists, other=0.0).to(tl.float32)
    if HAS_ADDEND:
        addend = tl.load(addend_ptr + column, mask=exists, other=0.0).to(tl.float32)
        u = (u + addend).to(u_ptr.dtype.element_ty).to(tl.float32)
    return u


@triton.jit
def kth_largest(key, k, EMPTY_BITS: tl.constexpr):
    """The largest threshold that at least k keys reach, or a lower one that exactly k reach; the
    lowest key where there are fewer.

    Down from the largest key in growing strides, the first of which halves the magnitude; then
    bisection of the last stride.
    """
    least = tl.full((), LOWEST, tl.int64)
    high = tl.max(key, axis=0).to(tl.int64) + 1
    stride = tl.full((), 1 << 23, tl.int64) >> EMPTY_BITS
    low = tl.maximum(high - stride, least)
    n_reached = tl.sum((key >= low.to(tl.int32)).to(tl.int32), axis=0)
    while (n_reached < k) & (low > least):
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
