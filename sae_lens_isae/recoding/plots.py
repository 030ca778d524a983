"""The figures of `isae recode`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from sae_lens_isae.recoding.results import RecodedSAE
from sae_lens_isae.report.style import curve, hover

_DASHES = ("solid", "dash", "dot", "dashdot")


def lines(saes: Sequence[RecodedSAE], what: str, x: str, y: str, log: bool = False) -> go.Figure:
    """A line per method, dashed by SAE."""
    fig = go.Figure()
    methods: dict[str, int] = {}
    for dash, sae in zip(itertools.cycle(_DASHES), saes, strict=False):
        table: pd.DataFrame | None = getattr(sae, what)
        if table is None:
            continue
        for method, of_method in table.groupby("method", sort=False):
            number = methods.setdefault(str(method), len(methods))
            fig.add_scatter(
                x=of_method[x],
                y=of_method[y],
                name=f"{sae.name}, {method}",
                mode="lines+markers",
                hovertemplate=hover(x, y.replace("_", " ")),
                **curve(number, dash),
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
            hovertemplate=hover("share of samples", "share of latents"),
            histnorm="probability",
            xbins={"start": 0, "end": 1.05, "size": 0.05},
            opacity=0.6,
        )
    fig.update_layout(barmode="overlay", showlegend=True)
    fig.update_xaxes(title="share of its samples in which OMP and IHT pick a latent")
    fig.update_yaxes(title="share of latents")
    return fig
