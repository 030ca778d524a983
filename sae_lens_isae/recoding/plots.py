"""The figures of `isae recode`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

from sae_lens_isae.recoding.results import RecodedSAE

_DASHES = ("solid", "dash", "dot", "dashdot")


def lines(saes: Sequence[RecodedSAE], what: str, x: str, y: str, log: bool = False) -> go.Figure:
    """A line per method, dashed by SAE."""
    fig = go.Figure()
    colours: dict[str, str] = {}
    for dash, sae in enumerate(saes):
        table: pd.DataFrame | None = getattr(sae, what)
        if table is None:
            continue
        for method, of_method in table.groupby("method", sort=False):
            colour = colours.setdefault(
                str(method), qualitative.Plotly[len(colours) % len(qualitative.Plotly)]
            )
            fig.add_scatter(
                x=of_method[x],
                y=of_method[y],
                name=f"{sae.name}, {method}",
                mode="lines+markers",
                line={"color": colour, "dash": _DASHES[dash % len(_DASHES)]},
            )
    fig.update_xaxes(title=x, type="log" if log else "linear")
    fig.update_yaxes(title=y.replace("_", " "), rangemode="tozero")
    return fig


def robustness(saes: Sequence[RecodedSAE]) -> go.Figure:
    """Latents by how often OMP and IHT pick them too."""
    fig = go.Figure()
    for sae in saes:
        fig.add_histogram(
            x=sae.latents["picked_by_all"],
            name=sae.name,
            histnorm="probability",
            xbins={"start": 0, "end": 1.05, "size": 0.05},
            opacity=0.6,
        )
    fig.update_layout(barmode="overlay", showlegend=True)
    fig.update_xaxes(title="share of its samples in which OMP and IHT pick a latent")
    fig.update_yaxes(title="share of latents")
    return fig
