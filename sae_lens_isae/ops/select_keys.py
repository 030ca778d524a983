"""What the selection from short and from long rows has in common: numbers as integers in the order
of their values or magnitudes, the k-th largest of them, and the arguments of a launch."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float

_EMPTY_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
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


class Rows(NamedTuple):
    """What is selected from: u, or u + addend, which is to be stored."""

    u: Float[torch.Tensor, "batch columns"]
    addend: Float[torch.Tensor, "batch columns"] | None
    total: Float[torch.Tensor, "batch columns"] | None
    signed: bool

    @property
    def summands(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Kernels that have no addend do not read the second."""
        return self.u, self.u if self.addend is None else self.addend

    @property
    def stored(self) -> torch.Tensor:
        """Where the numbers are once a kernel has added them up."""
        return self.u if self.total is None else self.total

    @property
    def strides(self) -> tuple[int, int]:
        """Of the summands, from row to row."""
        return self.u.stride(0), 0 if self.addend is None else self.addend.stride(0)

    @property
    def order(self) -> dict[str, Any]:
        """Constants of `as_key`."""
        return {"SIGNED": self.signed, "EMPTY_BITS": _EMPTY_BITS[self.u.dtype]}


def warps(block: int) -> int:
    """Of a program that holds so many entries."""
    return max(1, min(8, block // 1024))
