"""The report of `isae pairwise`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.files import TableFormat, write_json, write_table
from sae_lens_isae.identifiability.chance import TITLES, Chance, chance_table
from sae_lens_isae.identifiability.code_agreement import CONFIDENCE
from sae_lens_isae.identifiability.pairwise_plots import (
    MAX_POINTS,
    heat_maps,
    iou_histogram,
    sorted_cosines,
    stability,
)
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.pairwise_tables import (
    found_everywhere,
    pair_notes,
    pair_table,
    sae_table,
)
from sae_lens_isae.identifiability.table1 import TableRow, table_row
from sae_lens_isae.report.glossary import PAIRWISE
from sae_lens_isae.report.page import Section, numbers_section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table

SCHEMA = "sae-lens-isae/pairwise/3"
"""Written into the JSON; the number grows when a field changes its meaning or goes away."""


@dataclass(frozen=True, repr=False, kw_only=True)
class PairwiseReport(Report):
    """The comparison of all pairs of SAEs."""

    saes: list[SAESummary]
    pairs: list[PairIdentifiability]
    chance: list[Chance]
    """What the numbers of the pairs are by chance; empty if it was left out."""
    latents: pd.DataFrame = field(repr=False)
    """One row per SAE and latent; see `LatentTables`."""
    partners: pd.DataFrame = field(repr=False)
    """One row per SAE, latent and other SAE; see `LatentTables`."""
    n_samples: int
    activations: str
    found_cosine: float
    n_zero_rows: int
    """All-zero activations, which are no tokens' and are left out."""
    differences: list[str]
    """How the SAEs differ in what they are for, and in their seeds."""

    @property
    @override
    def title(self) -> str:
        return "Would another training run have found the same features?"

    @override
    def summary(self) -> str:
        mean = self.table1_row("mean")
        found = [found_everywhere(s.name, self.latents, len(self.saes) - 1) for s in self.saes]
        n_pairs = f"{len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''}"
        oracle = "" if mean.oracle_iou is None else f" (oracle {mean.oracle_iou:.3f})"
        least, most = f"{min(found):.1%}", f"{max(found):.1%}"
        share = least if least == most else f"{least} to {most}"
        return (
            f"{len(self.saes)} SAEs, {n_pairs}, {self.n_samples} activations: DCS {mean.dcs:.3f}, "
            f"IoU {mean.sae_iou:.3f}{oracle}, l2 {mean.sae_l2:.3f}; {share} of the latents were "
            f"found in all other SAEs.{self._chance_in_words()}"
        )

    def _chance_in_words(self) -> str:
        dcs = [row.dcs for row in self.chance if row.null == "covariance"]
        iou = [row.iou for row in self.chance if row.null == "other samples"]
        if not dcs or not iou:
            return ""
        return f" By chance: DCS {dcs[0]:.3f}, IoU {iou[0]:.3f}."

    def table1_row(self, variant: str) -> TableRow:
        """The SAEs as seeds of one variant: a row of Table 1 of Nelson et al. 2026."""
        return table_row(variant, self.saes, self.pairs)

    @override
    def tables(self) -> list[Table]:
        tables = [
            sae_table(f"On {self.n_samples} activations", self.saes, self.latents),
            pair_table(self.saes, self.pairs),
        ]
        return [*tables, chance_table(self.chance)] if self.chance else tables

    @override
    def notes(self) -> list[str]:
        notes = list(self.differences)
        if self.n_zero_rows:
            notes.append(f"{self.n_zero_rows} all-zero activations are left out.")
        notes += [
            f"{TITLES[row.null].capitalize()}: {row.why_not}." for row in self.chance if row.why_not
        ]
        return notes + pair_notes(self.saes, self.pairs)

    @override
    def plot(self) -> go.Figure:
        return stability(self.latents, self.n_samples)

    @override
    def sections(self) -> list[Section]:
        saes, *pairs = self.tables()
        sampled = ""
        if max(sae.d_sae for sae in self.saes) > MAX_POINTS:
            sampled = f"{MAX_POINTS} random latents of each SAE are shown. "
        return [
            Section("SAEs", [f"{self.summary()} Activations: {self.activations}.", saes]),
            Section("Pairs", [*pairs, self.notes()]),
            Section(
                "All pairs at a glance",
                [
                    "DCS compares dictionaries, IoU codes. Where the oracle agrees better than the "
                    "SAEs, a better encoder would find the same codes on these dictionaries.",
                    heat_maps(self.saes, self.pairs),
                ],
            ),
            Section(
                "Which atoms were found again?",
                [
                    "Every atom's cosine with its partner, best first. A curve that stays at 1 to "
                    "the right end is a dictionary that both runs found.",
                    sorted_cosines(self.pairs),
                ],
            ),
            Section(
                "How much do the supports overlap?",
                [
                    "Share of the activations by the IoU of their active latents.",
                    iou_histogram(self.pairs),
                ],
            ),
            Section(
                "Which features to trust",
                [
                    "Each point is a latent: how often it fires, and its mean cosine with its "
                    "partners in the other SAEs. Colour is the mean overlap of their firing. "
                    f"{sampled}The table of all latents lies beside this page.",
                    self.plot(),
                ],
            ),
            numbers_section(PAIRWISE),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without the tables of latents."""
        pairs: list[dict[str, Any]] = []
        for pair in self.pairs:
            row = {k: v for k, v in vars(pair).items() if k not in ("match", "sae", "oracle")}
            row["sae"] = pair.sae.to_dict()
            row["oracle"] = None if pair.oracle is None else pair.oracle.to_dict()
            pairs.append(row)
        return {
            "schema": SCHEMA,
            "activations": self.activations,
            "n_samples": self.n_samples,
            "n_zero_rows": self.n_zero_rows,
            "differences": self.differences,
            "confidence": CONFIDENCE,
            "found_cosine": self.found_cosine,
            "saes": [asdict(sae) for sae in self.saes],
            "pairs": pairs,
            "chance": [asdict(row) for row in self.chance],
        }

    def save(self, folder: str | Path, table_format: TableFormat = "parquet") -> list[Path]:
        """Write `pairwise.html`, `pairwise.json`, `latents.json`, and the two tables of latents.

        Returns:
            The files, the page first.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers, as_json = (
            folder / name for name in ("pairwise.html", "pairwise.json", "latents.json")
        )
        write_json(numbers, self.to_dict())
        tables = {"latents": self.latents, "partners": self.partners}
        # pandas writes missing values as null, which plain json does not
        columns = {
            name: json.loads(str(table.to_json(orient="split", index=False)))
            for name, table in tables.items()
        }
        write_json(as_json, {"schema": SCHEMA, **columns}, indent=None)
        written = [write_table(folder / name, t, table_format) for name, t in tables.items()]
        self.to_html(page)
        return [page, numbers, as_json, *written]
