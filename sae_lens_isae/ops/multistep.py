"""The multistep encoder (Nelson et al. 2026, section 3.4, after Gregor & LeCun 2010).

    u(i) = z(i-1) S + (x - b) W_enc,   z(i) = keep_k(u(i)),   z(0) = 0        (equation 10)

`multistep_encode` is that recursion in plain torch. `encode_codes`, and `encode_codes_tied` in
`multistep_tied.py`, are its forms for training, on codes held as indices and values. Their backward
pass touches supports only:
keep_k passes a gradient on its k entries alone, so dL/du(i) is k-sparse, dL/dz(i-1) is needed on
the k entries of z(i-1), and dL/dS has k^2 terms per sample and step.
"""

# pyright: reportIncompatibleMethodOverride=false
# torch leaves what `once_differentiable` returns without a signature.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch.autograd.function import once_differentiable

from sae_lens_isae.ops.backends import choose_form, triton_serves
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.selection import (
    SelectedEntries,
    largest_among,
    select_largest,
    select_largest_of_sum,
)
from sae_lens_isae.ops.sparse import (
    accumulate_rows,
    form_to_accumulate,
    product_dtype,
    stored_for_gathering,
    sum_rows,
    to_dense,
)

DenseCodes = Float[torch.Tensor, "... d_sae"]


def multistep_encode(
    linear_pre: DenseCodes,
    apply_step_matrix: Callable[[DenseCodes], DenseCodes],
    activation_fn: Callable[[DenseCodes], DenseCodes],
    n_steps: int,
    candidates: Bool[torch.Tensor, "... d_sae"] | None = None,
) -> tuple[DenseCodes, DenseCodes]:
    """Run the recursion for `n_steps` steps.

    Args:
        linear_pre: (x - b) W_enc.
        apply_step_matrix: z -> z S in the row-vector convention.
        activation_fn: TopK or AbsTopK.
        n_steps: T >= 1; one step is the linear encoder.
        candidates: The latents among which the steps after the first may choose; by default all.

    Returns:
        The codes z(T), and what the activation saw in the last step; where a latent is no
        candidate, `linear_pre`.
    """
    hidden_pre = linear_pre
    feature_acts = activation_fn(hidden_pre)
    for _ in range(n_steps - 1):
        hidden_pre = apply_step_matrix(feature_acts) + linear_pre
        if candidates is None:
            feature_acts = activation_fn(hidden_pre)
        else:
            feature_acts = activation_fn(torch.where(candidates, hidden_pre, 0.0))
            hidden_pre = torch.where(candidates, hidden_pre, linear_pre)
    return feature_acts, hidden_pre


class EncodedCodes(NamedTuple):
    """The result of one encoder pass; differentiable in everything but `indices`.

    A gradient that arrives at `values` stays on supports all the way; one that arrives at
    `linear_pre` or `hidden_pre` is dense and costs dense products.
    """

    indices: Int[torch.Tensor, "batch k"]
    values: Float[torch.Tensor, "batch k"]
    linear_pre: Float[torch.Tensor, "batch d_sae"]
    """(x - b) W_enc."""
    hidden_pre: Float[torch.Tensor, "batch d_sae"]
    """u(T), from which the last selection chose; `linear_pre` itself for one step."""
    ranked: Int[torch.Tensor, "batch n_ranked"]
    """Indices of the `n_ranked` largest entries of `hidden_pre`; of the code where none were asked
    for."""
    linear: SelectedEntries | None = None
    """What the encoder itself chose, and its values, where `values` were solved for."""


@not_compiled
def encode_codes(
    centred: Float[torch.Tensor, "batch d_in"],
    W_enc: Float[torch.Tensor, "d_in d_sae"],
    k: int,
    signed: bool,
    S: Float[torch.Tensor, "d_sae d_sae"] | None = None,
    n_steps: int = 1,
    n_ranked: int = 0,
    bias: Float[torch.Tensor, " d_in"] | None = None,
) -> EncodedCodes:
    """T steps with the step matrix S, or one step of the linear encoder. Honours autocast.

    Args:
        centred: x - b.
        k: Entries kept per sample, between 1 and d_sae.
        signed: AbsTopK; otherwise TopK with its ReLU.
        n_steps: T; more than one needs `S`.
        n_ranked: How many of the largest entries of u(T) to tell; k where it is less.
        bias: b, where x needs no gradient. It gets its own from sums over the batch, which are
            quicker than a gradient for every sample, and `centred` gets none.
    """
    dtype, n_ranked = product_dtype(W_enc), max(n_ranked, k)
    if bias is not None:
        centred = centred.detach()
    if S is None or n_steps == 1:
        outputs = _Encode.apply(centred, W_enc, bias, k, signed, n_ranked, dtype)
        indices, values, pre, ranked = outputs
        return EncodedCodes(indices, values, pre, pre, ranked)
    outputs = _EncodeWithStepMatrix.apply(
        centred, W_enc, bias, S, k, signed, n_steps, n_ranked, dtype
    )
    return EncodedCodes(*outputs)


