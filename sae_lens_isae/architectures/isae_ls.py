"""iSAE-LS: a linear encoder chooses the latents, and least squares sets their coefficients.

With more candidates than k the encoder proposes latents, and the solution chooses among them.

At the optimum over the coefficients z the error's derivative by z is 0, so that its gradient by the
atoms is the one with z held fixed: the solution needs no gradient of its own. What the encoder
chooses is trained by the error of its own coefficients.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAEConfig
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import TrainStepInput
from typing_extensions import override

from sae_lens_isae.architectures.isae import ISAETrainingSAE
from sae_lens_isae.architectures.isae_config import ISAETrainingSAEConfig, check_candidates
from sae_lens_isae.architectures.least_squares import (
    SUFFIX,
    n_candidates,
    proposing,
    solved_code,
)
from sae_lens_isae.architectures.recipe import unit_norm_mse
from sae_lens_isae.errors import InputError
from sae_lens_isae.losses import StepContext, check_weight
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.least_squares import pruned_least_squares
from sae_lens_isae.ops.multistep import EncodedCodes
from sae_lens_isae.ops.selection import SelectedEntries, largest_among
from sae_lens_isae.ops.sparse import decode_codes, to_dense


@dataclass
class ISAELSTrainingSAEConfig(ISAETrainingSAEConfig):
    """Train iSAE-LS: the recipe of `isae` with coefficients by least squares.

    It is exported as `abstopk_ls` or `topk_ls`.
    """

    linear_loss_weight: float = 1.0
    """Weight of the error of the encoder's own coefficients, which trains the encoder."""
    linear_loss_reaches_atoms: bool = False
    """Whether that error trains the atoms and the bias, too."""
    solve_after_steps: int = 0
    """Training steps with the encoder's own coefficients, as `isae` has them, before they are
    solved for."""
    candidates: float = 1.0
    """The `candidates` * k latents that are largest in the encoder's code are solved for; the k
    with the largest coefficients stay, and are solved for again. At 1 the encoder alone decides on
    the support; more lowers the error, and seeds agree less on the support."""

    def __post_init__(self) -> None:
        check_weight(self, "linear_loss_weight")
        if self.linear_loss_weight == 0:
            raise InputError("linear_loss_weight must be > 0: nothing else trains the encoder")
        if self.solve_after_steps < 0:
            raise InputError(f"solve_after_steps must be >= 0, got {self.solve_after_steps}")
        check_candidates(self.candidates)
        super().__post_init__()

    @override
    @classmethod
    def architecture(cls) -> str:
        return "isae_ls"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return get_sae_class(self.activation + SUFFIX)[1]


class ISAELSTrainingSAE(ISAETrainingSAE):
    """Training SAE with coefficients by least squares."""

    cfg: ISAELSTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: ISAELSTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._solves = True

    @property
    @override
    def n_ranked(self) -> int:
        return max(n_candidates(self.cfg), super().n_ranked)

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_acts, hidden_pre = super().encode_with_hidden_pre(x)
        k = int(self.cfg.k)
        if n_candidates(self.cfg) > k:
            feature_acts = proposing(self.activation_fn, n_candidates(self.cfg))(hidden_pre)
        return solved_code(self, x, feature_acts, k), hidden_pre

    @override
    def encode_codes(
        self,
        centred: Float[torch.Tensor, "batch d_in"],
        dictionary: Float[torch.Tensor, "d_sae d_in"],
        bias: Float[torch.Tensor, " d_in"] | None = None,
    ) -> EncodedCodes:
        codes = super().encode_codes(centred, dictionary, bias)
        if not self._solves:
            return codes
        linear = proposed = SelectedEntries(codes.indices, codes.values)
        k = codes.indices.shape[1]
        n = n_candidates(self.cfg)
        if n > k:
            ranked = SelectedEntries(codes.ranked, codes.linear_pre.gather(-1, codes.ranked))
            proposed = largest_among(ranked, n, self.signed)
            if not self.signed:
                proposed = proposed._replace(values=proposed.values.relu())
        solved = pruned_least_squares(
            centred, dictionary, *proposed, k=k, keep_sign=not self.signed
        )
        return codes._replace(indices=solved.indices, values=solved.values, linear=linear)

    @override
    def code_losses(
        self,
        codes: EncodedCodes,
        dictionary: Float[torch.Tensor, "d_sae d_in"],
        centred: Float[torch.Tensor, "batch d_in"],
    ) -> dict[str, torch.Tensor]:
        if codes.linear is None:
            return {}
        bias = self.b_dec
        if not self.cfg.linear_loss_reaches_atoms:
            dictionary, bias = dictionary.detach(), bias.detach()
        recons = decode_codes(dictionary, *codes.linear) + bias
        loss = unit_norm_mse(recons, (centred + self.b_dec).detach())
        return {"linear_loss": self.cfg.linear_loss_weight * loss}

    @override
    def encode_again(self, ctx: StepContext) -> Float[torch.Tensor, "batch d_sae"]:
        # the encoder's own: the solved ones would give the self-consistency loss no gradient
        codes = super().encode_codes(self.process_sae_in(ctx.sae_out), ctx.dictionary)
        return to_dense(codes.indices, codes.values, self.cfg.d_sae)

    @override
    def replay_key(self) -> Hashable:
        return super().replay_key(), self._solves

    @override
    @not_compiled
    def begin_step(self, step_input: TrainStepInput) -> None:
        self._solves = self.n_steps >= self.cfg.solve_after_steps
        super().begin_step(step_input)
