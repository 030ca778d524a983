"""The report of `isae demo`: Table 1 of Nelson et al. 2026 at the demo's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.files import write_json
from sae_lens_isae.identifiability.pairwise_report import PairwiseReport
from sae_lens_isae.identifiability.table1 import TABLE1_HEADERS, TableRow
from sae_lens_isae.report.glossary import PAIRWISE
from sae_lens_isae.report.page import Section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.style import curve, hover
from sae_lens_isae.report.tables import Table

PAGE_FILENAME = "index.html"
TABLE_FILENAME = "table.json"

_COLUMNS = ("MSE", "R_S", "IoU", "l2", "Oracle", "DCS")


@dataclass(frozen=True, repr=False, kw_only=True)
class DemoReport(Report):
    """The seeds of every variant, compared."""

    heading: str
    setting: list[str]
    """What was run, and how it differs from the paper's size."""
    settings: dict[str, Any]
    variants: Mapping[str, PairwiseReport]

    @property
    @override
    def title(self) -> str:
        return self.heading

    @property
    def rows(self) -> list[TableRow]:
        """A row of Table 1 for every variant."""
        return [report.table1_row(variant) for variant, report in self.variants.items()]

    @override
    def summary(self) -> str:
        rows = self.rows
        stable = max(rows, key=lambda row: row.sae_iou)
        exact = min(rows, key=lambda row: row.mse)
        return (
            f"Most alike across seeds: {stable.variant} (IoU {stable.sae_iou:.3f}, DCS "
            f"{stable.dcs:.3f}). Least error: {exact.variant} (MSE {exact.mse:.4f})."
        )

    @override
    def tables(self) -> list[Table]:
        return [Table(self.title, TABLE1_HEADERS, [row.cells() for row in self.rows])]

    @override
    def notes(self) -> list[str]:
        return []

    @override
    def plot(self) -> go.Figure:
        return _sorted_cosines(self.variants)

    @override
    def sections(self) -> list[Section]:
        explained = [f"{name}: {PAIRWISE[name]}" for name in _COLUMNS]
        (table,) = self.tables()
        return [
            Section("What was run", [self.setting]),
            Section("Table", [table._replace(title="Table"), explained]),
            Section(
                "Which atoms were found again?",
                [
                    "Every atom's cosine with its partner in the other seed, best first. A curve "
                    "that stays at 1 to the right end is a dictionary that both seeds found.",
                    self.plot(),
                ],
            ),
            Section(
                "Does the encoder use what the dictionary offers?",
                [
                    "Overlap of the active latents of two seeds, with the SAE's own encoder and "
                    "with the oracle. Where the oracle's bar is higher the encoder is what limits "
                    "the codes.",
                    _iou_bars(self.rows),
                ],
            ),
        ]

    def save(self, folder: str | Path) -> list[Path]:
        """Write `index.html` and `table.json`.

        Returns:
            The files, the page first.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, table = folder / PAGE_FILENAME, folder / TABLE_FILENAME
        rows = [row.to_dict() for row in self.rows]
        write_json(table, {"settings": self.settings, "rows": rows})
        self.to_html(page)
        return [page, table]


def _sorted_cosines(reports: Mapping[str, PairwiseReport]) -> go.Figure:
    fig = go.Figure()
    for number, (variant, report) in enumerate(reports.items()):
        curves = [np.sort(pair.match.cosine.numpy())[::-1] for pair in report.pairs]
        fig.add_scatter(
            y=np.mean(curves, axis=0),
            name=variant,
            mode="lines",
            hovertemplate=hover("atom, best first", "cosine"),
            line=curve(number)["line"],
        )
    fig.update_xaxes(title="matched atoms, best first")
    fig.update_yaxes(title="cosine", rangemode="tozero")
    return fig


def _iou_bars(rows: list[TableRow]) -> go.Figure:
    fig = go.Figure()
    variants = [row.variant for row in rows]
    said = hover("variant", "IoU")
    for name, bars in (
        ("SAE encoder", [row.sae_iou for row in rows]),
        ("OMP oracle", [row.oracle_iou for row in rows]),
    ):
        fig.add_bar(x=variants, y=bars, name=name, hovertemplate=said)
    fig.update_yaxes(title="IoU of active latents", range=[0, 1.02])
    return fig
