"""The page of `isae recode`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

from sae_lens_isae.recoding.results import RecodingReport
from sae_lens_isae.report.glossary import RECODE
from sae_lens_isae.report.page import bullets, figure, html_table, paragraph, write_page
from sae_lens_isae.report.recode_tables import recode_tables, robust_features

_DASHES = ("solid", "dash", "dot", "dashdot")


def write_recode_page(path: Path, report: RecodingReport) -> None:
    """Write the page of a study."""
    sections = [("What was coded", bullets(_about(report)))]
    sections += [
        (table.title, html_table(table.headers, table.rows)) for table in recode_tables(report)
    ]
    sections += [
        (
            "Is a code stable under noise?",
            paragraph(
                "Overlap of the supports of an activation and of the same with Gaussian noise. A "
                "method that stays high has a solution of its own; where methods are stable and "
                "disagree, there are several."
            )
            + figure(_lines(report, "noise", "sigma", "jaccard", log=True)),
        ),
        (
            "Do the codes determine the decoder?",
            paragraph(
                "Cosine of atoms refitted to a method's codes with the SAE's own. Few samples "
                "leave atoms undetermined whatever the codes: compare methods, not with 1."
            )
            + figure(_lines(report, "decoders", "k", "cosine", log=True)),
        ),
    ]
    if any(sae.ablation is not None for sae in report.saes):
        sections.append(
            (
                "Do the features matter to the model?",
                paragraph(
                    "Share of correctly answered prompts that break without a method's largest "
                    "features at the last position."
                )
                + figure(_lines(report, "ablation", "features", "breaking_rate")),
            )
        )
    sections.append(
        (
            "Which features depend on the algorithm?",
            paragraph(
                "For the latents that the encoder uses: in which share of these samples OMP and "
                "both IHT use them too."
            )
            + figure(_robustness(report)),
        )
    )
    for sae in report.saes:
        table = robust_features(sae)
        sections.append((table.title, html_table(table.headers, table.rows)))
    sections.append(("The numbers", bullets([f"{name}: {line}" for name, line in RECODE.items()])))
    write_page(path, "Would another algorithm have picked the same features?", sections)


def _about(report: RecodingReport) -> list[str]:
    lines = [f"Activations: {report.activations}."]
    if report.n_prompts is not None:
        lines.append(f"{report.n_correct} of {report.n_prompts} prompts are answered correctly.")
    for sae in report.saes:
        lines.append(
            f"{sae.name}: {sae.architecture}, {sae.d_sae} latents, {sae.n_samples} samples, "
            f"{sae.mean_k:.1f} latents per sample."
        )
        lines += [f"{sae.name}: {note}." for note in sae.notes]
    return lines


def _lines(report: RecodingReport, what: str, x: str, y: str, log: bool = False) -> go.Figure:
    """A line per method, dashed by SAE."""
    fig = go.Figure()
    colours: dict[str, str] = {}
    for dash, sae in enumerate(report.saes):
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


def _robustness(report: RecodingReport) -> go.Figure:
    fig = go.Figure()
    for sae in report.saes:
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
