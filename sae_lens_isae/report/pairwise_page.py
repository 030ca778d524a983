"""The page of `isae pairwise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_isae.identifiability.pairwise import PairIdentifiability, PairwiseReport
from sae_lens_isae.report.glossary import PAIRWISE
from sae_lens_isae.report.page import bullets, figure, html_table, paragraph, write_page
from sae_lens_isae.report.tables import (
    PAIR_HEADERS,
    SAE_HEADERS,
    pair_notes,
    pair_rows,
    sae_rows,
)

_MAX_POINTS = 3000
"""Latents of one SAE in the scatter plot; a browser slows down with more."""


def write_pairwise_page(path: Path, report: PairwiseReport) -> None:
    """Write the page of a comparison."""
    notes = pair_notes(report)
    write_page(
        path,
        "Would another training run have found the same features?",
        [
            (
                "SAEs",
                paragraph(f"On {report.n_samples} activations: {report.activations}.")
                + html_table(SAE_HEADERS, sae_rows(report)),
            ),
            ("Pairs", html_table(PAIR_HEADERS, pair_rows(report)) + bullets(notes)),
            (
                "All pairs at a glance",
                paragraph(
                    "DCS compares dictionaries, IoU codes. Where the oracle agrees better than the "
                    "SAEs, a better encoder would find the same codes on these dictionaries."
                )
                + figure(_heat_maps(report)),
            ),
            (
                "Which atoms were found again?",
                paragraph(
                    "Every atom's cosine with its partner, best first. A curve that stays at 1 "
                    "to the right end is a dictionary that both runs found."
                )
                + figure(_sorted_cosines(report)),
            ),
            (
                "How much do the supports overlap?",
                paragraph("Share of the activations by the IoU of their active latents.")
                + figure(_iou_histogram(report)),
            ),
            (
                "Which features to trust",
                paragraph(
                    "Each point is a latent: how often it fires, and its mean cosine with its "
                    "partners in the other SAEs. Colour is the mean overlap of their firing. "
                    + _sampled(report)
                    + "The table of all latents lies beside this page."
                )
                + figure(_stability(report)),
            ),
            ("The numbers", bullets([f"{name}: {line}" for name, line in PAIRWISE.items()])),
        ],
    )


def _name(pair: PairIdentifiability) -> str:
    return f"{pair.a} | {pair.b}"


def _heat_maps(report: PairwiseReport) -> go.Figure:
    names = [sae.name for sae in report.saes]
    place = {name: i for i, name in enumerate(names)}
    panels = {
        "DCS": {(p.a, p.b): p.dcs for p in report.pairs},
        "IoU": {(p.a, p.b): p.sae.iou.value for p in report.pairs},
        "Oracle IoU": {
            (p.a, p.b): p.oracle.iou.value for p in report.pairs if p.oracle is not None
        },
    }
    panels = {title: values for title, values in panels.items() if values}
    fig = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for column, values in enumerate(panels.values(), start=1):
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
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            showscale=column == len(panels),
            row=1,
            col=column,
        )
    fig.update_yaxes(autorange="reversed")
    return fig


def _sorted_cosines(report: PairwiseReport) -> go.Figure:
    fig = go.Figure()
    for pair in report.pairs:
        fig.add_scatter(y=np.sort(pair.match.cosine.numpy())[::-1], name=_name(pair), mode="lines")
    fig.update_xaxes(title="matched atoms, best first")
    fig.update_yaxes(title="cosine", rangemode="tozero")
    fig.update_layout(showlegend=True)
    return fig


def _iou_histogram(report: PairwiseReport) -> go.Figure:
    fig = go.Figure()
    for pair in report.pairs:
        edges = np.linspace(0, 1, len(pair.sae.iou_histogram) + 1)
        for agreement, suffix, dash in ((pair.sae, "", "solid"), (pair.oracle, ", oracle", "dot")):
            if agreement is not None:
                fig.add_scatter(
                    x=(edges[:-1] + edges[1:]) / 2,
                    y=np.array(agreement.iou_histogram) / agreement.n_samples,
                    name=_name(pair) + suffix,
                    line={"dash": dash},
                    mode="lines+markers",
                )
    fig.update_xaxes(title="IoU of active latents", range=[0, 1])
    fig.update_yaxes(title="share of activations", rangemode="tozero")
    fig.update_layout(showlegend=True)
    return fig


def _stability(report: PairwiseReport) -> go.Figure:
    symbols = ("circle", "diamond", "square", "cross", "x", "triangle-up")
    fig = go.Figure()
    for i, sae in enumerate(report.saes):
        latents = report.latents[report.latents["sae"] == sae.name]
        if len(latents) > _MAX_POINTS:
            latents = latents.sample(_MAX_POINTS, random_state=0)
        # dead latents have no place on a logarithmic axis: they stand left of the rarest
        rate = np.maximum(latents["firing_rate"], 0.5 / report.n_samples)
        fig.add_scatter(
            x=rate,
            y=latents["mean_cosine"],
            mode="markers",
            name=sae.name,
            text=[f"latent {latent}" for latent in latents["latent"]],
            marker={
                "size": 5,
                "symbol": symbols[i % len(symbols)],
                "color": np.nan_to_num(latents["mean_code_iou"]),
                "coloraxis": "coloraxis",
            },
        )
    fig.update_xaxes(title="firing rate (dead latents at the left end)", type="log")
    fig.update_yaxes(title="mean cosine with partners", rangemode="tozero")
    fig.update_layout(
        coloraxis={
            "colorscale": "Viridis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": "IoU of firing"},
        },
        legend={"orientation": "h", "y": 1.12},
        showlegend=True,
    )
    return fig


def _sampled(report: PairwiseReport) -> str:
    if max(sae.d_sae for sae in report.saes) <= _MAX_POINTS:
        return ""
    return f"{_MAX_POINTS} random latents of each SAE are shown. "