def kept(values: torch.Tensor, signed: bool) -> torch.Tensor:
    """Selected values as codes: TopK's through its ReLU."""
    # values come back in float32 or more: everything after the encoder adds them up
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values if signed else values.relu()


def through_activation(
    grad: torch.Tensor | None, values: torch.Tensor, signed: bool
) -> torch.Tensor:
    """The gradient of what was selected: TopK's ReLU stops it where it clipped."""
    if grad is None:
        return torch.zeros_like(values)
    return grad if signed else grad * (values > 0)


def set_up(ctx: Any, signed: bool, *choices: torch.Tensor) -> None:
    """What the backward pass of every encoder needs.

    Args:
        choices: Outputs without a gradient: what was chosen.
    """
    ctx.signed = signed
    ctx.mark_non_differentiable(*choices)
    ctx.set_materialize_grads(False)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: torch.Tensor,
        W_enc: torch.Tensor,
        bias: torch.Tensor | None,  # noqa: ARG004
        k: int,
        signed: bool,
        n_ranked: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        centred, weight = centred.to(dtype), W_enc.to(dtype)
        linear_pre = centred @ weight
        ranked = select_largest(linear_pre, n_ranked, signed)
        indices, values = largest_among(ranked, k, signed)
        values = kept(values, signed)
        ctx.save_for_backward(centred, W_enc, weight, indices, values)
        set_up(ctx, signed, indices, ranked.indices)
        return indices, values, linear_pre, ranked.indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        _, values_grad, linear_grad, _ = grads
        centred, W_enc, weight, indices, values = ctx.saved_tensors
        sparse = through_activation(values_grad, values, ctx.signed)
        needed = ctx.needs_input_grad[:3]
        linear = _linear_grads(centred, W_enc, weight, indices, sparse, linear_grad, needed)
        return (*linear, None, None, None, None)


