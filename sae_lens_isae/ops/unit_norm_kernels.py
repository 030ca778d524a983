"""The Triton kernels behind `unit_norm.py`: each reads a row once.

Written in plain language features, so that they run under Triton's interpreter on a CPU, where the
tests compare them with float64. Sums are in float32.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# The kernels are in Triton's language, whose parameters have no Python types, and Triton itself is
# optional.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float

_PER_PROGRAM = 4096
"""Entries that a program holds at least: several short rows, or one long one."""


@triton.jit
def _project_kernel(weight_ptr, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    place = row[:, None] * n_columns + column[None, :]
    exists = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    weight = tl.load(weight_ptr + place, mask=exists, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(weight * weight, axis=1))
    weight = weight / tl.where(norm > 0.0, norm, 1.0)[:, None]
    tl.store(weight_ptr + place, weight, mask=exists)


@triton.jit
def _tangent_kernel(
    grad_ptr, rows_ptr, out_ptr, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    place = row[:, None] * n_columns + column[None, :]
    exists = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    grad = tl.load(grad_ptr + place, mask=exists, other=0.0).to(tl.float32)
    atoms = tl.load(rows_ptr + place, mask=exists, other=0.0).to(tl.float32)
    along = tl.sum(grad * atoms, axis=1)
    tl.store(out_ptr + place, grad - along[:, None] * atoms, mask=exists)


def _blocks(n_columns: int) -> tuple[int, int]:
    columns = triton.next_power_of_2(n_columns)
    return max(1, _PER_PROGRAM // columns), columns


def project(weight: Float[torch.Tensor, "rows columns"]) -> None:
    """Scale every row to unit norm, in place; a row of zeros stays one."""
    n_rows, n_columns = weight.shape
    rows, columns = _blocks(n_columns)
    if weight.numel():
        _project_kernel[(triton.cdiv(n_rows, rows),)](
            weight, n_rows, n_columns, ROWS=rows, COLUMNS=columns
        )


def tangent_part(
    grad: Float[torch.Tensor, "rows columns"], rows: Float[torch.Tensor, "rows columns"]
) -> Float[torch.Tensor, "rows columns"]:
    """Every gradient without its part along its row, which has unit norm."""
    out = torch.empty_like(grad)
    n_rows, n_columns = grad.shape
    per_program, columns = _blocks(n_columns)
    if grad.numel():
        _tangent_kernel[(triton.cdiv(n_rows, per_program),)](
            grad, rows, out, n_rows, n_columns, ROWS=per_program, COLUMNS=columns
        )
    return out
