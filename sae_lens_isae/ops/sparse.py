"""Products with k-sparse codes, held as indices and values.

Three of them make up everything: weighted sums of rows (decoding), inner products with chosen rows
(the decoder's gradient to the codes), and rank-one terms added to chosen rows (the gradient of the
matrix). The first two are each other's adjoint, so autograd needs nothing else.

Each comes as a dense product, as plain torch and as a Triton kernel (`backends.py`). Sums are
taken in float32 or more. The Triton form of `accumulate_rows` adds with atomics: where a row takes
terms from more than two programs its last bits vary from run to run.
"""

# pyright: reportIncompatibleMethodOverride=false
# torch leaves what `once_differentiable` returns without a signature.

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from sae_lens_isae.ops.backends import Form, choose_form
from sae_lens_isae.ops.compiling import not_compiled

Indices = Int[torch.Tensor, "batch k"]
Weights = Float[torch.Tensor, "batch k"]


def to_dense(indices: Indices, values: Weights, n_rows: int) -> Float[torch.Tensor, "batch rows"]:
    """Codes with their zeros; entries that share an index are added. Differentiable in `values`."""
    return values.new_zeros(len(values), n_rows).scatter_add_(-1, indices, values)


def dense_codes(codes: torch.Tensor) -> Float[torch.Tensor, "batch d_sae"]:
    """Codes as an ordinary tensor; SAELens' TopK can give sparse ones."""
    return codes.to_dense() if codes.is_sparse else codes


@torch.no_grad()
def sum_rows(
    matrix: Float[torch.Tensor, "rows columns"],
    indices: Indices,
    weights: Weights,
    minuend: Float[torch.Tensor, "batch columns"] | None = None,
) -> Float[torch.Tensor, "batch columns"]:
    """sum_j weights[b, j] matrix[indices[b, j]]: the product of a sparse and a dense matrix.

    Args:
        minuend: What the sums are to be subtracted from.
    """
    dtype = _sum_dtype(matrix)
    if indices.shape[1] == 0:
        sums = torch.zeros(len(indices), matrix.shape[1], dtype=dtype, device=matrix.device)
    elif (form := choose_form(len(matrix), indices.shape[1], matrix, weights)) == "triton":
        from sae_lens_isae.ops import product_kernels

        return product_kernels.combine(matrix, indices, weights, minuend)
    elif form == "dense":
        sums = (to_dense(indices, weights.to(matrix.dtype), len(matrix)) @ matrix).to(dtype)
    else:
        sums = _bags(matrix, indices, weights.to(matrix.dtype)).to(dtype)
    return sums if minuend is None else torch.sub(minuend, sums, out=sums)


@torch.no_grad()
def dot_rows(
    x: Float[torch.Tensor, "batch columns"],
    matrix: Float[torch.Tensor, "rows columns"],
    indices: Indices,
) -> Weights:
    """<x[b], matrix[indices[b, j]]> for every b and j."""
    if indices.shape[1] == 0:
        return torch.zeros(indices.shape, dtype=_sum_dtype(matrix), device=matrix.device)
    form = choose_form(len(matrix), indices.shape[1], matrix, x)
    if form == "triton":
        from sae_lens_isae.ops import product_kernels

        return product_kernels.dot(x, matrix, indices)
    dtype = _sum_dtype(matrix)
    x = x.to(matrix.dtype)
    if form == "dense":
        return (x @ matrix.T).gather(-1, indices).to(dtype)
    # the gradient of a bag's weights: nothing else in torch takes these products without copying
    # the rows
    with torch.enable_grad():
        weights = torch.zeros_like(indices, dtype=dtype, requires_grad=True)
        bags = _bags(matrix.detach().to(dtype), indices, weights)
    return torch.autograd.grad(bags, weights, x.to(dtype))[0]


@torch.no_grad()
def values_at(
    indices: Indices, values: Weights, at: Int[torch.Tensor, "batch n"], n_rows: int
) -> Float[torch.Tensor, "batch n"]:
    """Entries of codes over `n_rows` latents at other indices: 0 where none is kept."""
    if choose_form(n_rows, indices.shape[1], values) == "triton":
        from sae_lens_isae.ops import product_kernels

        return product_kernels.values_at(indices, values, at)
    return to_dense(indices, values, n_rows).gather(-1, at)


def form_to_accumulate(n_rows: int, k: int, *tensors: torch.Tensor) -> Form:
    """`choose_form` for `accumulate_rows`: its sort costs what products in half precision save."""
    half = tensors[0].is_cuda and tensors[0].element_size() < 4
    return choose_form(n_rows, k, *tensors, dense_below=250 if half else None)


