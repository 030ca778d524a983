"""The page of `isae audit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from sae_lens_isae.identifiability.audit import Audit
from sae_lens_isae.identifiability.theory import RIP_THRESHOLDS
from sae_lens_isae.identifiability.verdict import conclusion
from sae_lens_isae.report.glossary import AUDIT
from sae_lens_isae.report.page import bullets, figure, html_table, paragraph, write_page
from sae_lens_isae.report.tables import (
    ASSUMPTION_HEADERS,
    AUDIT_HEADERS,
    assumption_rows,
    audit_rows,
)


def write_audit_page(path: Path, audits: Sequence[Audit]) -> None:
    """Write the page of one or more audits."""
    first = audits[0]
    about = f"On {first.n_samples} activations: {first.activations}. Every activation is taken at "
    sections = [
        (
            "Verdict",
            paragraph(about + "|x - b| = 1, and all distances are relative to that.")
            + paragraph(conclusion(audits))
            + (bullets(first.differences) if first.differences else ""),
        )
    ]
    for audit in audits:
        title = f"{audit.name} ({audit.architecture}, {audit.d_sae} latents)"
        sections += [
            (
                f"Theorem 3.6: {title}",
                html_table(ASSUMPTION_HEADERS, assumption_rows(audit), all_text=True)
                + (paragraph(conclusion([audit])) if len(audits) > 1 else ""),
            ),
            (f"Numbers: {title}", html_table(AUDIT_HEADERS, audit_rows(audit), all_text=True)),
        ]
    sections += [
        (
            "How far from an isometry are the atoms that act together?",
            paragraph(
                "The aRIP constant delta of observed supports: on unions of two random samples, "
                "and on the 2k largest pre-activations of one. Lines mark what recovery theory "
                "asks of delta at 2k."
            )
            + figure(_deltas(audits)),
        ),
        ("The numbers", bullets([f"{name}: {line}" for name, line in AUDIT.items()])),
    ]
    write_page(path, "Does this SAE meet the assumptions of identifiability?", sections)


def _deltas(audits: Sequence[Audit]) -> go.Figure:
    fig = go.Figure()
    for audit in audits:
        for kind, found in (("pairs", audit.pairs), ("2k largest", audit.proxy)):
            if found is not None:
                fig.add_histogram(
                    x=found.deltas,
                    name=f"{audit.name}, {kind}",
                    histnorm="probability",
                    nbinsx=60,
                    opacity=0.6,
                )
    for name, value in RIP_THRESHOLDS.items():
        fig.add_vline(x=value, line_dash="dot", annotation_text=name)
    fig.update_layout(barmode="overlay", showlegend=True)
    fig.update_xaxes(title="delta", rangemode="tozero")
    fig.update_yaxes(title="share of supports")
    return fig
