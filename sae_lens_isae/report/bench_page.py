"""The page of `isae bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from sae_lens_isae.bench import BenchResult
from sae_lens_isae.report.bench_tables import (
    METRIC_OF,
    detail_tables,
    form_notes,
    groups,
    numbers,
    spread,
    summary_table,
)
from sae_lens_isae.report.glossary import BENCH
from sae_lens_isae.report.page import bullets, figure, html_table, paragraph, write_page

_CURVES = {
    "tpp": "TPP: how selective are the latents of a class?",
    "scr": "SCR: does ablating latents cure a biased probe?",
}


def write_bench_page(path: Path, results: Sequence[BenchResult]) -> None:
    """Write the page of a benchmark."""
    summary = summary_table(results)
    table = html_table(summary.headers, summary.rows)
    sections = [(summary.title, table + bullets(form_notes(results)))]
    for name, title in _CURVES.items():
        if numbers(results, name):
            plot = figure(_curve(results, name))
            line = BENCH[name.upper()]
            sections.append((title, paragraph(line[0].upper() + line[1:]) + plot))
    sections += [(t.title, html_table(t.headers, t.rows)) for t in detail_tables(results)]
    sections.append(("The numbers", bullets([f"{name}: {line}" for name, line in BENCH.items()])))
    write_page(path, "What are the SAEs good for?", sections)


def _curve(results: Sequence[BenchResult], name: str) -> go.Figure:
    fig = go.Figure()
    for group, members in groups(results).items():
        found = {
            n: spread(results, members, name, METRIC_OF[name].format(n))
            for n in numbers(results, name)
        }
        points = {n: value for n, value in found.items() if value is not None}
        fig.add_scatter(
            x=list(points),
            y=[value[0] for value in points.values()],
            error_y={"array": [value[1] or 0.0 for value in points.values()]},
            name=group,
            mode="lines+markers",
        )
    fig.update_layout(showlegend=True)
    fig.update_xaxes(title="ablated latents", type="log")
    return fig
