"""New directions for latents that explain nothing by themselves.

With noiseless data the error that stays is that of concepts which have no latent, while other
latents are dead or repeat one another. Either no latent fires for such a concept, or it is merged
with another: one latent lies between the two, fires for both, and leaves their difference over.
Both show as directions that many residuals share.

Idle latents are placed on such directions. They are found by thresholding and residual means
(Schnass 2018, 'Convergence radius and sample complexity of ITKM algorithms for dictionary
learning'): a first guess is replaced by the mean of those residuals that it fits best, a few times
over. A single residual would not do: at k = 40 it is a sum of many concepts, and a latent that is
set on it dies again.
"""

from __future__ import annotations

from typing import NamedTuple

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


class SharedDirections(NamedTuple):
    """Directions that many residuals share."""

    direction: Float[torch.Tensor, "directions d_in"]
    """Unit vectors; zero where nothing is left over."""
    members: Int[torch.Tensor, "directions members"]
    """The residuals that a direction is the mean of."""
    fit: Float[torch.Tensor, "directions members"]
    """Their weights in it: inner products with the direction before the last iteration."""


def shared_directions(
    residual: Float[torch.Tensor, "batch d_in"], signed: bool, n_directions: int, n_members: int
) -> SharedDirections:
    """Means of residuals that fit together, each started at one of the largest residuals.

    Args:
        signed: A residual may fit by its opposite.
        n_directions: At most as many as there are residuals, like `n_members`.
    """
    largest = residual.pow(2).sum(-1).topk(n_directions).indices
    shared = _refined(normalize(residual[largest], dim=-1), residual, signed, n_members)
    for _ in range(_N_ITERATIONS - 1):
        shared = _refined(shared.direction, residual, signed, n_members)
    return shared


def _refined(
    direction: torch.Tensor, residual: torch.Tensor, signed: bool, n_members: int
) -> SharedDirections:
    products = direction @ residual.T
    ranked = products.abs() if signed else products
    members = ranked.topk(n_members, sorted=False).indices
    fit = products.gather(-1, members)
    fit = fit if signed else fit.relu()
    weights = torch.zeros_like(products).scatter_(-1, members, fit)
    return SharedDirections(normalize(weights @ residual, dim=-1), members, fit)


class SplitDirections(NamedTuple):
    """Directions for idle latents, after merged latents were taken apart."""

    direction: Float[torch.Tensor, "directions d_in"]
    latent: Int[torch.Tensor, " directions"]
    """Which latent fires for most members."""
    is_merged: Bool[torch.Tensor, " directions"]
    """Whether that one stands for two concepts, so that it may resemble `direction`."""


def split_merged(
    shared: SharedDirections,
    residual: Float[torch.Tensor, "batch d_in"],
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
) -> SplitDirections:
    """Where one latent fires for more than half of the members, a concept that it stands for.

    What such a latent and the residual make up together is one concept where its code and the fit
    have equal signs, and another where they have opposite ones. Where the latent merely codes too
    little of its own concept, all signs are equal, and that concept itself comes out.
    """
    members, fit = shared.members, shared.fit
    fires = (values[members] != 0).to(fit.dtype)
    count, latent = (
        residual.new_zeros(len(members), len(dictionary))
        .scatter_add_(-1, indices[members].flatten(1), fires.flatten(1))
        .max(-1)
    )
    code = (values[members] * (indices[members] == latent[:, None, None])).sum(-1)
    whole = residual[members] + code[..., None] * dictionary[latent][:, None]
    side = (code * fit).sign()
    side = side * (side * fit.abs()).sum(-1, keepdim=True).sign()
    of_one = fit.sign() * (side > 0)
    concept = normalize((of_one[..., None] * whole).sum(1), dim=-1)
    n_members = members.shape[1]
    fires_for_most = 2 * count > n_members
    return SplitDirections(
        direction=torch.where(fires_for_most[:, None], concept, shared.direction),
        latent=latent,
        is_merged=fires_for_most & (4 * (side < 0).sum(-1) >= n_members),
    )


def choose_moves(
    idle: Bool[torch.Tensor, " d_sae"],
    residual: Float[torch.Tensor, "batch d_in"],
    indices: Int[torch.Tensor, "batch k"],
    values: Float[torch.Tensor, "batch k"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    signed: bool,
) -> tuple[Float[torch.Tensor, "d_sae d_in"], Bool[torch.Tensor, " d_sae"]]:
    """Where idle latents go, the first of them where most is left unexplained.

    How many are idle is never looked at, which would make the host wait.

    Args:
        residual: What the codes leave over. Samples must be on one scale.
        indices: Of the codes.
        values: Of the codes, on the scale of `residual`.
        dictionary: Atoms with unit norm.
        signed: Codes have signs.

    Returns:
        A unit vector for every latent, and which latents are to move to theirs: idle ones, as far
        as there are directions that no latent at work has yet.
    """
    # residuals are in float32, even those of an SAE in half precision
    dictionary = dictionary.to(residual.dtype)
    d_sae, batch = len(dictionary), len(residual)
    n_directions = min(_MOST_MOVES, max(1, d_sae // _LEAST_STAY), batch)
    # the number of samples that a latent has on average
    n_members = min(max(_FEWEST_MEMBERS, indices.numel() // d_sae), batch)
    shared = shared_directions(residual, signed, n_directions, n_members)
    strongest = shared.fit.pow(2).sum(-1).argsort(descending=True)
    shared = SharedDirections(*(part[strongest] for part in shared))
    direction, latent, is_merged = split_merged(shared, residual, indices, values, dictionary)
    cosine = direction @ dictionary.T
    known = ((cosine.abs() if signed else cosine) > _DUPLICATE_COSINE) & ~idle
    known[torch.arange(n_directions, device=latent.device), latent] &= ~is_merged
    new = ~known.any(-1) & ~duplicates(direction, signed) & (direction.norm(dim=-1) > 0)
    direction = direction[new.logical_not().to(torch.uint8).argsort(stable=True)]
    rank = idle.cumsum(0) - 1
    return direction[rank.clamp(0, n_directions - 1)], idle & (rank < new.sum())


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
