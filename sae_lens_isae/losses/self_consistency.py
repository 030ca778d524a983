"""Latent self-consistency ('Latent Recovery', section 4).

One more decode-encode pass moves a code x_m to x_t = F(x_m), with F(z) = encode(decode(z))
(equation 24). How far it moves, over the Lipschitz constant of F, is a lower bound on the error of
the code (Theorem 2), and

    L_cert = E |x_t - x_m|^2        (equation 25)

is the term. On TopK-like codes only the coordinates in the support of x_m count: the others would
penalise that a support may switch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import TrainingSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAEConfig
from typing_extensions import override

from sae_lens_isae.errors import InputError
from sae_lens_isae.losses.terms import LossTerm, Metric, StepContext, check_weight


@dataclass(kw_only=True)
class SelfConsistencyConfig(TrainingSAEConfig):
    """Fields of the self-consistency term, inherited by every config that can carry loss terms."""

    self_consistency_weight: float = 0.0
    """Weight of latent self-consistency; 0 switches it off. 'Latent Recovery' uses 10 with ReLU and
    an L1 penalty of 10, and 0.5 with TopK."""
    self_consistency_warm_up_start: int = 600
    """Training step until which the weight stays 0."""
    self_consistency_warm_up_end: int = 1200
    """Training step from which on the weight is the full one; it grows linearly in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self, "self_consistency_weight")
        start, end = self.self_consistency_warm_up_start, self.self_consistency_warm_up_end
        if not 0 <= start <= end:
            raise InputError(
                "self_consistency_warm_up_start must be >= 0 and not come after "
                f"self_consistency_warm_up_end, got {start} and {end}"
            )
        if self.self_consistency_weight > 0 and self.normalize_activations in (
            "constant_norm_rescale",
            "layer_norm",
        ):
            raise InputError(
                "self_consistency_weight: with normalize_activations="
                f"{self.normalize_activations!r} a reconstruction is normalised again before it is "
                "encoded, so codes before and after are not in the same units; take "
                "'expected_average_only_in' or 'none'"
            )


class SelfConsistencyLoss(LossTerm):
    """`self_consistency_weight` times L_cert, with delayed linear warm-up.

    Codes are compared in units of unit-norm atoms: otherwise the term could be lowered by moving
    scale from the codes to the decoder.
    """

    name = "self_consistency_loss"

    def __init__(self, weight: float, start: int, end: int, in_support: bool) -> None:
        super().__init__()
        self.weight = weight
        self.start = start
        self.end = end
        self.in_support = in_support

    @override
    @classmethod
    def from_config(cls, cfg: TrainingSAEConfig) -> LossTerm | None:
        if not isinstance(cfg, SelfConsistencyConfig) or cfg.self_consistency_weight == 0:
            return None
        return cls(
            weight=cfg.self_consistency_weight,
            start=cfg.self_consistency_warm_up_start,
            end=cfg.self_consistency_warm_up_end,
            in_support=hasattr(cfg, "k") or isinstance(cfg, MatchingPursuitTrainingSAEConfig),
        )

    def weight_at(self, step: int) -> float:
        """The weight at a training step: 0, then linear, then full ('Latent Recovery', appendix
        D)."""
        if step >= self.end:
            return self.weight
        if step <= self.start:
            return 0.0
        return self.weight * (step - self.start) / (self.end - self.start)

    @override
    def inputs(self, step: int, batch_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        return (torch.full((), self.weight_at(step), device=device),)

    @override
    def forward(self, ctx: StepContext, *inputs: torch.Tensor) -> Float[torch.Tensor, ""]:
        (weight,) = inputs
        moved = self._moved(ctx, ctx.sae.encode_again(ctx)).pow(2).sum(-1, keepdim=True)
        return weight * (moved * ctx.sae.sample_weights(ctx.sae_in)).mean()

    @override
    @torch.no_grad()
    def metrics(self, ctx: StepContext) -> dict[str, Metric]:
        again = ctx.sae.encode_again(ctx)
        norm = (ctx.feature_acts * ctx.sae.code_scale()).norm(dim=-1)
        moved = self._moved(ctx, again).norm(dim=-1)
        active = ctx.feature_acts != 0
        n_active = active.sum().clamp_min(1)
        has_code = norm > 0
        return {
            "self_consistency_weight": self.weight_at(ctx.sae.n_steps),
            "self_consistency_residual": (moved[has_code] / norm[has_code]).mean(),
            "self_consistency_kept": (active & (again != 0)).sum() / n_active,
        }

    def _moved(
        self, ctx: StepContext, again: Float[torch.Tensor, "batch d_sae"]
    ) -> Float[torch.Tensor, "batch d_sae"]:
        """x_t - x_m in units of unit-norm atoms, on the coordinates that count."""
        difference = (again - ctx.feature_acts) * ctx.sae.code_scale()
        return difference * (ctx.feature_acts != 0) if self.in_support else difference
