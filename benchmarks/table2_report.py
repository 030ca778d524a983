"""Tables and the figure of `results/table2.json`; measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any

import plotly.graph_objects as go
from table2_studies import STUDIES, Rates, best_rates, name_of_averaged

Row = Mapping[str, Any]
PAPER = {
    "TopK": (0.166, 0.183, 0.398, 0.492, 0.350, 0.530, 0.813),
    "AbsTopK": (0.177, 0.183, 0.631, 0.212, 0.398, 0.292, 0.873),
    "iSAE": (0.179, 0.114, 0.526, 0.256, 0.472, 0.273, 0.858),
    "iSAE-ME": (0.148, 0.132, 0.375, 0.297, 0.343, 0.316, 0.797),
}
"""Table 2 of Nelson et al. 2026 on Pythia-160M: MSE, R, IoU, l2, oracle IoU, oracle l2, DCS."""
ORDER = ("TopK", "AbsTopK", "iSAE", "iSAE-ME", "iSAE-LS")
_D_SAE = 4096
_COLOURS = dict(zip(ORDER, ("#7f7f7f", "#1f77b4", "#2ca02c", "#d62728", "#9467bd"), strict=True))


def of_study(rows: Sequence[Row], study: str, rates: Rates | None = None) -> list[Row]:
    """The rows of a study that are there, in its order.

    Args:
        rates: The learning rates of the study, by default those of the grid among the rows.
    """
    by_name = {row["cell"]: row for row in rows}
    cells = STUDIES[study](rates or best_rates(rows))
    return [by_name[cell.name] for cell in cells if cell.name in by_name]


def long_rows(rows: Sequence[Row]) -> list[Row]:
    """The longest runs with averaged weights, one of every variant, in the paper's order."""
    by_name = {row["cell"]: row for row in rows}
    names = map(name_of_averaged, ORDER)
    return [by_name[name] for name in names if name in by_name]


def table2(rows: Sequence[Row]) -> list[list[str]]:
    """Header and lines: every variant with its spread over seeds (MSE) or pairs, and the paper's
    row below it."""
    lines = [
        ["", "lr", "MSE", "R", "SAE IoU", "l2/√2", "oracle IoU", "oracle l2/√2", "DCS"],
    ]
    for row in long_rows(rows):
        variant, each = row["setting"]["variant"], row["each"]
        lines.append(
            [
                variant,
                f"{row['setting']['lr']:g}",
                f"{row['mse']:.4f} ± {stdev(each['mse']):.4f}",
                f"{row['r_arip']:.3f}",
                f"{row['sae_iou']:.3f} ± {stdev(each['sae_iou']):.3f}",
                f"{row['sae_l2_paper']:.3f} ± {2**-0.5 * stdev(each['sae_l2']):.3f}",
                f"{row['oracle_iou']:.3f}",
                f"{row['oracle_l2_paper']:.3f}",
                f"{row['dcs']:.3f} ± {stdev(each['dcs']):.3f}",
            ]
        )
        if variant in PAPER:
            mse, *others = (f"{value:.3f}" for value in PAPER[variant])
            lines.append(["*paper, Pythia-160M*", "?", mse, *others])
    for row in of_study(rows, "chance"):
        blank = ["", "", "", ""]
        lines.append([f"*{row['cell']}*", *blank, "", "", "", f"{row['dcs']:.3f}"])
    return lines


def more(rows: Sequence[Row]) -> list[list[str]]:
    """Header and lines: what Table 2 has no column for, of the longest runs."""
    lines = [
        ["", "MSE, least squares", "l2/√2, least squares", "found in all", "dead"]
        + [f"cosine, {n} fifth" for n in ("rarest", "2nd", "3rd", "4th", "most frequent")]
    ]
    for row in long_rows(rows):
        solved = row.get("refit", row)
        lines.append(
            [
                row["setting"]["variant"],
                f"{solved['mse']:.4f}",
                f"{2**-0.5 * solved['sae_l2']:.3f}",
                f"{row['found']:.0%}",
                ", ".join(map(str, row["n_dead"])),
                *(f"{cosine:.3f}" for cosine in row["cosine_by_firing_rate"]),
            ]
        )
    return lines


def cells_table(rows: Iterable[Row]) -> list[list[str]]:
    """Header and lines: one for each cell, mean over its seeds or pairs."""
    lines = [
        ["", "MSE", "MSE, least squares", "R", "DCS", "found in all", "IoU", "l2/√2", "dead"],
    ]
    for row in rows:
        solved = row.get("refit")
        lines.append(
            [
                row["cell"],
                f"{row['mse']:.4f}",
                f"{solved['mse']:.4f}" if solved else "",
                f"{row['r_arip']:.3f}",
                f"{row['dcs']:.3f}",
                f"{row['found']:.0%}",
                f"{row['sae_iou']:.3f}",
                f"{row['sae_l2_paper']:.3f}",
                ", ".join(map(str, row["n_dead"])),
            ]
        )
    return lines


def frontier_figure(rows: Sequence[Row]) -> go.Figure:
    """Error against agreement of every trained cell with 4096 latents.

    Circles are the learning rates of a grid, crosses one change each, stars the longest runs, open
    ones those whose weights were not averaged, diamonds the same with more candidates.
    """
    fig = go.Figure()
    in_grid, without_mean = of_study(rows, "grid"), of_study(rows, "long")
    names = {row["cell"] for row in [*in_grid, *without_mean, *long_rows(rows)]}
    others = [
        row
        for row in rows
        if row["setting"]["lr"]
        and row["cell"] not in names
        and all(d_sae == _D_SAE for d_sae in row["d_sae"])
    ]
    for variant in ORDER:
        colour = _COLOURS[variant]
        grid = [row for row in in_grid if row["setting"]["variant"] == variant]
        grid.sort(key=lambda row: row["setting"]["lr"])
        longest = [row for row in long_rows(rows) if row["setting"]["variant"] == variant]
        of_variant = [row for row in others if row["cell"].startswith(f"{variant},")]
        afterwards = [row for row in of_variant if row["setting"]["variant"] == "refit"]
        sources = dict.fromkeys(row["setting"]["of"] for row in afterwards)
        changed = [row for row in of_variant if row["setting"]["variant"] != "refit"]
        for shown, mode, marker in (
            (grid, "lines+markers", {"size": 8}),
            (changed, "markers", {"size": 9, "symbol": "x-thin"}),
            *(
                (
                    [row for row in afterwards if row["setting"]["of"] == of],
                    "lines+markers",
                    {"size": 9, "symbol": "diamond"},
                )
                for of in sources
            ),
            (
                [row for row in without_mean if row["setting"]["variant"] == variant],
                "markers",
                {"size": 15, "symbol": "star-open"},
            ),
            (longest, "markers", {"size": 15, "symbol": "star"}),
        ):
            if shown:
                fig.add_scatter(
                    x=[row["mse"] for row in shown],
                    y=[row["sae_iou"] for row in shown],
                    text=[row["cell"] for row in shown],
                    name=variant,
                    legendgroup=variant,
                    showlegend=shown is longest,
                    mode=mode,
                    marker={**marker, "color": colour, "line": {"color": colour, "width": 2}},
                    line={"color": colour, "width": 1},
                    hovertemplate="%{text}<br>MSE %{x:.4f}, IoU %{y:.3f}<extra></extra>",
                )
    fig.update_xaxes(title="error: mean of |x - x'|² / |x|²")
    fig.update_yaxes(title="agreement: IoU of the active latents")
    return fig
