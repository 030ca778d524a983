"""What the measured constants say of Theorem 3.6, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_lens_isae.identifiability.theory import Theorem

if TYPE_CHECKING:
    from sae_lens_isae.identifiability.audit import Audit, Conditioning, Distribution
    from sae_lens_isae.identifiability.supports import Diversity, Richness

_LEAST_SQUARES_TOLERANCE = 0.01


@dataclass(frozen=True)
class Assumption:
    """One assumption of the theorem, measured."""

    name: str
    """A1 to A6."""
    title: str
    holds: bool | None
    """None where these activations cannot tell."""
    sentence: str
    """What was measured, and what the assumption asks for."""


def assumptions(
    theorem: Theorem,
    pairs: Conditioning,
    rich: Richness,
    diverse: Diversity,
    least_squares: Distribution,
    norm_spread: float,
) -> list[Assumption]:
    """A1 to A6 of appendix A, each with what was measured and what it asks for."""
    below_third = pairs.share_below["1/3"]
    all_rich = (
        rich.n_rarely_seen == 0
        and rich.n_isolated == rich.n_examined
        and rich.n_pairs_separated == rich.n_pairs_examined
    )
    zeta_known = diverse.zeta is not None
    zeta_text = f"zeta = {diverse.zeta:.3g}" if zeta_known else f"zeta at most {theorem.zeta:.3g}"
    return [
        Assumption(
            "A1",
            "approximate RIP",
            theorem.delta < 1,
            f"delta is {pairs.delta.median:.3g} in the median and {theorem.delta:.3g} at worst "
            f"over {pairs.delta.n} unions of two observed supports; A1 needs it below 1 on all. "
            f"{below_third:.1%} are below 1/3, where classical recovery results apply.",
        ),
        Assumption(
            "A2",
            "rich supports",
            True if all_rich else None,
            f"{rich.n_isolated} of {rich.n_examined} latents are isolated by two samples that "
            f"share nothing else, {rich.n_pairs_separated} of {rich.n_pairs_examined} pairs are "
            f"separated; {rich.n_rarely_seen} latents are active in fewer than two samples.",
        ),
        Assumption(
            "A3",
            "small error",
            theorem.holds if zeta_known or not theorem.holds else None,
            f"the largest error is {theorem.epsilon:.3g} of |x - b|; A3 needs less than "
            f"{theorem.largest_epsilon:.3g} (with {zeta_text}, delta = {theorem.delta:.3g}, "
            f"k = {theorem.k}).",
        ),
        Assumption(
            "A4",
            "diverse codes",
            None if diverse.n_estimable < diverse.n_supports else (diverse.zeta or 0) > 0,
            (
                f"not estimable: none of {diverse.n_supports} distinct supports occurs as often as "
                "it has latents."
                if not zeta_known
                else f"zeta = {diverse.zeta:.3g} over the {diverse.n_estimable} of "
                f"{diverse.n_supports} distinct supports that occur as often as they have latents."
            ),
        ),
        Assumption(
            "A5",
            "bounded data",
            True,
            "holds by taking every activation at |x - b| = 1; in its own units the largest is "
            f"{norm_spread:.3g} times the median.",
        ),
        Assumption(
            "A6",
            "least-squares codes",
            least_squares.p95 <= _LEAST_SQUARES_TOLERANCE,
            f"codes are {least_squares.median:.3g} (median) and {least_squares.p95:.3g} (95%) of "
            "their norm away from the least-squares coefficients on their support; A6 needs 0, "
            f"and up to {_LEAST_SQUARES_TOLERANCE:.0%} passes here.",
        ),
    ]


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
    failed = sorted({x.name for a in audits for x in a.assumptions if x.holds is False})
    unknown = sorted(
        {x.name for a in audits for x in a.assumptions if x.holds is None} - set(failed)
    )
    estimable = all(a.diversity.zeta is not None for a in audits)
    zeta = "" if estimable else ", even at the largest conceivable zeta"
    parts: list[str] = []
    if failed:
        parts.append(f"{_listed(failed)} {'fails' if len(failed) == 1 else 'fail'}.")
    if unknown:
        parts.append(f"{_listed(unknown)} cannot be told from these activations.")
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
    else:
        if_zeta = "" if estimable else " if zeta is as large as it can be"
        parts.append(f"The condition of Theorem 3.6 is met{if_zeta}.")
        if not theorem.proof_holds:
            parts.append(
                "One step of its proof needs more, C1 eta < sqrt((1 - delta) / 8), "
                "and that is not met."
            )
    parts.append(_bounds_sentence(theorem, max(a.code_norm.max for a in audits)))
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
