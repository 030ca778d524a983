"""The approximate restricted isometry property (Nelson et al. 2026, section 3.3).

`arip_estimate` is the regulariser, `gram_eigenvalues` the exact measurement. On a support S,

    R_aRIP(S) = sum_i (lambda_i - 1)^2 / |S| = tr(G_S^2) / |S| - 1        (equation 6)

with G_S the Gram matrix of the unit-norm atoms in S, and the aRIP constant on S is
delta_S = max_i |lambda_i - 1|.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from sae_lens import TrainingSAEConfig
from sae_lens.saes.abstopk_sae import AbsTopK
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitTrainingSAEConfig
from typing_extensions import override

from sae_lens_isae.distributed import averaged, n_ranks, rank
from sae_lens_isae.errors import InputError
from sae_lens_isae.losses.terms import (
    LossTerm,
    LossTermsMixin,
    Metric,
    StepContext,
    check_weight,
)
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.lagging import LaggingCopies
from sae_lens_isae.ops.selection import SelectedEntries, largest_among, select_largest
from sae_lens_isae.ops.sparse import dense_codes, gram_codes

_L0_RATE = 0.01
"""Share of the newest batch in the running L0."""
_N_MEASURED = 64
"""Supports measured exactly on a logging step: eigenvalues of 64 small matrices cost little."""


def arip_estimate(
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    supports: Int[torch.Tensor, "batch size"],
    noise: Float[torch.Tensor, "batch size"],
) -> Float[torch.Tensor, ""]:
    """Unbiased one-sample estimate of the mean R_aRIP over `supports` (equation 7).

    E |D_S^T D_S n|^2 = tr(G_S^2) for standard normal n, so |D_S^T D_S n|^2 / |S| - 1 has
    expectation R_aRIP(S). Differentiable in `dictionary`.

    Args:
        dictionary: Atoms with unit norm.
        supports: Indices of the atoms in S, distinct in each row.
        noise: Standard normal, independent of the rest.
    """
    return gram_codes(dictionary, supports, noise).pow(2).mean() - 1


def sae_supports(
    ctx: StepContext, size: int, n_samples: int | None = None
) -> Int[torch.Tensor, "samples size"]:
    """Indices of the `size` largest pre-activations: S of equation 7 where `size` is 2k.

    They are ranked as the SAE's own activation function ranks them, so S holds the code's support.
    Where that is no matter of rank (thresholds, gates), active latents come first.
    """
    signed = isinstance(ctx.sae.activation_fn, AbsTopK)
    hidden_pre = ctx.hidden_pre.detach()[:n_samples]
    if ctx.ranked is not None:
        ranked = ctx.ranked[:n_samples]
        if ranked.shape[1] == size:
            return ranked
        entries = SelectedEntries(ranked, hidden_pre.gather(-1, ranked))
        return largest_among(entries, size, signed).indices
    if getattr(ctx.sae.cfg, "k", None) is None:
        # into (-1, 1) without a change of order, and active ones above
        hidden_pre = hidden_pre.float() / (1 + hidden_pre.abs())
        hidden_pre = hidden_pre + 2 * (ctx.feature_acts[:n_samples] != 0)
    return select_largest(hidden_pre, size, signed).indices


@torch.no_grad()
def gram_eigenvalues(
    dictionary: Float[torch.Tensor, "d_sae d_in"], supports: Int[torch.Tensor, "batch size"]
) -> Float[torch.Tensor, "batch size"]:
    """Eigenvalues of the Gram matrix of the atoms in each support, ascending, in float32 or more.

    Args:
        dictionary: Atoms; they are normalised here.
        supports: Indices of the atoms, distinct in each row.
    """
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    atoms = torch.nn.functional.normalize(dictionary.to(dtype), dim=-1)[supports]
    return torch.linalg.eigvalsh(atoms @ atoms.mT)


def r_arip(eigenvalues: Float[torch.Tensor, "batch size"]) -> Float[torch.Tensor, " batch"]:
    """R_aRIP(S) of every support, from the eigenvalues of its Gram matrix (equation 6)."""
    return (eigenvalues - 1).pow(2).mean(-1)


def arip_delta(eigenvalues: Float[torch.Tensor, "batch size"]) -> Float[torch.Tensor, " batch"]:
    """The aRIP constant delta_S of every support (Definition 3.3)."""
    return (eigenvalues - 1).abs().amax(-1)


@dataclass(kw_only=True)
class ARIPConfig(TrainingSAEConfig):
    """Fields of the aRIP term, inherited by every config that can carry loss terms."""

    arip_weight: float = 0.0
    """Weight of the approximate-RIP regulariser; 0 switches it off, the paper uses 0.1."""
    arip_seed: int = 0
    """Seeds the regulariser's noise, together with the training step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self, "arip_weight")
        if self.arip_weight > 0:
            _check_support(self)