def _linear_grads(
    x: torch.Tensor,
    W_enc: torch.Tensor,
    weight: torch.Tensor,
    indices: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor | None,
    needed: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x, W_enc and b from that of x @ weight, which is sparse + dense.

    Args:
        x: Centred, in the dtype of products.
        weight: W_enc in that dtype.
    """
    d_sae = weight.shape[1]
    needs_x, needs_weight, needs_bias = needed
    x_grad = weight_grad = None
    bias_grad = _bias_grad(W_enc, indices, sparse, dense) if needs_bias else None
    if dense is not None or form_to_accumulate(d_sae, indices.shape[1], x) == "dense":
        total = to_dense(indices, sparse, d_sae)
        total = (total if dense is None else total + dense).to(x.dtype)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if needs_x:
            x_grad = (total @ weight.T).to(dtype)
        if needs_weight:
            weight_grad = (total.T @ x).to(dtype).T
        return x_grad, weight_grad, bias_grad
    if needs_x:
        rows = stored_for_gathering(weight.T.contiguous(), indices.shape[1])
        x_grad = sum_rows(rows, indices, sparse)
    if needs_weight:
        weight_grad = accumulate_rows(indices, sparse, x, d_sae).T
    return x_grad, weight_grad, bias_grad


def _bias_grad(
    W_enc: torch.Tensor, indices: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor | None
) -> torch.Tensor:
    """Gradient of b from that of (x - b) W_enc, which is sparse + dense."""
    by_latent = sparse.new_zeros(W_enc.shape[1])
    by_latent.index_add_(0, indices.flatten(), sparse.flatten())
    if dense is not None:
        by_latent += dense.sum(0, dtype=by_latent.dtype)
    return -(W_enc.to(by_latent.dtype) @ by_latent)


class _EncodeWithStepMatrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: torch.Tensor,
        W_enc: torch.Tensor,
        bias: torch.Tensor | None,  # noqa: ARG004
        S: torch.Tensor,
        k: int,
        signed: bool,
        n_steps: int,
        n_ranked: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        centred, weight = centred.to(dtype), W_enc.to(dtype)
        linear_pre = centred @ weight
        step_matrix = stored_for_gathering(S.to(dtype), k)
        indices, values = select_largest(linear_pre, k, signed)
        steps = [(indices, kept(values, signed))]
        hidden_pre, ranked = linear_pre, SelectedEntries(*steps[0])
        for step in range(2, n_steps + 1):
            fed_back = sum_rows(step_matrix, *steps[-1]).to(dtype)
            n = n_ranked if step == n_steps else k
            ranked, hidden_pre = select_largest_of_sum(fed_back, linear_pre, n, signed)
            indices, values = largest_among(ranked, k, signed)
            steps.append((indices, kept(values, signed)))
        flat = (t for step in steps for t in step)
        ctx.save_for_backward(centred, W_enc, weight, step_matrix, *flat)
        indices, values = steps[-1]
        set_up(ctx, signed, indices, ranked.indices)
        return indices, values, linear_pre, hidden_pre, ranked.indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        _, values_grad, linear_grad, hidden_grad, _ = grads
        centred, W_enc, weight, step_matrix, *flat = ctx.saved_tensors
        steps = list(zip(flat[::2], flat[1::2], strict=True))
        d_sae = weight.shape[1]
        dtype = torch.promote_types(step_matrix.dtype, torch.float32)
        step_grad = torch.zeros(d_sae, d_sae, dtype=dtype, device=weight.device)
        sparse = through_activation(values_grad, steps[-1][1], ctx.signed)
        touched, dense = [], hidden_grad
        for before, after in zip(steps[-2::-1], steps[:0:-1], strict=True):
            codes_grad = _through_step_matrix(
                step_matrix, step_grad, before, after[0], sparse, dense, weight.dtype
            )
            dense = None
            touched.append((after[0], sparse))
            sparse = through_activation(codes_grad, before[1], ctx.signed)
        touched.append((steps[0][0], sparse))
        all_indices = torch.cat([indices for indices, _ in touched], dim=-1)
        all_sparse = torch.cat([grad for _, grad in touched], dim=-1)
        if hidden_grad is not None:
            linear_grad = hidden_grad if linear_grad is None else linear_grad + hidden_grad
        needed = ctx.needs_input_grad[:3]
        linear = _linear_grads(centred, W_enc, weight, all_indices, all_sparse, linear_grad, needed)
        return (*linear, step_grad, None, None, None, None, None)


def _through_step_matrix(
    step_matrix: torch.Tensor,
    step_grad: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    after: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Gradient of z(i-1) on its support, from that of u(i) = z(i-1) S + ...; adds S's in place.

    Args:
        before: Indices and values of z(i-1).
        after: Support of z(i), on which `sparse` is the gradient of u(i).
        dense: A further gradient of u(i), on all its entries.
        dtype: In which dense products are taken.
    """
    indices, values = before
    d_sae = len(step_matrix)
    if dense is None and triton_serves(step_matrix, sparse):
        from sae_lens_isae.ops import product_kernels

        return product_kernels.multiply_block(
            step_matrix, step_grad, indices, values, after, sparse
        )
    if dense is not None or choose_form(d_sae, after.shape[1], step_matrix) == "dense":
        total = to_dense(after, sparse, d_sae)
        total = (total if dense is None else total + dense).to(dtype)
        codes = to_dense(indices, values, d_sae).to(dtype)
        step_grad += codes.T @ total
        return (total @ step_matrix.to(dtype).T).gather(-1, indices).to(sparse.dtype)
    flat = (indices[:, :, None] * d_sae + after[:, None, :]).flatten()
    terms = values[:, :, None] * sparse[:, None, :]
    step_grad.view(-1).index_add_(0, flat, terms.flatten().to(step_grad.dtype))
    block = step_matrix.reshape(-1)[flat].view(terms.shape).to(sparse.dtype)
    return (block * sparse[:, None, :]).sum(-1)
