"""New work for latents that explain nothing of their own.

With noiseless data the error that stays is that of concepts which have no latent of their own,
while other latents are dead or repeat one another. Either no latent fires for such a concept, or it
is merged with another: one latent lies between the two and fires for both, and what it leaves over
is their difference. Both show as directions that many residuals share.

So idle latents are placed on such directions, found by thresholding and residual means (Schnass
2018, 'Convergence radius and sample complexity of ITKM algorithms', section 4): a residual is taken
as a first guess, and replaced by the mean of those residuals that it fits best, a few times over.
Where one latent fires in most of them it is a merged one, and its share is added: what is then
left is one of its concepts.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch.nn.functional import normalize

_DUPLICATE_COSINE = 0.9
_BLOCK = 4096
"""Atoms that are compared with all others at once."""
_N_ITERATIONS = 5
_FEWEST_MEMBERS = 4
_MOST_MOVES = 256
_LEAST_STAY = 16
"""No more than one latent in this many moves at once: the others have to make room."""


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


def unexplained(
    residual: Float[torch.Tensor, "batch d_in"],
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    signed: bool,
    n_directions: int,
) -> tuple[Float[torch.Tensor, "n_directions d_in"], Float[torch.Tensor, " n_directions"]]:
    """Directions that many residuals share, the strongest first, and the squared error in each."""
    d_sae, k = len(dictionary), indices.shape[1]
    worst = residual.pow(2).sum(-1).topk(n_directions).indices
    direction = normalize(residual[worst], dim=-1)
    # as often as a latent fires on average
    n_members = min(max(_FEWEST_MEMBERS, len(residual) * k // d_sae), len(residual))
    for _ in range(_N_ITERATIONS):
        fit = direction @ residual.T
        members = (fit.abs() if signed else fit).topk(n_members, sorted=False).indices
        code = fit.gather(-1, members)
        direction = normalize(torch.zeros_like(fit).scatter_(-1, members, code) @ residual, dim=-1)
    firing = indices[members].flatten(1)
    counts = residual.new_zeros(n_directions, d_sae).scatter_add_(
        -1, firing, torch.ones_like(firing, dtype=residual.dtype)
    )
    count, merged = counts.max(-1)
    is_merged = count > n_members / 2
    their_code = (values[members] * (indices[members] == merged[:, None, None])).sum(-1)
    their_code = their_code * is_merged[:, None]
    # the two concepts of a merged latent leave residuals of opposite sign for codes of equal sign
    side = code.sign() * their_code.sign()
    side = side * (side * code.abs()).sum(-1, keepdim=True).sign()
    kept = torch.where(is_merged[:, None], (side > 0).to(code.dtype), 1.0) * code.sign()
    whole = residual[members] + their_code[..., None] * dictionary[merged][:, None]
    split = normalize((kept[..., None] * whole).sum(1), dim=-1)
    direction = torch.where(is_merged[:, None], split, direction)
    return direction, code.pow(2).sum(-1)


def take_over(
    idle: Bool[torch.Tensor, " d_sae"],
    residual: Float[torch.Tensor, "batch d_in"],
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    signed: bool,
) -> tuple[Float[torch.Tensor, "d_sae d_in"], Bool[torch.Tensor, " d_sae"]]:
    """Where idle latents go."""
    n_directions = min(_MOST_MOVES, max(1, len(dictionary) // _LEAST_STAY), len(residual))
    direction, strength = unexplained(residual, indices, values, dictionary, signed, n_directions)
    strongest = strength.argsort(descending=True)
    direction = direction[strongest]
    cosine = direction @ dictionary.T
    known = (((cosine.abs() if signed else cosine) > _DUPLICATE_COSINE) & ~idle).any(-1)
    new = ~known & ~duplicates(direction, signed) & (direction.norm(dim=-1) > 0.5)
    # the i-th idle latent gets the i-th new direction
    order = (~new).to(torch.uint8).argsort(stable=True)
    direction = direction[order]
    rank = idle.cumsum(0) - 1
    moves = idle & (rank < new.sum())
    return direction[rank.clamp(0, n_directions - 1)], moves


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
