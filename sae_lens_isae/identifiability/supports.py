"""What Theorem 3.6 asks of the observed supports: conditioning, richness, diversity, least squares.

Supports are rows of indices with a mask, since architectures without k have as many active latents
as they like.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from sae_lens_isae.ops.sparse import sum_rows
from sae_lens_isae.solvers.codes import SparseCodes

_EIGEN_BUDGET = 4e10
"""Sum of size^3 over the supports whose eigenvalues are computed: up to a minute on two cores."""
_MIN_SUPPORTS = 16
_GATHERED_NUMBERS = 2**26
_SAMPLES_PER_LATENT = 64


@dataclass(frozen=True)
class Supports:
    """Sets of latents: in each row the entries of `indices` that `used` marks, all distinct."""

    indices: Int[torch.Tensor, "supports width"]
    used: Bool[torch.Tensor, "supports width"]

    @classmethod
    def of_codes(cls, codes: SparseCodes) -> Supports:
        """The non-zero latents of each code."""
        return cls(codes.indices, codes.values != 0)

    @property
    def sizes(self) -> Int[torch.Tensor, " supports"]:
        """Number of latents in each."""
        return self.used.sum(-1)

    def pick(self, rows: Int[torch.Tensor, " picked"]) -> Supports:
        """Some of the supports."""
        return Supports(self.indices[rows], self.used[rows])

    def union(self, other: Supports) -> Supports:
        """Row by row, S | S'."""
        indices = torch.cat([self.indices, other.indices], -1)
        used = torch.cat([self.used, other.used], -1)
        # unused places sort to the end; of two equal neighbours the second is dropped
        ordered = indices.masked_fill(~used, torch.iinfo(torch.long).max).sort(-1).values
        fresh = torch.ones_like(used)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        fresh &= ordered != torch.iinfo(torch.long).max
        return Supports(ordered.masked_fill(~fresh, 0), fresh)

    def to_matrix(self, d_sae: int) -> csr_array:
        """One row per support, 1 where a latent is in it."""
        used = self.used.cpu()
        columns = self.indices.cpu()[used].numpy()
        starts = np.concatenate([[0], used.sum(-1).cumsum(0).numpy()])
        return csr_array(
            (np.ones(len(columns), dtype=np.int32), columns, starts), shape=(len(used), d_sae)
        )


