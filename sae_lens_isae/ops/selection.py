"""The k largest entries of a row: TopK, AbsTopK, and the supports on which aRIP looks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.backends import triton_serves
from sae_lens_isae.ops.compiling import not_compiled


class SelectedEntries(NamedTuple):
    """The chosen entries of every row, in no order."""

    indices: Int[torch.Tensor, "batch k"]
    values: Float[torch.Tensor, "batch k"]


@not_compiled
@torch.no_grad()
def select_largest(
    u: Float[torch.Tensor, "batch columns"],
    k: int,
    signed: bool,
) -> SelectedEntries:
    """Indices and values of the `k` largest entries per row.

    The Triton kernel takes the first of equal entries; `torch.topk`, elsewhere, any of them.

    Args:
        signed: Rank by magnitude (AbsTopK) instead of by value (TopK). Values keep their sign in
            either case: the ReLU of TopK is the caller's.

    Raises:
        InputError: k is not between 1 and the number of columns.
    """
    return _select(u, None, k, signed)[0]


@torch.no_grad()
def largest_among(ranked: SelectedEntries, k: int, signed: bool) -> SelectedEntries:
    """The `k` largest entries per row, where `ranked` are more of the largest.

    Raises:
        InputError: k is not between 1 and the number of them.
    """
    if ranked.indices.shape[1] == k:
        return ranked
    places, values = select_largest(ranked.values, k, signed)
    return SelectedEntries(ranked.indices.gather(-1, places), values)


@torch.no_grad()
def select_largest_of_sum(
    u: Float[torch.Tensor, "batch columns"],
    addend: Float[torch.Tensor, "batch columns"],
    k: int,
    signed: bool,
) -> tuple[SelectedEntries, Float[torch.Tensor, "batch columns"]]:
    """`select_largest` of u + addend, and that sum, in one pass over both."""
    selection, total = _select(u, addend, k, signed)
    assert total is not None
    return selection, total


def _select(
    u: torch.Tensor,
    addend: torch.Tensor | None,
    k: int,
    signed: bool,
) -> tuple[SelectedEntries, torch.Tensor | None]:
    n_columns = u.shape[-1]
    if not 1 <= k <= n_columns:
        raise InputError(f"k must be between 1 and the {n_columns} columns, got {k}")
    if triton_serves(u):
        from sae_lens_isae.ops import select_kernel

        if select_kernel.can_select(n_columns, k):
            indices, values, total = select_kernel.select(u, k, signed, addend)
            return SelectedEntries(indices, values.to(u.dtype)), total
    total = u if addend is None else u + addend
    ranked = total.abs() if signed else total
    indices = ranked.topk(k, dim=-1, sorted=False).indices
    return SelectedEntries(indices, total.gather(-1, indices)), total
