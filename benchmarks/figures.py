"""Figures beside the results; measures nothing itself."""

from __future__ import annotations

import plotly.graph_objects as go
from provenance import RESULTS

_WIDTH, _HEIGHT = 1100, 420


def keep_figure(name: str, fig: go.Figure) -> None:
    """Keep a figure under benchmarks/results/figures as PNG and as HTML.

    The PNG needs kaleido and a Chrome or Chromium, the HTML a network to fetch plotly's code.
    """
    fig.update_layout(template="plotly_white", width=_WIDTH, height=_HEIGHT, margin={"t": 60})
    folder = RESULTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    fig.write_html(folder / f"{name}.html", include_plotlyjs="cdn")
    fig.write_image(folder / f"{name}.png", scale=2)