def n_affordable(size: int, d_in: int, wanted: int) -> int:
    """How many supports of this size have their eigenvalues computed."""
    cost = float(max(1, min(size, d_in))) ** 3
    return int(min(wanted, max(_MIN_SUPPORTS, _EIGEN_BUDGET // cost)))


@torch.no_grad()
def conditioning(
    atoms: Float[torch.Tensor, "d_sae d_in"], supports: Supports
) -> tuple[Float[torch.Tensor, " supports"], Float[torch.Tensor, " supports"]]:
    """delta_S = max |lambda_i - 1| and R_aRIP(S) = mean (lambda_i - 1)^2 of every support.

    lambda are the eigenvalues of the Gram matrix of the unit-norm atoms in S. More atoms than
    dimensions are dependent: then delta_S >= 1.

    Args:
        atoms: With unit norm.
    """
    d_in = atoms.shape[1]
    width = supports.indices.shape[1]
    deltas: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    for rows in torch.arange(len(supports.indices)).split(
        max(1, _GATHERED_NUMBERS // max(1, width * d_in))
    ):
        some = supports.pick(rows.to(supports.indices.device))
        used = some.used.to(atoms.dtype)
        chosen = atoms[some.indices] * used[..., None]
        if width <= d_in:
            # unused places get the eigenvalue 1, which deviates by nothing
            deviation = torch.linalg.eigvalsh(chosen @ chosen.mT + torch.diag_embed(1 - used)) - 1
            delta, total = deviation.abs().amax(-1), deviation.square().sum(-1)
        else:
            delta, total = _from_frame_operator(chosen, some.sizes)
        deltas.append(delta)
        means.append(total / some.sizes.clamp_min(1))
    empty = torch.zeros(0, device=atoms.device)
    return torch.cat([*deltas, empty]), torch.cat([*means, empty])


def _from_frame_operator(
    chosen: Float[torch.Tensor, "supports width d_in"], size: Int[torch.Tensor, " supports"]
) -> tuple[Float[torch.Tensor, " supports"], Float[torch.Tensor, " supports"]]:
    """Largest |lambda - 1| and sum of (lambda - 1)^2 where the Gram matrix would be the larger one.

    The frame operator D_S D_S^T has its non-zero eigenvalues; atoms in excess of d_in add zeros.
    """
    d_in = chosen.shape[2]
    deviation = torch.linalg.eigvalsh(chosen.mT @ chosen) - 1
    # ascending: a support with fewer atoms than dimensions leaves zeros that are not its own
    place = torch.arange(d_in, device=deviation.device)
    foreign = place < (d_in - size.clamp_max(d_in))[:, None]
    delta = deviation.abs().masked_fill(foreign, 0).amax(-1)
    total = deviation.square().masked_fill(foreign, 0).sum(-1)
    excess = (size - d_in).clamp_min(0)
    return torch.where(excess > 0, delta.clamp_min(1), delta), total + excess


@dataclass(frozen=True)
class Richness:
    """Assumption 3.4, as far as these samples show it."""

    n_examined: int
    """Latents looked at, all of which are active in two samples or more."""
    n_isolated: int
    """Of these, latents i for which two samples have supports that share i and nothing else."""
    n_pairs_examined: int
    n_pairs_separated: int
    """Pairs i, j for which two samples have disjoint supports, one with i, the other with j."""
    n_rarely_seen: int
    """Latents that fewer than two samples activate."""
    n_latents: int
    """All there are."""


def richness(supports: Supports, d_sae: int, n_examined: int, seed: int) -> Richness:
    """Look for the samples that assumption 3.4 asks for, among some of each latent's."""
    rng = np.random.default_rng(seed)
    matrix = supports.to_matrix(d_sae)
    by_latent = matrix.tocsc()
    counts = np.diff(by_latent.indptr)
    often = np.flatnonzero(counts >= 2)
    chosen = rng.permutation(often)[:n_examined]

    def samples_of(latent: int) -> csr_array:
        rows = by_latent.indices[by_latent.indptr[latent] : by_latent.indptr[latent + 1]]
        return matrix[rng.permutation(rows)[:_SAMPLES_PER_LATENT]]

    n_isolated = 0
    for latent in chosen:
        some = samples_of(int(latent))
        n_isolated += bool(((some @ some.T).toarray() == 1).any())
    n_separated = n_pairs = 0
    if len(often) >= 2:
        for latent in chosen:
            other = int(rng.choice(often))
            if other == latent:
                continue
            shared = (samples_of(int(latent)) @ samples_of(other).T).toarray()
            n_pairs += 1
            n_separated += bool((shared == 0).any())
    return Richness(
        n_examined=len(chosen),
        n_isolated=n_isolated,
        n_pairs_examined=n_pairs,
        n_pairs_separated=n_separated,
        n_rarely_seen=int((counts < 2).sum()),
        n_latents=d_sae,
    )


@dataclass(frozen=True)
class Diversity:
    """Assumption 3.5 (A4), as far as these samples show it."""

    n_supports: int
    """Distinct supports."""
    n_estimable: int
    """Supports that as many samples share as they have latents."""
    zeta: float | None
    """Smallest singular value over those, each with its best-conditioned samples; None where no
    support is estimable. Over all supports it can only be smaller."""

    @property
    def is_complete(self) -> bool:
        """Whether every distinct support is estimable."""
        return self.zeta is not None and self.n_estimable == self.n_supports


def diversity(codes: SparseCodes) -> Diversity:
    """Estimate zeta from samples that share their support."""
    supports = Supports.of_codes(codes)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (indices, used) in enumerate(
        zip(supports.indices.cpu().numpy(), supports.used.cpu().numpy(), strict=True)
    ):
        groups[tuple(np.sort(indices[used]).tolist())].append(i)
    smallest: list[float] = []
    n_supports = 0
    for support, members in groups.items():
        n_supports += bool(support)
        if not support or len(members) < len(support):
            continue
        dense = SparseCodes(codes.indices[members], codes.values[members], codes.d_sae).to_dense()
        z = dense[:, list(support)].double().cpu().numpy()
        # column pivoting picks rows of z that are far from dependent
        order = scipy.linalg.qr(z.T, mode="r", pivoting=True)[-1]
        best = z[order[: len(support)]]
        smallest.append(float(np.linalg.svd(best, compute_uv=False).min()))
    return Diversity(n_supports, len(smallest), min(smallest) if smallest else None)


@torch.no_grad()
def least_squares_gap(
    atoms: Float[torch.Tensor, "d_sae d_in"],
    codes: SparseCodes,
    target: Float[torch.Tensor, "samples d_in"],
) -> tuple[Float[torch.Tensor, " samples"], Float[torch.Tensor, " samples"]]:
    """How far codes are from the least-squares solution on their own support (A6).

    Returns:
        |z - z_LS| / |z|, and the share of the squared error that least squares removes.
    """
    used = (codes.values != 0).to(atoms.dtype)
    residual = sum_rows(atoms, codes.indices, codes.values, minuend=target)
    chosen = atoms[codes.indices] * used[..., None]
    # the pseudoinverse also serves supports whose atoms depend on each other
    change = (torch.linalg.pinv(chosen.double().mT) @ residual.double()[..., None])[..., 0]
    norm = codes.values.norm(dim=-1).clamp_min(torch.finfo(atoms.dtype).tiny)
    removed = residual.double() - (change[:, None] @ chosen.double())[:, 0]
    before = residual.square().sum(-1)
    share = torch.where(before > 0, 1 - removed.square().sum(-1) / before.double(), 0.0)
    return (change.norm(dim=-1) / norm).float(), share.float()
