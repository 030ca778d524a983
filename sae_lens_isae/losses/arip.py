"""The approximate restricted isometry property (paper 1, section 3.3).

`arip_estimate` is the regulariser, `gram_eigenvalues` the exact measurement. On a support S,

    R_aRIP(S) = sum_i (lambda_i - 1)^2 / |S| = tr(G_S^2) / |S| - 1        (equation 6)

with G_S the Gram matrix of the unit-norm atoms in S, and the aRIP constant on S is
delta_S = max_i |lambda_i - 1|.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.saes.abstopk_sae import AbsTopK
from typing_extensions import override

from sae_lens_isae.losses.terms import LossTerm, Metric, StepContext
from sae_lens_isae.ops.selection import select_largest
from sae_lens_isae.ops.sparse import gram_codes

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
    sae: TrainingSAE[Any], hidden_pre: Float[torch.Tensor, "batch d_sae"], size: int
) -> Int[torch.Tensor, "batch size"]:
    """Indices of the `size` largest pre-activations: S of equation 7 where `size` is 2k.

    They are ranked as the SAE's own activation function ranks them, so S holds the code's support.
    """
    signed = isinstance(sae.activation_fn, AbsTopK)
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
        if not (math.isfinite(self.arip_weight) and self.arip_weight >= 0):
            raise ValueError(f"arip_weight must be a number >= 0, got {self.arip_weight}")
        if self.arip_weight > 0:
            support_size(self)


def support_size(cfg: TrainingSAEConfig) -> int:
    """2k, the number of atoms on which aRIP is enforced.

    Raises:
        ValueError: The architecture has no k, or 2k exceeds d_sae.
    """
    k = getattr(cfg, "k", None)
    if k is None:
        raise ValueError(
            f"arip_weight: architecture {cfg.architecture()!r} has no k, so aRIP has no support "
            "size; set arip_weight to 0 or take an architecture with k"
        )
    size = round(2 * k)
    if size > cfg.d_sae:
        raise ValueError(f"k: aRIP looks at 2k atoms, but 2 * {k} exceeds d_sae = {cfg.d_sae}")
    return size


class ARIP(LossTerm):
    """The aRIP regulariser as a loss term: `arip_weight` times the estimate of R_aRIP."""

    name = "arip_loss"

    def __init__(self, weight: float, size: int, seed: int) -> None:
        super().__init__()
        self.weight = weight
        self.size = size
        self.seed = seed

    @override
    @classmethod
    def from_config(cls, cfg: TrainingSAEConfig) -> LossTerm | None:
        if not isinstance(cfg, ARIPConfig) or cfg.arip_weight == 0:
            return None
        return cls(weight=cfg.arip_weight, size=support_size(cfg), seed=cfg.arip_seed)

    @override
    def inputs(self, step: int, batch_size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Normal noise that depends on seed and step only, so that a resumed run draws the same."""
        # mixed by two odd constants into 32 bits: the CPU's generator ignores the bits above
        key = (self.seed * 0x9E3779B1 + step * 0x85EBCA77) % 2**32
        generator = torch.Generator(device).manual_seed(key)
        return (torch.randn(batch_size, self.size, generator=generator, device=device),)

    @override
    def forward(self, ctx: StepContext, *inputs: torch.Tensor) -> Float[torch.Tensor, ""]:
        (noise,) = inputs
        supports = sae_supports(ctx.sae, ctx.hidden_pre.detach(), self.size)
        estimate = arip_estimate(ctx.dictionary, supports, noise.to(ctx.dictionary.dtype))
        return self.weight * estimate

    @override
    def metrics(self, ctx: StepContext) -> dict[str, Metric]:
        hidden_pre = ctx.hidden_pre.detach()[:_N_MEASURED]
        supports = sae_supports(ctx.sae, hidden_pre, self.size)
        measurement = ARIPMeasurement(ctx.dictionary.detach(), supports)
        return {
            "r_arip": measurement.r_arip,
            "arip_delta_median": lambda: measurement.delta_quantile(0.5),
            "arip_delta_p95": lambda: measurement.delta_quantile(0.95),
            "arip_delta_max": lambda: measurement.delta_quantile(1.0),
        }


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
