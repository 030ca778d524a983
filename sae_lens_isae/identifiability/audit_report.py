"""The report of `isae audit`: several SAEs, and what the theorem says of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.contexts.examples import LatentExamples
from sae_lens_isae.contexts.latent_browser import ShownSAE, about_contexts, latent_browser
from sae_lens_isae.contexts.promoted import PromotedTokens
from sae_lens_isae.files import write_json
from sae_lens_isae.identifiability.audit_results import Audit, finite, theorem_dict
from sae_lens_isae.identifiability.audit_tables import (
    BROWSER_COLUMNS,
    assumption_table,
    number_table,
)
from sae_lens_isae.identifiability.theory import RIP_THRESHOLDS, Theorem
from sae_lens_isae.inputs.patch_images import Origin
from sae_lens_isae.report.browser import Browser
from sae_lens_isae.report.glossary import AUDIT
from sae_lens_isae.report.page import Section, numbers_section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.style import hover
from sae_lens_isae.report.tables import Table

SCHEMA = "sae-lens-isae/audit/2"


@dataclass(frozen=True, kw_only=True)
class ShownLatents:
    """Every latent, for the page."""

    latents: Mapping[str, pd.DataFrame]
    """For each SAE a row per latent: `latent`, `firing_rate`, `mean_magnitude` of the code where
    active, `nearest_cosine` and `nearest`, the other latent whose atom is most like its own."""
    examples: Mapping[str, LatentExamples]
    origin: Origin | None
    promoted: Mapping[str, PromotedTokens]
    neuronpedia_ids: Mapping[str, str | None]

    def browser(self) -> Browser:
        """The table of the page."""
        shown = [
            ShownSAE(
                name=name,
                latents=latents,
                examples=self.examples[name],
                promoted=self.promoted.get(name),
                neuronpedia_id=self.neuronpedia_ids.get(name),
            )
            for name, latents in self.latents.items()
        ]
        return latent_browser(shown, BROWSER_COLUMNS, self.origin)


@dataclass(frozen=True, repr=False, kw_only=True)
class AuditReport(Report):
    """Audits of one or more SAEs on the same activations."""

    saes: list[Audit]
    shown: ShownLatents | None = None
    """Without it the page shows no latents."""

    def __getitem__(self, key: int | str) -> Audit:
        """The audit of an SAE, by position or by name."""
        if isinstance(key, int):
            return self.saes[key]
        return {found.name: found for found in self.saes}[key]

    def __iter__(self) -> Iterator[Audit]:
        return iter(self.saes)

    def __len__(self) -> int:
        return len(self.saes)

    @property
    @override
    def title(self) -> str:
        return "Does this SAE meet the assumptions of identifiability?"

    @override
    def summary(self) -> str:
        return conclusion(self.saes)

    @override
    def tables(self) -> list[Table]:
        return [assumption_table(self.saes), number_table(self.saes)]

    @override
    def notes(self) -> list[str]:
        return self.saes[0].differences

    @override
    def plot(self) -> go.Figure:
        return _deltas(self.saes)

    @override
    def sections(self) -> list[Section]:
        first = self.saes[0]
        sections = [
            Section(
                "Activations",
                [
                    f"On {first.n_samples} activations: {first.activations}. Every activation is "
                    "taken at |x - b| = 1, and all distances are relative to that.",
                    self.notes(),
                ],
            )
        ]
        theorem, numbers = self.tables()
        return [
            *sections,
            Section(theorem.title, [theorem]),
            *self._measured(),
            Section(numbers.title, [numbers]),
            *self._latents(),
            Section(
                "How far from an isometry are the atoms that act together?",
                [
                    "The aRIP constant delta of observed supports: on unions of two random "
                    "samples, and on the 2k largest pre-activations of one. Lines mark what "
                    "recovery theory asks of delta at 2k.",
                    self.plot(),
                ],
            ),
            numbers_section(AUDIT),
        ]

    def _latents(self) -> list[Section]:
        if self.shown is None:
            return []
        said = [
            "Open a latent to see what it is active on. Nearest is the other latent of the same "
            "SAE whose atom is most like its own; near 1 the two stand for one thing.",
            about_contexts(self.shown.origin),
        ]
        return [Section("Latents", [said[0], self.shown.browser(), said[1]], folded=True)]

    def _measured(self) -> list[Section]:
        """For each of several SAEs, what was measured and what the theorem says of it alone."""
        if len(self.saes) == 1:
            return []
        return [
            Section(
                f"What was measured: {found.name}",
                [conclusion([found]), [f"{a.name}: {a.sentence}" for a in found.assumptions]],
                folded=True,
            )
            for found in self.saes
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON data of the audits and of what the theorem says of all SAEs together."""
        theorem = joint_theorem(self.saes)
        largest = max(a.code_norm.max for a in self.saes)
        diversities = [a.diversity for a in self.saes]
        joint = asdict(theorem) | theorem_dict(theorem, largest, *diversities)
        return {
            "schema": SCHEMA,
            "saes": [a.to_dict() for a in self.saes],
            "theorem": finite(joint),
            "conclusion": self.summary(),
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write `audit.html` and `audit.json`.

        Returns:
            The files, the page first.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers = folder / "audit.html", folder / "audit.json"
        write_json(numbers, self.to_dict())
        self.to_html(page)
        return [page, numbers]


def _bounds_sentence(theorem: Theorem, largest_code: float) -> str:
    if not math.isfinite(theorem.dictionary_bound):
        return "Its bounds are infinite."
    dictionary = "vacuous" if theorem.dictionary_bound_is_vacuous else "not vacuous"
    code = "vacuous" if theorem.code_bound_is_vacuous(largest_code) else "not vacuous"
    return (
        f"Bounds: atoms within {theorem.dictionary_bound:.3g} ({dictionary}: two unit vectors "
        f"are never further than 1.41 apart), codes within {theorem.code_bound:.3g} ({code}: no "
        f"code is longer than {largest_code:.3g})."
    )


def joint_theorem(audits: Sequence[Audit]) -> Theorem:
    """Theorem 3.6 for SAEs that must all meet it: the worst of each constant."""
    return Theorem(
        epsilon=max(a.theorem.epsilon for a in audits),
        delta=max(a.theorem.delta for a in audits),
        zeta=min(a.theorem.zeta for a in audits),
        k=max(a.theorem.k for a in audits),
    )


def conclusion(audits: Sequence[Audit]) -> str:
    """One plain paragraph: is the theorem's condition met, and are its bounds worth anything?"""
    theorem = joint_theorem(audits)
    by_verdict = {
        verdict: sorted({x.name for a in audits for x in a.assumptions if x.verdict == verdict})
        for verdict in ("refuted", "not estimable")
    }
    refuted = by_verdict["refuted"]
    unknown = [name for name in by_verdict["not estimable"] if name not in refuted]
    complete = all(a.diversity.is_complete for a in audits)
    zeta = "" if complete else ", even at the largest zeta that these activations leave open"
    parts: list[str] = []
    if refuted:
        parts.append(f"Refuted: {_listed(refuted)}.")
    if unknown:
        parts.append(f"Not estimable from these activations: {_listed(unknown)}.")
    if theorem.delta >= 1:
        parts.append(
            f"Theorem 3.6 says nothing: delta = {theorem.delta:.3g} is not below 1, so on some "
            "unions of observed supports the dictionary is no near-isometry at all."
        )
    elif not theorem.holds:
        parts.append(
            f"Theorem 3.6 does not apply: its error must stay below "
            f"{theorem.largest_epsilon:.3g}{zeta}, and the largest is {theorem.epsilon:.3g}."
        )
    elif refuted or unknown or not complete:
        parts.append(
            "Whether the condition of Theorem 3.6 is met cannot be said: it needs all assumptions, "
            "and zeta over all supports."
        )
    else:
        parts.append("The condition of Theorem 3.6 is not refuted by these activations.")
        if not theorem.proof_holds:
            parts.append(
                "One step of its proof needs more, C1 eta < sqrt((1 - delta) / 8), "
                "and that is not met."
            )
    parts.append(_bounds_sentence(theorem, max(a.code_norm.max for a in audits)))
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _deltas(audits: Sequence[Audit]) -> go.Figure:
    fig = go.Figure()
    for audit in audits:
        for kind, found in (("pairs", audit.pairs), ("2k largest", audit.proxy)):
            if found is not None:
                fig.add_histogram(
                    x=found.deltas,
                    name=f"{audit.name}, {kind}",
                    hovertemplate=hover("delta", "share of supports"),
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
