"""The columns of the paper's Table 1 for one variant trained with several seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE

from sae_lens_isae.architectures.recipe import unit_norm_mse
from sae_lens_isae.identifiability.pairwise import PairwiseIdentifiability, pairwise_identifiability
from sae_lens_isae.losses.arip import ARIPMeasurement, sae_supports

_N_ARIP_SAMPLES = 1024
_N_ORACLE_SAMPLES = 1024


@dataclass(frozen=True)
class TableRow:
    """One row of Table 1: means over the seeds (first two) and over all pairs of seeds."""

    variant: str
    n_seeds: int
    mse: float
    """Mean |x - x_hat|^2 / |x|^2."""
    r_arip: float
    """Mean R_aRIP over the 2k largest pre-activations of each sample."""
    sae_iou: float
    sae_l2: float
    oracle_iou: float
    oracle_l2: float
    dcs: float

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)


@torch.no_grad()
def table_row(
    variant: str, saes: list[TrainingSAE[Any]], activations: Float[torch.Tensor, "samples d_in"]
) -> tuple[TableRow, list[PairwiseIdentifiability]]:
    """Measure one variant on held-out activations.

    Args:
        saes: The same config trained with two or more seeds.

    Returns:
        The row, and the comparison of every pair (with the SAEs' own encoders).
    """
    for sae in saes:
        sae.eval()
    pairs = list(combinations(saes, 2))
    own = [pairwise_identifiability(a, b, activations) for a, b in pairs]
    oracle = [
        pairwise_identifiability(a, b, activations[:_N_ORACLE_SAMPLES], oracle_k=a.cfg.k)
        for a, b in pairs
    ]
    row = TableRow(
        variant=variant,
        n_seeds=len(saes),
        mse=mean(unit_norm_mse(sae(activations), activations).item() for sae in saes),
        r_arip=mean(_r_arip(sae, activations[:_N_ARIP_SAMPLES]) for sae in saes),
        sae_iou=mean(p.iou for p in own),
        sae_l2=mean(p.l2 for p in own),
        oracle_iou=mean(p.iou for p in oracle),
        oracle_l2=mean(p.l2 for p in oracle),
        dcs=mean(p.dcs for p in own),
    )
    return row, own


def _r_arip(sae: TrainingSAE[Any], activations: Float[torch.Tensor, "samples d_in"]) -> float:
    _, hidden_pre = sae.encode_with_hidden_pre(activations)
    supports = sae_supports(sae, hidden_pre, 2 * sae.cfg.k)
    return ARIPMeasurement(sae.W_dec, supports).r_arip().item()
