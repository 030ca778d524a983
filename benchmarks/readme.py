"""The README's picture and table, from the results of `demo.py` and `table2.py`.

python benchmarks/readme.py    # docs/picture.png (needs kaleido and a Chrome) and README.md
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from provenance import RESULTS
from table2_report import long_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "picture.png"
TITLES = ("synthetic data, 4,000 steps", "SmolLM2-135M, 160 million tokens")
COLUMNS = {"mse": ".3f", "sae_iou": ".3f", "oracle_iou": ".3f", "dcs": ".3f"}
Rows = dict[str, dict[str, Any]]


def load(name: str) -> list[dict[str, Any]]:
    """The rows of a result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def both() -> tuple[Rows, Rows]:
    """Rows by variant: on synthetic data, and on the real model."""
    real = {row["setting"]["variant"]: dict(row) for row in long_rows(load("table2"))}
    return {row["variant"]: row for row in load("demo")}, real


def table_lines() -> list[str]:
    """A line per variant: synthetic data, then the real model."""
    synthetic, real = both()
    lines: list[str] = []
    for variant in real:
        left, right = (
            " | ".join(
                format(rows[variant][column], form) if variant in rows else ""
                for column, form in COLUMNS.items()
            )
            for rows in (synthetic, real)
        )
        lines.append(f"| {variant} | {left} | | {right} |")
    return lines


def dcs_by_chance() -> float:
    """On the real model, of random directions with the activations' covariance."""
    (dcs,) = (row["dcs"] for row in load("table2") if row["cell"] == "by chance, covariance")
    return dcs


def chance() -> str:
    """DCS by chance, as the README says it."""
    return f"DCS by chance {dcs_by_chance():.3f}"


def claims() -> list[str]:
    """What the README says of the numbers in words."""
    _, real = both()
    topk, solved = real["TopK"], real["iSAE-LS"]
    by_name = {row["cell"]: row for row in load("table2")}
    proposing = by_name[f"{solved['cell']}, m = 2.25 afterwards"]
    demo = json.loads((RESULTS / "demo_real.json").read_text(encoding="utf-8"))
    dcs = {row["variant"]: row["dcs"] for row in demo["rows"]}
    by_chance = demo["settings"]["dcs_by_chance"]
    return [
        f"at {solved['mse'] / topk['mse'] - 1:.0%} more error than TopK",
        f"or {1 - proposing['mse'] / topk['mse']:.0%} less with `candidates` 2.25",
        f"(IoU {proposing['sae_iou']:.2f} and {topk['sae_iou']:.2f})",
        f"(DCS {solved['dcs']:.2f} and IoU {solved['sae_iou']:.2f})",
        f"share {solved['found']:.0%} of their atoms",
        f"iSAE-ME has {1 - real['iSAE-ME']['mse'] / real['TopK']['mse']:.0%} less error",
        f"DCS {dcs['TopK, usual lr']:.2f} and {dcs['TopK']:.2f} where chance is {by_chance:.2f}",
    ]


def with_table(text: str) -> str:
    """The README with its figures as they are now."""
    text = re.sub(r"DCS by chance [^.]+\.?\d*", chance(), text, count=1)
    header = r"(\| \| \*synthetic\*[^\n]*\n)"
    return re.sub(
        header + r"(?:\|[^\n]*\n|@TABLE@\n)*", r"\1" + "\n".join(table_lines()) + "\n", text
    )


def picture() -> go.Figure:
    """IoU and DCS of two seeds, by variant."""
    fig = make_subplots(1, 2, subplot_titles=TITLES, shared_yaxes=True)
    series = {
        "sae_iou": ("same latents fire (IoU)", "#1f77b4"),
        "dcs": ("same atoms (DCS)", "#c9d3df"),
    }
    for column, rows in enumerate(both(), start=1):
        for key, (label, colour) in series.items():
            fig.add_bar(
                x=list(rows),
                y=[row[key] for row in rows.values()],
                name=label,
                marker_color=colour,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    fig.add_hline(
        y=dcs_by_chance(),
        line_dash="dot",
        annotation={"text": "DCS by chance", "bgcolor": "white"},
        row=1,
        col=2,
    )
    fig.update_yaxes(range=[0, 1.05])
    fig.update_yaxes(title="agreement of seeds", col=1)
    fig.update_layout(
        template="plotly_white",
        width=1000,
        height=380,
        margin={"t": 60, "b": 40, "r": 20},
        legend={"orientation": "h", "y": -0.12},
    )
    return fig


if __name__ == "__main__":
    picture().write_image(PICTURE, scale=2)
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
