"""What the measured constants say of Theorem 3.6, in words.

An assumption speaks of all supports, pairs and samples; the audit sees some. So what was not found
wrong is 'not refuted', on how many of how many, and what the samples cannot show is 'not
estimable'. Nothing is said to hold.
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


@dataclass(frozen=True)
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
    below_third = pairs.share_below["1/3"]
    all_rich = (
        rich.n_rarely_seen == 0
        and rich.n_isolated == rich.n_examined
        and rich.n_pairs_separated == rich.n_pairs_examined
    )
    n_latents = rich.n_latents
    n_unions = max(pairs.delta.n, math.comb(diverse.n_supports, 2))
    of_supports = f"{diverse.n_estimable:,} of {diverse.n_supports:,} distinct supports"
    zeta_text = f"zeta {'=' if diverse.is_complete else 'at most'} {theorem.zeta:.3g}"
    return [
        Assumption(
            "A1",
            "approximate RIP",
            "not refuted" if theorem.delta < 1 else "refuted",
            f"{pairs.delta.n:,} of {n_unions:,} unions of two observed supports",
            f"delta is {pairs.delta.median:.3g} in the median and {theorem.delta:.3g} at worst; A1 "
            f"needs it below 1 on all. {below_third:.1%} are below 1/3, where classical recovery "
            "results apply.",
        ),
        Assumption(
            "A2",
            "rich supports",
            "not refuted" if all_rich else "not estimable",
            f"{rich.n_examined:,} of {n_latents:,} latents, {rich.n_pairs_examined:,} of "
            f"{math.comb(n_latents, 2):,} pairs",
            f"{rich.n_isolated:,} latents are isolated by two samples that share nothing else, "
            f"{rich.n_pairs_separated:,} pairs are separated; {rich.n_rarely_seen:,} latents are "
            "active in fewer than two samples.",
        ),
        Assumption(
            "A3",
            "small error",
            condition(theorem, diverse),
            f"{n_samples:,} samples, zeta from {of_supports}",
            f"the largest error is {theorem.epsilon:.3g} of |x - b|; A3 needs less than "
            f"{theorem.largest_epsilon:.3g} (with {zeta_text}, delta = {theorem.delta:.3g}, "
            f"k = {theorem.k}).",
        ),
        Assumption(
            "A4",
            "diverse codes",
            "not estimable"
            if diverse.zeta is None
            else ("not refuted" if diverse.zeta > 0 else "refuted"),
            of_supports,
            (
                f"none of {diverse.n_supports:,} distinct supports occurs as often as it has "
                "latents."
                if diverse.zeta is None
                else f"zeta = {diverse.zeta:.3g} over the supports that occur as often as they "
                "have latents."
            ),
        ),
        Assumption(
            "A5",
            "bounded data",
            "not refuted",
            f"{n_samples:,} of {n_samples:,} samples",
            "met by taking every activation at |x - b| = 1; in its own units the largest is "
            f"{norm_spread:.3g} times the median.",
        ),
        Assumption(
            "A6",
            "least-squares codes",
            "not refuted" if least_squares.p95 <= _LEAST_SQUARES_TOLERANCE else "refuted",
            f"{least_squares.n:,} of {n_samples:,} samples",
            f"codes are {least_squares.median:.3g} (median) and {least_squares.p95:.3g} (95%) of "
            "their norm away from the least-squares coefficients on their support; A6 needs 0, "
            f"and up to {_LEAST_SQUARES_TOLERANCE:.0%} passes here.",
        ),
    ]


def condition(theorem: Theorem, *diversities: Diversity) -> Verdict:
    """A3, the theorem's condition. Zeta is the smallest over all supports: what some of them show
    is an upper bound, with which the condition can be refuted and not be met."""
    if not theorem.holds:
        return "refuted"
    return "not refuted" if all(d.is_complete for d in diversities) else "not estimable"
