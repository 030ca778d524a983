"""What the measured constants say of Theorem 3.6, in words.

An assumption speaks of all supports, pairs and samples; the audit sees some. So the verdicts are
'refuted', 'not refuted' on so many of so many, and 'not estimable'. Nothing is said to hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sae_lens_isae.identifiability.distribution import Conditioning, Distribution
from sae_lens_isae.identifiability.supports import Diversity, Richness
from sae_lens_isae.identifiability.theory import Theorem

Verdict = Literal["refuted", "not refuted", "not estimable"]

_LEAST_SQUARES_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """One assumption of the theorem, measured."""

    name: str
    """A1 to A6."""
    title: str
    verdict: Verdict
    evidence: str
    """On how much of what there is the verdict rests."""
    sentence: str
    """What was measured, and what the assumption asks for."""


def assumptions(
    theorem: Theorem,
    pairs: Conditioning,
    rich: Richness,
    diverse: Diversity,
    least_squares: Distribution,
    norm_spread: float,
    n_samples: int,
) -> list[Assumption]:
    """A1 to A6 of appendix A, each with what was measured and what it asks for."""
    return [
        _near_isometry(theorem, pairs, diverse),
        _rich_supports(rich),
        _small_error(theorem, diverse, n_samples),
        _diverse_codes(diverse),
        _bounded_data(norm_spread, n_samples),
        _least_squares_codes(least_squares, n_samples),
    ]


def _near_isometry(theorem: Theorem, pairs: Conditioning, diverse: Diversity) -> Assumption:
    n_unions = max(pairs.delta.n, math.comb(diverse.n_supports, 2))
    return Assumption(
        name="A1",
        title="approximate RIP",
        verdict="not refuted" if theorem.delta < 1 else "refuted",
        evidence=f"{pairs.delta.n:,} of {n_unions:,} unions of two observed supports",
        sentence=f"delta is {pairs.delta.median:.3g} in the median and {theorem.delta:.3g} at "
        f"worst; A1 needs it below 1 on all. {pairs.share_below['1/3']:.1%} are below 1/3, where "
        "classical recovery results apply.",
    )


def _rich_supports(rich: Richness) -> Assumption:
    met = (
        rich.n_rarely_seen == 0
        and rich.n_isolated == rich.n_examined
        and rich.n_pairs_separated == rich.n_pairs_examined
    )
    return Assumption(
        name="A2",
        title="rich supports",
        verdict="not refuted" if met else "not estimable",
        evidence=f"{rich.n_examined:,} of {rich.n_latents:,} latents, {rich.n_pairs_examined:,} of "
        f"{math.comb(rich.n_latents, 2):,} pairs",
        sentence=f"{rich.n_isolated:,} latents are isolated by two samples that share nothing "
        f"else, {rich.n_pairs_separated:,} pairs are separated; {rich.n_rarely_seen:,} latents are "
        "active in fewer than two samples.",
    )


def _small_error(theorem: Theorem, diverse: Diversity, n_samples: int) -> Assumption:
    zeta = f"zeta {'=' if diverse.is_complete else 'at most'} {theorem.zeta:.3g}"
    return Assumption(
        name="A3",
        title="small error",
        verdict=condition(theorem, diverse),
        evidence=f"{n_samples:,} samples, zeta from {_estimable(diverse)}",
        sentence=f"the largest error is {theorem.epsilon:.3g} of |x - b|; A3 needs less than "
        f"{theorem.largest_epsilon:.3g} (with {zeta}, delta = {theorem.delta:.3g}, "
        f"k = {theorem.k}).",
    )


def _diverse_codes(diverse: Diversity) -> Assumption:
    if diverse.zeta is None:
        verdict: Verdict = "not estimable"
        sentence = (
            f"none of {diverse.n_supports:,} distinct supports occurs as often as it has latents."
        )
    else:
        verdict = "not refuted" if diverse.zeta > 0 else "refuted"
        sentence = (
            f"zeta = {diverse.zeta:.3g} over the supports that occur as often as they have latents."
        )
    return Assumption(
        name="A4",
        title="diverse codes",
        verdict=verdict,
        evidence=_estimable(diverse),
        sentence=sentence,
    )


def _bounded_data(norm_spread: float, n_samples: int) -> Assumption:
    return Assumption(
        name="A5",
        title="bounded data",
        verdict="not refuted",
        evidence=f"{n_samples:,} of {n_samples:,} samples",
        sentence="met by taking every activation at |x - b| = 1; in its own units the largest is "
        f"{norm_spread:.3g} times the median.",
    )


def _least_squares_codes(gap: Distribution, n_samples: int) -> Assumption:
    return Assumption(
        name="A6",
        title="least-squares codes",
        verdict="not refuted" if gap.p95 <= _LEAST_SQUARES_TOLERANCE else "refuted",
        evidence=f"{gap.n:,} of {n_samples:,} samples",
        sentence=f"codes are {gap.median:.3g} (median) and {gap.p95:.3g} (95%) of their norm away "
        "from the least-squares coefficients on their support; A6 needs 0, and up to "
        f"{_LEAST_SQUARES_TOLERANCE:.0%} passes here.",
    )


def _estimable(diverse: Diversity) -> str:
    return f"{diverse.n_estimable:,} of {diverse.n_supports:,} distinct supports"


def condition(theorem: Theorem, *diversities: Diversity) -> Verdict:
    """A3, the theorem's condition. Zeta is the smallest over all supports: what some of them show
    is an upper bound, with which the condition can be refuted and not be met."""
    if not theorem.holds:
        return "refuted"
    return "not refuted" if all(d.is_complete for d in diversities) else "not estimable"
