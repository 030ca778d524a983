"""The columns of Table 1 of Nelson et al. 2026 for one variant trained with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.report.tables import number

TABLE1_HEADERS = (
    "Model",
    "MSE",
    "R_S",
    "SAE IoU",
    "SAE l2/√2",
    "Oracle IoU",
    "Oracle l2/√2",
    "DCS",
)
"""The paper's columns, l2 on the scale that its values fit (`CodeAgreement.l2_paper`)."""


@dataclass(frozen=True, kw_only=True)
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

    def cells(self) -> list[str]:
        """The row as text under `TABLE1_HEADERS`, three decimals as in the paper."""
        numbers = (
            self.mse,
            self.r_arip,
            self.sae_iou,
            self.sae_l2_paper,
            self.oracle_iou,
            self.oracle_l2_paper,
            self.dcs,
        )
        return [self.variant, *(number(value, 3) for value in numbers)]


def table_row(
    variant: str, saes: Sequence[SAESummary], pairs: Sequence[PairIdentifiability]
) -> TableRow:
    """Summarise a comparison of seeds; a column that some SAE or pair lacks is None."""
    oracles = [pair.oracle for pair in pairs if pair.oracle is not None]
    complete = len(oracles) == len(pairs)
    r_arip = [sae.r_arip for sae in saes if sae.r_arip is not None]
    return TableRow(
        variant=variant,
        n_seeds=len(saes),
        mse=mean(sae.mse for sae in saes),
        r_arip=mean(r_arip) if len(r_arip) == len(saes) else None,
        sae_iou=mean(pair.sae.iou.value for pair in pairs),
        sae_l2=mean(pair.sae.l2.value for pair in pairs),
        sae_l2_paper=mean(pair.sae.l2_paper.value for pair in pairs),
        oracle_iou=mean(o.iou.value for o in oracles) if complete else None,
        oracle_l2=mean(o.l2.value for o in oracles) if complete else None,
        oracle_l2_paper=mean(o.l2_paper.value for o in oracles) if complete else None,
        dcs=mean(pair.dcs for pair in pairs),
    )