@torch.no_grad()
def accumulate_rows(
    indices: Indices,
    weights: Weights,
    x: Float[torch.Tensor, "batch columns"],
    n_rows: int,
    more: tuple[Weights, Float[torch.Tensor, "batch columns"]] | None = None,
) -> Float[torch.Tensor, "rows columns"]:
    """A matrix whose row i sums weights[b, j] x[b] over all b, j with indices[b, j] = i.

    Args:
        more: Further weights and vectors on the same indices, to be added.
    """
    form = form_to_accumulate(n_rows, indices.shape[1], x, weights)
    if form == "triton":
        from sae_lens_isae.ops import product_kernels

        return product_kernels.accumulate(indices, weights, x, n_rows, more)
    if more is not None:
        indices = torch.cat([indices, indices])
        weights, x = torch.cat([weights, more[0]]), torch.cat([x, more[1]])
    dtype = _sum_dtype(x)
    weights = weights.to(x.dtype)
    if form == "dense":
        return (to_dense(indices, weights, n_rows).T @ x).to(dtype)
    # the other way round: every row of the result is a weighted sum of samples
    row, entry = indices.flatten().sort()
    starts = torch.searchsorted(row, torch.arange(n_rows, device=row.device))
    samples = entry // indices.shape[1]
    return embedding_bag(
        samples, x, starts, per_sample_weights=weights.flatten()[entry], mode="sum"
    ).to(dtype)


def _bags(matrix: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return embedding_bag(
        indices.contiguous(), matrix, per_sample_weights=weights.contiguous(), mode="sum"
    )


def _sum_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, matrix: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, dtype: Any
    ) -> torch.Tensor:
        rows = stored_for_gathering(matrix.to(dtype), indices.shape[1])
        ctx.save_for_backward(rows, indices, weights)
        ctx.dtypes = dtype, matrix.dtype, weights.dtype
        return sum_rows(rows, indices, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        matrix, indices, weights = ctx.saved_tensors
        dtype, matrix_dtype, weights_dtype = ctx.dtypes
        grad = grad.to(dtype)
        matrix_grad = weights_grad = None
        if ctx.needs_input_grad[0]:
            matrix_grad = accumulate_rows(indices, weights, grad, len(matrix)).to(matrix_dtype)
        if ctx.needs_input_grad[2]:
            weights_grad = dot_rows(grad, matrix, indices).to(weights_dtype)
        return matrix_grad, None, weights_grad, None


class _GramCodes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, matrix: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, dtype: Any
    ) -> torch.Tensor:
        rows = stored_for_gathering(matrix.to(dtype), indices.shape[1])
        combined = sum_rows(rows, indices, weights).to(dtype)
        ctx.save_for_backward(rows, indices, weights, combined)
        ctx.dtypes = dtype, matrix.dtype, weights.dtype
        return dot_rows(combined, rows, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        matrix, indices, weights, combined = ctx.saved_tensors
        dtype, matrix_dtype, weights_dtype = ctx.dtypes
        # G_S is symmetric: what the outputs' gradient does is what the inputs did
        back = sum_rows(matrix, indices, grad).to(dtype)
        matrix_grad = weights_grad = None
        if ctx.needs_input_grad[0]:
            matrix_grad = accumulate_rows(
                indices, weights, back, len(matrix), more=(grad, combined)
            ).to(matrix_dtype)
        if ctx.needs_input_grad[2]:
            weights_grad = dot_rows(back, matrix, indices).to(weights_dtype)
        return matrix_grad, None, weights_grad, None


def stored_for_gathering(
    matrix: Float[torch.Tensor, "rows columns"], k: int
) -> Float[torch.Tensor, "rows columns"]:
    """A copy of `matrix` as the kernels read it fastest, for `sum_rows` and `dot_rows`.

    Where TF32 products are allowed that is float16, which has TF32's ten bits of mantissa and half
    of the bytes. Its narrower range fits weights, not activations or gradients: those stay.
    """
    allowed = matrix.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    if allowed and choose_form(len(matrix), k, matrix) == "triton":
        return matrix.half()
    return matrix


def stored_by_latent(
    W_enc: Float[torch.Tensor, "d_in d_sae"],
) -> Float[torch.Tensor, "d_in d_sae"]:
    """The same matrix with the weights of a latent side by side in memory, where the backward pass
    gathers them and leaves their gradients."""
    return W_enc.T.contiguous().T


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which products with `tensor` are taken: autocast's, where it is on."""
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


@not_compiled
def decode_codes(
    matrix: Float[torch.Tensor, "rows columns"], indices: Indices, weights: Weights
) -> Float[torch.Tensor, "batch columns"]:
    """`sum_rows`, differentiable in `matrix` and `weights`; honours autocast."""
    out = _SumRows.apply(matrix, indices, weights, product_dtype(matrix))
    return cast(torch.Tensor, out)


@not_compiled
def gram_codes(
    matrix: Float[torch.Tensor, "rows columns"], indices: Indices, weights: Weights
) -> Weights:
    """G_S w for every sample, with G_S the Gram matrix of its rows of `matrix`.

    Differentiable in `matrix` and `weights`; honours autocast.
    """
    return cast(torch.Tensor, _GramCodes.apply(matrix, indices, weights, product_dtype(matrix)))
