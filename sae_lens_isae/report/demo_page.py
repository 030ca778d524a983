"""The demo's page: Table 1 at the demo's size, and what lies behind its columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from sae_lens_isae.identifiability.pairwise import PairwiseReport
from sae_lens_isae.identifiability.table import TableRow
from sae_lens_isae.report.glossary import PAIRWISE
from sae_lens_isae.report.page import bullets, figure, html_table, paragraph, write_page
from sae_lens_isae.report.tables import TABLE1_HEADERS, table1_cells

_COLUMNS = ("MSE", "R_S", "IoU", "l2", "Oracle", "DCS")


def write_demo_page(
    path: Path,
    title: str,
    setting: Sequence[str],
    rows: Sequence[TableRow],
    reports: dict[str, PairwiseReport],
) -> None:
    """Write the page.

    Args:
        setting: What was run, and how it differs from the paper's size.
        reports: For every variant the comparison of its seeds.
    """
    table = html_table(TABLE1_HEADERS, [table1_cells(row) for row in rows])
    write_page(
        path,
        title,
        [
            ("What was run", bullets(setting)),
            ("Table", table + bullets([f"{name}: {PAIRWISE[name]}" for name in _COLUMNS])),
            (
                "Which atoms were found again?",
                paragraph(
                    "Every atom's cosine with its partner in the other seed, best first. A curve "
                    "that stays at 1 to the right end is a dictionary that both seeds found."
                )
                + figure(_sorted_cosines(reports)),
            ),
            (
                "Does the encoder use what the dictionary offers?",
                paragraph(
                    "Overlap of the active latents of two seeds, with the SAE's own encoder and "
                    "with the oracle. Where the oracle's bar is higher the encoder is what limits "
                    "the codes."
                )
                + figure(_iou_bars(rows)),
            ),
        ],
    )


def _sorted_cosines(reports: dict[str, PairwiseReport]) -> go.Figure:
    fig = go.Figure()
    for variant, report in reports.items():
        curves = [np.sort(pair.match.cosine.numpy())[::-1] for pair in report.pairs]
        fig.add_scatter(y=np.mean(curves, axis=0), name=variant, mode="lines")
    fig.update_xaxes(title="matched atoms, best first")
    fig.update_yaxes(title="cosine", rangemode="tozero")
    return fig


def _iou_bars(rows: Sequence[TableRow]) -> go.Figure:
    fig = go.Figure()
    variants = [row.variant for row in rows]
    fig.add_bar(x=variants, y=[row.sae_iou for row in rows], name="SAE encoder")
    fig.add_bar(x=variants, y=[row.oracle_iou for row in rows], name="OMP oracle")
    fig.update_yaxes(title="IoU of active latents", range=[0, 1.02])
    return fig
