"""Atoms with unit norm: how a decoder's weights are projected, and their gradient along that."""

# pyright: reportIncompatibleMethodOverride=false
# torch leaves what `once_differentiable` returns without a signature.

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch.autograd.function import once_differentiable

from sae_lens_isae.ops.backends import triton_serves
from sae_lens_isae.ops.compiling import not_compiled


@not_compiled
def unit_norm_rows(
    weight: Float[torch.Tensor, "rows columns"],
) -> Float[torch.Tensor, "rows columns"]:
    """Scale every row to unit norm, in place, and return the rows for use in a loss.

    Their gradient is that of w / |w|: it has no part along a row, which the next projection would
    undo. A row of zeros stays one.
    """
    return cast(torch.Tensor, _UnitNormRows.apply(_projected(weight)))


@torch.no_grad()
def _projected(weight: torch.Tensor) -> torch.Tensor:
    if weight.is_contiguous() and triton_serves(weight):
        from sae_lens_isae.ops import unit_norm_kernels

        unit_norm_kernels.project(weight)
    else:
        weight.div_(weight.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny))
    return weight


class _UnitNormRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,) = grads
        (rows,) = ctx.saved_tensors
        if grad.is_contiguous() and rows.is_contiguous() and triton_serves(grad, rows):
            from sae_lens_isae.ops import unit_norm_kernels

            return unit_norm_kernels.tangent_part(grad, rows)
        return torch.addcmul(grad, (grad * rows).sum(-1, keepdim=True), rows, value=-1)
