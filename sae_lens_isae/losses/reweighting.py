"""WSAE: a reconstruction loss that weighs the dimensions of the activations (Cui et al. 2025,
section 4).

    L_WSAE = E |Gamma (x - x_hat)|^2,    Gamma = diag(s^alpha)

with s_j large where dimension j is monosemantic: its variance (language models) or its semantic
consistency (with labels). Scaled so that the mean of gamma^2 is 1: other losses keep their weight.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from sae_lens import TrainingSAEConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from typing_extensions import override

from sae_lens_isae.distributed import joined, n_ranks
from sae_lens_isae.errors import InputError
from sae_lens_isae.losses.terms import LossTerm, LossTermsMixin, Metric, StepContext

Statistic = Literal["variance", "semantic_consistency"]

_STATISTICS = ("variance", "semantic_consistency")
_LARGEST_ALPHA = 2.0


@dataclass(kw_only=True)
class ReweightingConfig(TrainingSAEConfig):
    """Fields of WSAE reweighting, inherited by every config that can carry loss terms."""

    wsae_alpha: float = 0.0
    """Exponent of the weights of WSAE; 0 weighs all dimensions alike, the paper uses 0.5 and 1."""
    wsae_statistic: Statistic = "variance"
    """What the weights are a power of: 'variance', from running statistics, or
    'semantic_consistency', from `wsae_labelled_activations`."""
    wsae_labelled_activations: str | None = None
    """A safetensors file with `activations` [samples, d_in] and integer `labels` [samples]; read
    at the first training step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = self.wsae_alpha
        if not (math.isfinite(alpha) and 0 <= alpha <= _LARGEST_ALPHA):
            raise InputError(f"wsae_alpha must be between 0 and {_LARGEST_ALPHA:g}, got {alpha}")
        if self.wsae_statistic not in _STATISTICS:
            raise InputError(
                f"wsae_statistic must be one of {list(_STATISTICS)}, got {self.wsae_statistic!r}"
            )
        if alpha > 0 and self.normalize_activations == "covariance_whitening":
            raise InputError(
                "wsae_alpha > 0 does nothing on whitened activations: all their dimensions have "
                "the same variance, and none is a dimension of the model. Set wsae_alpha to 0 or "
                "another normalize_activations"
            )
        if alpha > 0 and (self.wsae_statistic == "semantic_consistency") == (
            self.wsae_labelled_activations is None
        ):
            raise InputError(
                "wsae_labelled_activations must name a file for "
                "wsae_statistic='semantic_consistency', and only for it"
            )


