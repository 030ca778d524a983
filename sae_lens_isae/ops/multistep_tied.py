"""The multistep encoder of `multistep.py` with the tied step matrix S = I - D W_enc, for training.

Its steps are u = z + (x - b - z D) W_enc. Where the steps after the first may choose among
candidates only, their products are those of the candidates, and none of them is dense.
"""

# pyright: reportIncompatibleMethodOverride=false
# torch leaves what `once_differentiable` returns without a signature.

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch.autograd.function import once_differentiable

from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.multistep import (
    EncodedCodes,
    encode_codes,
    kept,
    set_up,
    through_activation,
)
from sae_lens_isae.ops.selection import SelectedEntries, largest_among, select_largest
from sae_lens_isae.ops.sparse import (
    accumulate_rows,
    dot_rows,
    product_dtype,
    stored_for_gathering,
    sum_rows,
    values_at,
)


@not_compiled
def encode_codes_tied(
    centred: Float[torch.Tensor, "batch d_in"],
    W_enc: Float[torch.Tensor, "d_in d_sae"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int,
    signed: bool,
    n_steps: int,
    n_candidates: int | None = None,
    n_ranked: int = 0,
) -> EncodedCodes:
    """T steps with S = I - D W_enc. Honours autocast.

    Args:
        centred: x - b.
        dictionary: D, the atoms with unit norm.
        n_candidates: The steps after the first choose among so many of its largest entries, at
            least k; by default among all.
        n_ranked: How many of the largest entries of u(T) to tell, k where it is less; by default
            those of the code.
    """
    if n_steps == 1:
        return encode_codes(centred, W_enc, k, signed, n_ranked=n_ranked)
    outputs = _EncodeTied.apply(
        centred,
        W_enc,
        dictionary,
        k,
        signed,
        n_steps,
        n_candidates,
        n_ranked,
        product_dtype(W_enc),
    )
    return EncodedCodes(*outputs)


class _EncodeTied(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centred: torch.Tensor,
        W_enc: torch.Tensor,
        dictionary: torch.Tensor,
        k: int,
        signed: bool,
        n_steps: int,
        n_candidates: int | None,
        n_ranked: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        weight, atoms = W_enc.to(dtype), stored_for_gathering(dictionary.to(dtype), k)
        residual = centred.to(dtype)
        linear_pre = residual @ weight
        if n_candidates is None:
            candidates = None
            choose = _AmongAll(weight, linear_pre, k, signed)
        else:
            candidates, among = select_largest(linear_pre, n_candidates, signed)
            choose = _AmongCandidates(weight, candidates, among, k, signed)
        steps = [(residual, choose.indices, choose.values)]
        for step in range(2, n_steps + 1):
            residual = sum_rows(atoms, choose.indices, choose.values, minuend=centred).to(dtype)
            choose.again(residual, max(n_ranked, k) if step == n_steps else k)
            steps.append((residual, choose.indices, choose.values))
        hidden_pre = choose.hidden_pre(linear_pre)
        flat = (t for step in steps for t in step)
        ctx.save_for_backward(weight, atoms, candidates, *flat)
        ranked = choose.ranked(hidden_pre, n_ranked)
        set_up(ctx, signed, choose.indices, ranked)
        return choose.indices, choose.values, linear_pre, hidden_pre, ranked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        _, values_grad, linear_grad, hidden_grad, _ = grads
        weight, atoms, candidates, *flat = ctx.saved_tensors
        if hidden_grad is not None and candidates is not None:
            # elsewhere `hidden_pre` is `linear_pre`
            of_candidates = hidden_grad.gather(-1, candidates)
            elsewhere = hidden_grad.scatter(-1, candidates, 0.0)
            linear_grad = elsewhere if linear_grad is None else linear_grad + elsewhere
            hidden_grad = torch.zeros_like(hidden_grad).scatter(-1, candidates, of_candidates)
        steps = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        d_sae = len(atoms)
        rows = weight.T.contiguous()
        gathered = stored_for_gathering(rows, steps[0][1].shape[1])
        sparse = through_activation(values_grad, steps[-1][2], ctx.signed)
        sparse_grads, residual_grads, dense = [sparse], [], hidden_grad
        for (_, old, old_values), (_, new, _) in zip(steps[-2::-1], steps[:0:-1], strict=True):
            residual_grad = sum_rows(gathered, new, sparse)
            codes_grad = values_at(new, sparse, old, d_sae)
            if dense is not None:
                residual_grad = residual_grad + dense @ rows
                codes_grad = codes_grad + dense.gather(-1, old)
                dense = None
            codes_grad = codes_grad - dot_rows(residual_grad.to(weight.dtype), atoms, old)
            residual_grads.append(residual_grad)
            sparse = through_activation(codes_grad, old_values, ctx.signed)
            sparse_grads.append(sparse)
        residual_grads.append(sum_rows(gathered, steps[0][1], sparse))
        residuals, indices, values = (torch.cat(each) for each in zip(*steps, strict=True))
        weight_grad = accumulate_rows(indices, torch.cat(sparse_grads[::-1]), residuals, d_sae).T
        by_step = torch.stack(residual_grads[::-1])
        centred_grad = by_step.sum(0)
        n_fed_back = len(indices) - len(steps[0][1])
        dictionary_grad = accumulate_rows(
            indices[:n_fed_back],
            -values[:n_fed_back],
            by_step[1:].flatten(0, 1).to(weight.dtype),
            d_sae,
        )
        for dense, residual in ((linear_grad, steps[0][0]), (hidden_grad, steps[-1][0])):
            if dense is not None:
                weight_grad = weight_grad + residual.T @ dense
        if linear_grad is not None:
            centred_grad += linear_grad @ rows
        return centred_grad, weight_grad, dictionary_grad, *([None] * 6)


class _AmongAll:
    """Chooses among all latents."""

    def __init__(self, weight: torch.Tensor, pre: torch.Tensor, k: int, signed: bool) -> None:
        self._weight, self._k, self._signed = weight, k, signed
        self._choose(pre, select_largest(pre, k, signed))

    def again(self, residual: torch.Tensor, n_ranked: int) -> None:
        """One more step."""
        pre = residual @ self._weight
        pre.scatter_add_(-1, self.indices, self.values.to(pre.dtype))
        self._choose(pre, select_largest(pre, n_ranked, self._signed))

    def hidden_pre(self, linear_pre: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """What was chosen from, latent by latent."""
        return self._pre

    def ranked(self, hidden_pre: torch.Tensor, n_ranked: int) -> torch.Tensor:  # noqa: ARG002
        """The `n_ranked` largest of that."""
        return self._ranked

    def _choose(self, pre: torch.Tensor, ranked: SelectedEntries) -> None:
        self._pre, self._ranked = pre, ranked.indices
        self.indices, values = largest_among(ranked, self._k, self._signed)
        self.values = kept(values, self._signed)


class _AmongCandidates:
    """Chooses among some latents for each sample.

    Args:
        among: Of the first step, candidate by candidate.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        candidates: torch.Tensor,
        among: torch.Tensor,
        k: int,
        signed: bool,
    ) -> None:
        self._rows = stored_for_gathering(weight.T.contiguous(), candidates.shape[1])
        self._candidates, self._k, self._signed = candidates, k, signed
        self._choose(among)

    def again(self, residual: torch.Tensor, n_ranked: int) -> None:  # noqa: ARG002
        """One more step."""
        among = dot_rows(residual, self._rows, self._candidates)
        self._choose(among.scatter_add_(-1, self._places, self.values.to(among.dtype)))

    def hidden_pre(self, linear_pre: torch.Tensor) -> torch.Tensor:
        """What was chosen from, latent by latent; `linear_pre` where one is no candidate."""
        return linear_pre.scatter(-1, self._candidates, self._among.to(linear_pre.dtype))

    def ranked(self, hidden_pre: torch.Tensor, n_ranked: int) -> torch.Tensor:
        """The `n_ranked` largest of that, be they candidates or not."""
        if n_ranked == 0:
            return self.indices
        return select_largest(hidden_pre, max(n_ranked, self._k), self._signed).indices

    def _choose(self, among: torch.Tensor) -> None:
        self._among = among
        self._places, values = select_largest(among, self._k, self._signed)
        self.indices = self._candidates.gather(-1, self._places)
        self.values = kept(values, self._signed)
