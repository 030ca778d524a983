"""The columns of the paper's Table 1 for one variant trained with several seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from sae_lens_isae.identifiability.pairwise import PairwiseReport


@dataclass(frozen=True)
class TableRow:
    """One row of Table 1: means over the seeds (first two) and over all pairs of seeds."""

    variant: str
    n_seeds: int
    mse: float
    """Mean |x - x_hat|^2 / |x|^2."""
    r_arip: float | None
    """Mean R_aRIP over the 2k largest pre-activations of each sample."""
    sae_iou: float
    sae_l2: float
    """Mean |z - Pi z'| over the mean norm."""
    sae_l2_paper: float
    """l2 / sqrt(2), the scale that the paper's values fit."""
    oracle_iou: float | None
    oracle_l2: float | None
    oracle_l2_paper: float | None
    dcs: float

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)


def table_row(variant: str, report: PairwiseReport) -> TableRow:
    """Summarise a comparison of seeds; a column that some SAE or pair lacks is None."""
    oracles = [pair.oracle for pair in report.pairs if pair.oracle is not None]
    complete = len(oracles) == len(report.pairs)
    r_arip = [sae.r_arip for sae in report.saes if sae.r_arip is not None]
    return TableRow(
        variant=variant,
        n_seeds=len(report.saes),
        mse=mean(sae.mse for sae in report.saes),
        r_arip=mean(r_arip) if len(r_arip) == len(report.saes) else None,
        sae_iou=mean(pair.sae.iou.value for pair in report.pairs),
        sae_l2=mean(pair.sae.l2.value for pair in report.pairs),
        sae_l2_paper=mean(pair.sae.l2_paper.value for pair in report.pairs),
        oracle_iou=mean(o.iou.value for o in oracles) if complete else None,
        oracle_l2=mean(o.l2.value for o in oracles) if complete else None,
        oracle_l2_paper=mean(o.l2_paper.value for o in oracles) if complete else None,
        dcs=mean(pair.dcs for pair in report.pairs),
    )
