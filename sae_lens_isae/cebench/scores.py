"""The scores of CE-bench, CE_total = C + I - 0.25 S, and the health of the dictionary.

A story is the mean of its tokens' codes, V1 and V2 for the two stories of a pair. Gulko et al.
leave open how these are normalised, and their code does otherwise than their text. Here scores are
between 0 and 1. So are those of 'Diagnosing and Fixing Latent Recovery in Sparse Autoencoders',
which does not say how: do not compare levels.

- C of a pair is the largest |V1 - V2| of a latent, with V1 and V2 brought to [0, 1] by their common
  smallest and largest entry. The published code divides by a standard deviation over latents.
- I of a pair is the largest |I1 - I_avg|, I1 = V1 + V2, I_avg its mean over all pairs, brought to
  [0, 1] together in the same way. In the published code I_avg is 0 by a slip.
- S is the mean share of active latents.

Codes with signs are unfolded to [relu(z), relu(-z)] first: a mean would cancel a latent that fires
with both signs, and 0 would not be the smallest entry. S stays that of the SAE's own latents.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE

from sae_lens_isae.cebench.stories import StoryActivations
from sae_lens_isae.identifiability.dictionary import Health, measure_health
from sae_lens_isae.identifiability.latents import LatentCounts
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.signs import CodeForm, has_signed_codes, unfold_signs

ALPHA = 0.25
"""Weight of the sparsity."""


@dataclass(frozen=True, kw_only=True)
class CEBench:
    """Scores of an SAE on pairs of stories."""

    contrastive: float
    independence: float
    sparsity: float
    health: Health
    by_subject: dict[str, tuple[float, float]]
    """Contrastive and independence of the pairs of a subject."""

    @property
    def total(self) -> float:
        """C + I - 0.25 S."""
        return self.contrastive + self.independence - ALPHA * self.sparsity


@torch.no_grad()
def ce_bench(sae: SAE[Any], stories: StoryActivations, form: CodeForm = "non_negative") -> CEBench:
    """Score an SAE.

    Args:
        form: `as_is` keeps the signs of signed codes.
    """
    linear = LinearSAE(sae)
    unfolded = form == "non_negative" and has_signed_codes(linear)
    counts = LatentCounts(linear.d_sae)
    means: list[torch.Tensor] = []
    for x in stories:
        codes = linear.encode(x).codes
        counts.add(codes)
        means.append((unfold_signs(codes) if unfolded else codes).mean(0).cpu())
    first, second = torch.stack(means[0::2]), torch.stack(means[1::2])
    contrastive = largest_difference(first, second)
    together = first + second
    independence = largest_difference(together, together.mean(0).expand_as(together))
    by_subject: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair, *scores in zip(
        stories.pairs, contrastive.tolist(), independence.tolist(), strict=True
    ):
        by_subject[pair.subject].append((scores[0], scores[1]))
    return CEBench(
        contrastive=float(contrastive.mean()),
        independence=float(independence.mean()),
        sparsity=float(counts.active.sum()) / (counts.n_samples * linear.d_sae),
        health=measure_health(linear, counts),
        by_subject={
            subject: (mean(c for c, _ in scores), mean(i for _, i in scores))
            for subject, scores in by_subject.items()
        },
    )


def largest_difference(
    a: Float[torch.Tensor, "pairs f"], b: Float[torch.Tensor, "pairs f"]
) -> Float[torch.Tensor, " pairs"]:
    """Largest difference of two rows, both brought to [0, 1] by their common smallest and largest
    entry; 0 for rows that are constant and equal."""
    smallest = torch.minimum(a.amin(-1), b.amin(-1))
    span = torch.maximum(a.amax(-1), b.amax(-1)) - smallest
    return (a - b).abs().amax(-1) / span.clamp_min(torch.finfo(span.dtype).tiny)
