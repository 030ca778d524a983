"""How something measured per sample or per support is distributed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float


@dataclass(frozen=True)
class Distribution:
    """Mean, quantiles and maximum of something measured per sample or per support."""

    mean: float
    median: float
    p95: float
    p99: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Float[torch.Tensor, " n"]) -> Distribution:
        """Of one value or more."""
        # torch.quantile refuses more than 2^24 values
        found = values.double().cpu().numpy()
        median, p95, p99 = (float(q) for q in np.quantile(found, (0.5, 0.95, 0.99)))
        return cls(
            mean=float(found.mean()),
            median=median,
            p95=p95,
            p99=p99,
            max=float(found.max()),
            n=len(found),
        )


@dataclass(frozen=True)
class Conditioning:
    """The aRIP constant delta_S and R_aRIP over supports of one kind."""

    delta: Distribution
    r_arip: float
    """Mean R_aRIP(S) (equation 6)."""
    share_below: dict[str, float]
    """Share of the supports with delta_S below each of `RIP_THRESHOLDS`."""
    deltas: list[float] = field(repr=False)
