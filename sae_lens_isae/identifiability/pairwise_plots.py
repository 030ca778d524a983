"""The figures of `isae pairwise`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.report.style import curve, hover

MAX_POINTS = 3000
"""Latents of one SAE in the scatter plot; a browser slows down with more."""


def pair_name(pair: PairIdentifiability) -> str:
    """A pair as a legend names it."""
    return f"{pair.a} | {pair.b}"


def heat_maps(saes: Sequence[SAESummary], pairs: Sequence[PairIdentifiability]) -> go.Figure:
    """DCS, IoU and oracle IoU of all pairs."""
    names = [sae.name for sae in saes]
    place = {name: i for i, name in enumerate(names)}
    panels = {
        "DCS": {(p.a, p.b): p.dcs for p in pairs},
        "IoU": {(p.a, p.b): p.sae.iou.value for p in pairs},
        "Oracle IoU": {(p.a, p.b): p.oracle.iou.value for p in pairs if p.oracle is not None},
    }
    panels = {title: values for title, values in panels.items() if values}
    fig = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for column, (title, values) in enumerate(panels.items(), start=1):
        matrix = np.eye(len(names))
        # a pair without oracle stays empty
        matrix[matrix == 0] = np.nan
        for (a, b), value in values.items():
            matrix[place[a], place[b]] = matrix[place[b], place[a]] = value
        text = np.where(np.isnan(matrix), "", np.char.mod("%.2f", np.nan_to_num(matrix)))
        fig.add_heatmap(
            z=matrix,
            x=names,
            y=names,
            text=text if len(names) <= 10 else None,
            texttemplate="%{text}",
            name=title,
            hovertemplate="%{y} | %{x}<br>%{fullData.name}: %{z:.4f}<extra></extra>",
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            showscale=column == len(panels),
            row=1,
            col=column,
        )
    fig.update_yaxes(autorange="reversed")
    return fig


def sorted_cosines(pairs: Sequence[PairIdentifiability]) -> go.Figure:
    """Every atom's cosine with its partner, best first."""
    fig = go.Figure()
    for number, pair in enumerate(pairs):
        fig.add_scatter(
            y=np.sort(pair.match.cosine.numpy())[::-1],
            name=pair_name(pair),
            mode="lines",
            hovertemplate=hover("atom, best first", "cosine"),
            line=curve(number)["line"],
        )
    fig.update_xaxes(title="matched atoms, best first")
    fig.update_yaxes(title="cosine", rangemode="tozero")
    fig.update_layout(showlegend=True)
    return fig


def iou_histogram(pairs: Sequence[PairIdentifiability]) -> go.Figure:
    """Share of the activations by the IoU of their active latents."""
    fig = go.Figure()
    for number, pair in enumerate(pairs):
        edges = np.linspace(0, 1, len(pair.sae.iou_histogram) + 1)
        for agreement, suffix, dash in ((pair.sae, "", None), (pair.oracle, ", oracle", "dot")):
            if agreement is not None:
                fig.add_scatter(
                    x=(edges[:-1] + edges[1:]) / 2,
                    y=np.array(agreement.iou_histogram) / agreement.n_samples,
                    name=pair_name(pair) + suffix,
                    mode="lines+markers",
                    hovertemplate=hover("IoU", "share of activations", ".2f"),
                    **curve(number, dash),
                )
    fig.update_xaxes(title="IoU of active latents", range=[0, 1])
    fig.update_yaxes(title="share of activations", rangemode="tozero")
    fig.update_layout(showlegend=True)
    return fig


def stability(latents: pd.DataFrame, n_samples: int) -> go.Figure:
    """Every latent: how often it fires, and its mean cosine with its partners."""
    symbols = ("circle", "diamond", "square", "cross", "x", "triangle-up")
    fig = go.Figure()
    for i, (name, of_sae) in enumerate(latents.groupby("sae", sort=False)):
        shown = of_sae
        if len(of_sae) > MAX_POINTS:
            shown = of_sae.sample(MAX_POINTS, random_state=0)
        # dead latents have no place on a logarithmic axis: they stand left of the rarest
        rate = np.maximum(shown["firing_rate"], 0.5 / n_samples)
        fig.add_scatter(
            x=rate,
            y=shown["mean_cosine"],
            mode="markers",
            name=str(name),
            text=[f"latent {latent}" for latent in shown["latent"]],
            hovertemplate="%{fullData.name}, %{text}<br>firing rate: %{x:.4f}<br>mean cosine: "
            "%{y:.3f}<br>IoU of firing: %{marker.color:.3f}<extra></extra>",
            marker={
                "size": 5,
                "symbol": symbols[i % len(symbols)],
                "color": np.nan_to_num(shown["mean_code_iou"]),
                "coloraxis": "coloraxis",
            },
        )
    fig.update_xaxes(title="firing rate (dead latents at the left end)", type="log")
    fig.update_yaxes(title="mean cosine with partners", rangemode="tozero")
    fig.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": "IoU of firing"},
        },
        legend={"orientation": "h", "y": 1.12},
        showlegend=True,
    )
    return fig
