"""How far the codes of two SAEs agree after matching: IoU of the supports and l2 of the codes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import bootstrap

from sae_lens_isae.identifiability.matching import DictionaryMatch

CONFIDENCE = 0.95
_N_RESAMPLES = 999
_N_BINS = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over activations with its bootstrap confidence interval (95%, percentile).

    The interval treats activations as independent draws; tokens of one text are not quite that.
    It is None for a single activation.
    """

    value: float
    low: float | None
    high: float | None

    def times(self, factor: float) -> Estimate:
        """The estimate in other units."""
        low, high = (None if x is None else factor * x for x in (self.low, self.high))
        return Estimate(factor * self.value, low, high)


@dataclass(frozen=True, kw_only=True)
class CodeAgreement:
    """How far the codes of two SAEs agree after matching."""

    iou: Estimate
    """Mean over samples of |S & S'| / |S | S'| of the supports; 1 where both are empty."""
    l2: Estimate
    """Mean over samples of |z - Pi z'|, over the mean code norm of both SAEs: 0 for equal codes,
    sqrt(2) for codes of equal norm that share nothing."""
    n_samples: int
    iou_histogram: list[int] = field(repr=False)
    """Number of samples in each of 20 equal bins of IoU from 0 to 1."""

    @property
    def l2_paper(self) -> Estimate:
        """l2 / sqrt(2), from 0 to 1 for codes of equal norm that share nothing.

        The paper says 'normalized by the mean norm', but its values fit this scale alone: an IoU of
        0.113 with an l2 of 0.882 is impossible on the other.
        """
        return self.l2.times(1 / math.sqrt(2))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {**asdict(self), "l2_paper": asdict(self.l2_paper)}


class CodeComparison:
    """IoU, distance and norm of every sample: what the means and their bootstrap need."""

    def __init__(self, match: DictionaryMatch) -> None:
        self._match = match
        self._iou: list[torch.Tensor] = []
        self._distance: list[torch.Tensor] = []
        self._norm: list[torch.Tensor] = []

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """Compare a batch of codes of both SAEs."""
        b = b.to(a.device)
        index_a, index_b = self._match.index_a.to(a.device), self._match.index_b.to(a.device)
        paired_a = a[:, index_a]
        paired_b = b[:, index_b] * self._match.sign.to(a.device)
        both = ((paired_a != 0) & (paired_b != 0)).sum(-1)
        either = (a != 0).sum(-1) + (b != 0).sum(-1) - both
        self._iou.append(torch.where(either > 0, both / either.clamp_min(1), 1.0).cpu())
        distance = (paired_a - paired_b).square().sum(-1)
        # latents without partner are compared with nothing
        for codes, index in ((a, index_a), (b, index_b)):
            if len(index) < codes.shape[1]:
                distance = distance + codes.index_fill(1, index, 0).square().sum(-1)
        self._distance.append(distance.sqrt().cpu())
        self._norm.append((a.norm(dim=-1) + b.norm(dim=-1)).cpu() / 2)

    def means(self) -> tuple[float, float] | None:
        """IoU and l2; None if no codes came."""
        if not self._iou:
            return None
        iou, distance, norm = self._samples()
        return float(_mean(iou)), float(_mean_ratio(distance, norm))

    def agreement(self, rng: np.random.Generator) -> CodeAgreement | None:
        """Means and intervals; None if no codes came."""
        if not self._iou:
            return None
        iou, distance, norm = self._samples()
        return CodeAgreement(
            iou=_estimate((iou,), _mean, rng),
            l2=_estimate((distance, norm), _mean_ratio, rng),
            n_samples=len(iou),
            iou_histogram=np.histogram(iou, bins=_N_BINS, range=(0, 1))[0].tolist(),
        )

    def _samples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """IoU, distance and norm of every sample."""
        iou, distance, norm = (
            torch.cat(values).double().numpy() for values in (self._iou, self._distance, self._norm)
        )
        return iou, distance, norm


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis)


def _mean_ratio(distance: np.ndarray, norm: np.ndarray, axis: int = -1) -> np.ndarray:
    total = norm.mean(axis)
    return np.where(total > 0, distance.mean(axis) / np.where(total > 0, total, 1), 0.0)


def _estimate(data: tuple[np.ndarray, ...], statistic: Any, rng: np.random.Generator) -> Estimate:
    value = float(statistic(*data))
    n = len(data[0])
    if n < 2:
        return Estimate(value, None, None)
    interval = bootstrap(
        data,
        statistic,
        n_resamples=_N_RESAMPLES,
        batch=max(1, 2**24 // n),
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
