"""New work for latents that explain nothing of their own.

With noiseless data the error that stays is that of concepts which have no latent. They are
merged: one latent lies between two concepts that resemble each other and fires for both, while some
other latent is dead, or repeats a third one. A dead latent that is pointed at a residual dies
again, since the residual of such a sample is the difference of the two concepts and no concept
itself. So an idle latent takes over from the latent whose samples are explained worst: it starts at
what that latent should have added to a sample, which is one of the concepts it stands for.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float

_DUPLICATE_COSINE = 0.9
_BLOCK = 4096
"""Atoms that are compared with all others at once."""


def duplicates(
    dictionary: Float[torch.Tensor, "d_sae d_in"], signed: bool
) -> Bool[torch.Tensor, " d_sae"]:
    """Latents whose atom nearly repeats that of one before them.

    Args:
        dictionary: Atoms with unit norm.
        signed: Codes have signs, so the opposite of an atom repeats it too.
    """
    repeats = torch.zeros(len(dictionary), dtype=torch.bool, device=dictionary.device)
    for start in range(0, len(dictionary), _BLOCK):
        block = dictionary[start : start + _BLOCK]
        cosine = block @ dictionary[: start + len(block)].T
        near = (cosine.abs() if signed else cosine) > _DUPLICATE_COSINE
        repeats[start : start + len(block)] = near.tril(start - 1).any(1)
    return repeats


def take_over(
    idle: Bool[torch.Tensor, " d_sae"],
    residual: Float[torch.Tensor, "batch d_in"],
    acts: Float[torch.Tensor, "batch d_sae"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    scale: Float[torch.Tensor, "batch 1"],
) -> tuple[Float[torch.Tensor, "d_sae d_in"], Bool[torch.Tensor, " d_sae"]]:
    """Where idle latents go: the i-th of them takes over from the i-th worst latent at work.

    A latent is as bad as the mean error of the samples that it fires on, weighted by the square of
    its code: what a merged latent leaves unexplained grows with its code. What it should have added
    to a sample is the sample without what all other latents add; of its samples the one that it is
    largest on is taken. How many latents are idle is never looked at, which would make the host
    wait.

    Args:
        residual: What the codes leave unexplained.
        acts: The codes.
        dictionary: Atoms with unit norm.
        scale: Factor per sample that makes errors and codes comparable, 1 / |x|.

    Returns:
        A unit vector for every latent, and which latents are to move to theirs: the idle ones, as
        far as there are latents at work.
    """
    error = (residual * scale).pow(2).sum(-1)
    weight = (acts * scale).pow(2)
    blame = (error @ weight) / weight.sum(0)
    # nothing to take over from idle latents, nor (0 / 0) from those that rest in this batch
    blame = torch.where(idle | blame.isnan(), -1.0, blame)
    worst_first = blame.argsort(descending=True)
    source = worst_first[(idle.cumsum(0) - 1).clamp_min(0)]
    sample = acts.abs().argmax(0)[source]
    share = acts[sample, source][:, None] * dictionary[source]
    direction = torch.nn.functional.normalize(residual[sample] + share, dim=-1)
    moves = idle & (blame[source] >= 0) & (direction.norm(dim=-1) > 0)
    return direction, moves


@torch.no_grad()
def move_latents(
    moves: Bool[torch.Tensor, " d_sae"],
    direction: Float[torch.Tensor, "d_sae d_in"],
    W_enc: Float[torch.Tensor, "d_in d_sae"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
) -> None:
    """Set atom and encoder column of the chosen latents, in place."""
    W_dec.copy_(torch.where(moves[:, None], direction, W_dec))
    W_enc.copy_(torch.where(moves, direction.T, W_enc))
