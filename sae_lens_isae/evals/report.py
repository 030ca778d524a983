"""The report of `isae bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.evals.results import RESULT_ENDING, BenchResult
from sae_lens_isae.evals.tables import (
    METRIC_OF,
    detail_tables,
    form_notes,
    groups,
    judge_notes,
    numbers,
    spread,
    summary_table,
)
from sae_lens_isae.files import write_json
from sae_lens_isae.report import style
from sae_lens_isae.report.glossary import BENCH
from sae_lens_isae.report.page import Section, numbers_section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table
from sae_lens_isae.saebench.plots import plot_with_saebench

_CURVES = {
    "tpp": "TPP: how selective are the latents of a class?",
    "scr": "SCR: does ablating latents cure a biased probe?",
}


@dataclass(frozen=True, repr=False, kw_only=True)
class BenchReport(Report):
    """The results of all evals on all SAEs."""

    results: list[BenchResult]
    folder: Path
    """With a result file for each eval and SAE."""
    seeds: list[str] = field(default_factory=list[str])
    """What tells the SAEs apart, if they are seeds."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per SAE, eval and metric: `sae`, `eval`, `form`, `metric`, `value`."""
        rows = [
            {"sae": r.sae, "eval": r.eval, "form": r.form, "metric": metric, "value": value}
            for r in self.results
            for metric, value in r.metrics.items()
        ]
        return pd.DataFrame(rows, columns=["sae", "eval", "form", "metric", "value"])

    @property
    @override
    def title(self) -> str:
        return "What are the SAEs good for?"

    @override
    def summary(self) -> str:
        table = summary_table(self.results)
        said: list[str] = []
        for name, *cells in table.rows:
            numbers = zip(table.headers[1:], cells, strict=True)
            found = [f"{header} {cell}" for header, cell in numbers if cell not in ("", "-")]
            said.append(f"{name}: {', '.join(found)}.")
        return " ".join(said)

    @override
    def tables(self) -> list[Table]:
        return [summary_table(self.results)]

    @override
    def notes(self) -> list[str]:
        return [*self.seeds, *form_notes(self.results), *judge_notes(self.results)]

    @override
    def plot(self) -> go.Figure:
        """A curve of the first eval that has one; else the summary's columns as bars."""
        for name in _CURVES:
            if numbers(self.results, name):
                return curve(self.results, name)
        return _bars(self.table)

    @override
    def sections(self) -> list[Section]:
        summary = summary_table(self.results)
        sections = [Section(summary.title, [summary, self.notes()])]
        for name, title in _CURVES.items():
            if numbers(self.results, name):
                line = BENCH[name.upper()]
                said = line[0].upper() + line[1:]
                sections.append(Section(title, [said, curve(self.results, name)]))
        sections += [Section(table.title, [table]) for table in detail_tables(self.results)]
        return [*sections, numbers_section(BENCH)]

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write `bench.html`, `bench.json`, and SAEBench's own plots of what can be drawn.

        Args:
            folder: By default that of the result files.

        Returns:
            The files, the page first.
        """
        folder = self.folder if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, as_json = folder / "bench.html", folder / "bench.json"
        write_json(as_json, self.to_list())
        self.to_html(page)
        files = [r.path.name.removesuffix(RESULT_ENDING) for r in self.results if r.eval == "core"]
        plots = plot_with_saebench(self.folder, files, folder / "plots") if files else []
        return [page, as_json, *plots]

    def to_list(self) -> list[dict[str, Any]]:
        """JSON data; paths are relative to the folder of the result files."""
        return [asdict(r) | {"path": str(r.path.relative_to(self.folder))} for r in self.results]


def _bars(table: pd.DataFrame) -> go.Figure:
    fig = go.Figure()
    for sae, of_sae in table.groupby("sae", sort=False):
        fig.add_bar(
            x=of_sae["eval"] + " " + of_sae["metric"],
            y=of_sae["value"],
            name=str(sae),
            hovertemplate=style.hover("eval", "value"),
        )
    return fig


def curve(results: Sequence[BenchResult], name: str) -> go.Figure:
    """An eval's metric by the number of latents that are ablated."""
    fig = go.Figure()
    for number, (group, members) in enumerate(groups(results).items()):
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
            hovertemplate=style.hover("ablated latents", name.upper()),
            **style.curve(number),
        )
    fig.update_layout(showlegend=True)
    fig.update_xaxes(title="ablated latents", type="log")
    return fig