def semantic_consistency(
    activations: Float[torch.Tensor, "samples d_in"], labels: Int[torch.Tensor, " samples"]
) -> Float[torch.Tensor, " d_in"]:
    """Of the samples that activate a dimension (x_j > 0), the share with its most frequent label.

    Raises:
        InputError: Shapes do not match, labels are no integers, values are not finite, or a
            dimension is never active.
    """
    if activations.ndim != 2 or labels.shape != activations.shape[:1] or not len(labels):
        raise InputError(
            f"labels of shape {tuple(labels.shape)} do not match activations of shape "
            f"{tuple(activations.shape)}: one label for each sample is needed"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels must be integers, got {labels.dtype}")
    if not activations.isfinite().all():
        raise InputError("the labelled activations hold NaN or Inf")
    active = (activations > 0).float()
    _, classes = labels.unique(return_inverse=True)
    counts = active.new_zeros(int(classes.max()) + 1, activations.shape[1])
    counts.index_add_(0, classes, active)
    total = counts.sum(0)
    if (total == 0).any():
        raise InputError(
            f"semantic consistency is not defined for dimensions {_named(total == 0)}: no labelled "
            "sample is positive there"
        )
    return counts.amax(0) / total


def squared_weights(
    statistic: Float[torch.Tensor, "*models d_in"], alpha: float
) -> Float[torch.Tensor, "*models d_in"]:
    """The diagonal of Gamma^2 for Gamma = diag(statistic^alpha), scaled to a mean of 1."""
    power = (statistic / statistic.amax(-1, keepdim=True)) ** (2 * alpha)
    return power / power.mean(-1, keepdim=True)


class ReweightingLoss(LossTerm):
    """What WSAE adds to the unweighted loss, so that `mse_loss` stays comparable: the sum of the
    two is L_WSAE. The inner losses of `matryoshka_batchtopk` and the gate's reconstruction loss of
    `gated` stay unweighted."""

    name = "wsae_loss"
    mean: torch.Tensor
    statistic: torch.Tensor
    n_samples: torch.Tensor

    def __init__(self, d_in: int, alpha: float, labelled: str | None) -> None:
        super().__init__()
        self.alpha = alpha
        self.labelled = labelled
        self.register_buffer("n_samples", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("statistic", torch.zeros(d_in))

    @override
    @classmethod
    def from_config(cls, cfg: TrainingSAEConfig) -> LossTerm | None:
        if not isinstance(cfg, ReweightingConfig) or cfg.wsae_alpha == 0:
            return None
        return cls(cfg.d_in, cfg.wsae_alpha, cfg.wsae_labelled_activations)

    @override
    @torch.no_grad()
    def prepare(self, sae: LossTermsMixin, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        if self.labelled is not None:
            # a resumed run has it, and need not find the file again
            if not self.statistic.any():
                self.statistic.copy_(_consistency_of_file(self.labelled, sae.cfg.d_in))
            return
        constant = (sae_in.float().var(dim=0, correction=0) == 0) & (self.statistic == 0)
        if constant.any():
            raise InputError(
                f"wsae_alpha: the activations have zero variance on dimensions {_named(constant)}, "
                "so these would get no weight; leave those dimensions out or set wsae_alpha to 0"
            )

    @override
    def forward(self, ctx: StepContext, *inputs: torch.Tensor) -> Float[torch.Tensor, ""]:
        sae_in = ctx.sae_in
        squared = (ctx.sae_out - sae_in).pow(2) * ctx.sae.sample_weights(sae_in)
        return ((self.squared_weights() - 1) * squared).sum(-1).mean()

    @override
    def metrics(self, ctx: StepContext) -> dict[str, Metric]:
        sae_in, weights = ctx.sae_in, self.squared_weights()
        squared = (ctx.sae_out.detach() - sae_in).pow(2) * ctx.sae.sample_weights(sae_in)
        return {
            "wsae_weighted_mse": (weights * squared).sum(-1).mean(),
            "wsae_largest_weight": weights.max().sqrt(),
            "wsae_smallest_weight": weights.min().sqrt(),
        }

    def squared_weights(self) -> Float[torch.Tensor, " d_in"]:
        """gamma^2 of every dimension; their mean is 1."""
        return squared_weights(self.statistic, self.alpha)

    @override
    @torch.no_grad()
    def observe(self, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        if self.labelled is not None:
            return
        variance, mean = _variance_and_mean(sae_in.float())
        n_new = len(sae_in) * n_ranks()
        self.n_samples.add_(n_new)
        share = n_new / self.n_samples
        shift = mean - self.mean
        self.mean.add_(share * shift)
        self.statistic.lerp_(variance + (1 - share) * shift.pow(2), share)


def _variance_and_mean(
    batch: Float[torch.Tensor, "batch d_in"],
) -> tuple[Float[torch.Tensor, " d_in"], Float[torch.Tensor, " d_in"]]:
    """Of the batches of all ranks, which are of one size."""
    variance, mean = torch.var_mean(batch, dim=0, correction=0)
    if n_ranks() == 1:
        return variance, mean
    variances, means = joined(torch.stack([variance, mean])[None]).unbind(1)
    return variances.mean(0) + means.var(0, correction=0), means.mean(0)


def _consistency_of_file(file: str, d_in: int) -> Float[torch.Tensor, " d_in"]:
    try:
        data: dict[str, Any] = load_file(Path(file))
    except (OSError, SafetensorError) as error:
        raise InputError(f"wsae_labelled_activations: cannot read {file}: {error}") from error
    missing = {"activations", "labels"} - data.keys()
    if missing:
        raise InputError(f"wsae_labelled_activations: {file} lacks {sorted(missing)}")
    if data["activations"].shape[1:] != (d_in,):
        raise InputError(
            f"wsae_labelled_activations: activations of {file} have shape "
            f"{tuple(data['activations'].shape)}, but d_in is {d_in}"
        )
    try:
        return semantic_consistency(data["activations"], data["labels"])
    except InputError as error:
        raise InputError(f"wsae_labelled_activations: {file}: {error}") from error


def _named(which: torch.Tensor) -> str:
    dimensions = which.nonzero().flatten().tolist()
    shown = ", ".join(map(str, dimensions[:5]))
    return f"{shown} and {len(dimensions) - 5} more" if len(dimensions) > 5 else shown