def _check_support(cfg: TrainingSAEConfig) -> None:
    if isinstance(cfg, MatchingPursuitTrainingSAEConfig):
        raise InputError(
            "arip_weight: matching pursuit picks one latent after the other and has no "
            "pre-activations to say which further latents nearly acted; set arip_weight to 0"
        )
    k = getattr(cfg, "k", None)
    if k is not None and round(2 * k) > cfg.d_sae:
        raise InputError(f"k: aRIP looks at 2k atoms, but 2 * {k} exceeds d_sae = {cfg.d_sae}")


class ARIPLoss(LossTerm):
    """The aRIP regulariser as a loss term: `arip_weight` times the estimate of R_aRIP.

    Supports have 2k latents; without a k, twice the running mean of L0.
    """

    name = "arip_loss"
    running_l0: torch.Tensor

    def __init__(self, weight: float, k: float | None, d_sae: int, seed: int) -> None:
        super().__init__()
        self.weight = weight
        """May change between steps."""
        self.seed = seed
        self.k = k
        self.d_sae = d_sae
        if k is None:
            self.register_buffer("running_l0", torch.zeros(()))
        self._l0 = 0.0
        self._copies_of_l0 = LaggingCopies()

    @override
    @classmethod
    def from_config(cls, cfg: TrainingSAEConfig) -> LossTerm | None:
        if not isinstance(cfg, ARIPConfig) or cfg.arip_weight == 0:
            return None
        k = getattr(cfg, "k", None)
        return cls(cfg.arip_weight, k, cfg.d_sae, cfg.arip_seed)

    @property
    def size(self) -> int:
        """|S| of the present step."""
        k = self._l0 if self.k is None else self.k
        return min(max(round(2 * k), 2), self.d_sae)

    @property
    @override
    def n_ranked(self) -> int:
        return self.size

    @override
    @torch.no_grad()
    def prepare(self, sae: LossTermsMixin, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        if self.k is None:
            if self.running_l0 == 0:
                self.running_l0.copy_(_mean_l0(sae.encode(sae_in)))
            self._l0 = float(self.running_l0)

    @override
    def inputs(self, step: int, batch_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Normal noise that depends on seed and step only, so that a resumed run draws the same,
        and the weight."""
        for _, l0 in self._copies_of_l0.pop():
            self._l0 = float(l0)
        # mixed by two odd constants into 32 bits: the CPU's generator ignores the bits above
        key = (self.seed * 0x9E3779B1 + step * 0x85EBCA77) % 2**32
        generator = torch.Generator(device).manual_seed(key)
        # every rank draws that of the whole batch and takes its share
        shape = (n_ranks() * batch_size, self.size)
        noise = torch.randn(shape, generator=generator, device=device)
        of_rank = noise[rank() * batch_size :][:batch_size]
        return of_rank, torch.full((), self.weight, device=device)

    @override
    def forward(self, ctx: StepContext, *inputs: torch.Tensor) -> Float[torch.Tensor, ""]:
        noise, weight = inputs
        if self.k is None:
            self._follow_l0(ctx.feature_acts)
        supports = sae_supports(ctx, noise.shape[1])
        estimate = arip_estimate(ctx.dictionary, supports, noise.to(ctx.dictionary.dtype))
        return weight * estimate

    @not_compiled
    @torch.no_grad()
    def _follow_l0(self, feature_acts: Float[torch.Tensor, "batch d_sae"]) -> None:
        self.running_l0.lerp_(averaged(_mean_l0(feature_acts)), _L0_RATE)
        self._copies_of_l0.push(0, self.running_l0)

    @override
    def metrics(self, ctx: StepContext) -> dict[str, Metric]:
        supports = sae_supports(ctx, self.size, _N_MEASURED)
        measurement = ARIPMeasurement(ctx.dictionary.detach(), supports)
        return {
            "arip_support_size": self.size,
            "r_arip": measurement.r_arip,
            "arip_delta_median": lambda: measurement.delta_quantile(0.5),
            "arip_delta_p95": lambda: measurement.delta_quantile(0.95),
            "arip_delta_max": lambda: measurement.delta_quantile(1.0),
        }


def _mean_l0(feature_acts: torch.Tensor) -> Float[torch.Tensor, ""]:
    return (dense_codes(feature_acts) != 0).float().sum(-1).mean()


class ARIPMeasurement:
    """Exact aRIP statistics of a dictionary on given supports, computed when first asked for."""

    def __init__(
        self,
        dictionary: Float[torch.Tensor, "d_sae d_in"],
        supports: Int[torch.Tensor, "batch size"],
    ) -> None:
        self._dictionary = dictionary
        self._supports = supports

    @cached_property
    def eigenvalues(self) -> Float[torch.Tensor, "batch size"]:
        """Gram eigenvalues of every support."""
        return gram_eigenvalues(self._dictionary, self._supports)

    def r_arip(self) -> Float[torch.Tensor, ""]:
        """Mean R_aRIP over the supports: the R_S column of the paper's tables."""
        return r_arip(self.eigenvalues).mean()

    def delta_quantile(self, q: float) -> Float[torch.Tensor, ""]:
        """Quantile of the aRIP constant over the supports; 1.0 is the worst support."""
        return torch.quantile(arip_delta(self.eigenvalues), q)
