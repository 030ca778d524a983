"""The README's picture and table, from the results of `demo.py` and `demo.py --real`.

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

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "picture.png"
TITLES = {"demo": "synthetic data, 4,000 steps", "demo_real": "SmolLM2-135M, 1,500 steps"}
COLUMNS = {"mse": ".3f", "sae_iou": ".3f", "oracle_iou": ".3f", "dcs": ".3f"}


def load(name: str) -> dict[str, Any]:
    """The result of a demo."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table_lines() -> list[str]:
    """A line per variant: synthetic data, then the real model."""
    synthetic, real = ({row["variant"]: row for row in load(name)["rows"]} for name in TITLES)
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


def chance() -> str:
    """DCS by chance on the real model, as the README says it."""
    return f"DCS by chance {load('demo_real')['settings']['dcs_by_chance']:.3f}"


def with_table(text: str) -> str:
    """The README with its figures as they are now."""
    text = re.sub(r"DCS by chance [^.]+\.?\d*", chance(), text, count=1)
    header = r"(\| \| \*synthetic\*[^\n]*\n)"
    return re.sub(
        header + r"(?:\|[^\n]*\n|@TABLE@\n)*", r"\1" + "\n".join(table_lines()) + "\n", text
    )


def picture() -> go.Figure:
    """IoU and DCS of two seeds, by variant."""
    fig = make_subplots(1, 2, subplot_titles=list(TITLES.values()), shared_yaxes=True)
    series = {
        "sae_iou": ("same latents fire (IoU)", "#1f77b4"),
        "dcs": ("same atoms (DCS)", "#c9d3df"),
    }
    for column, name in enumerate(TITLES, start=1):
        rows = load(name)["rows"]
        for key, (label, colour) in series.items():
            fig.add_bar(
                x=[row["variant"] for row in rows],
                y=[row[key] for row in rows],
                name=label,
                marker_color=colour,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    by_chance = load("demo_real")["settings"]["dcs_by_chance"]
    fig.add_hline(y=by_chance, line_dash="dot", annotation_text="DCS by chance", row=1, col=2)
    fig.update_yaxes(range=[0, 1.05])
    fig.update_yaxes(title="agreement of two seeds", col=1)
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
