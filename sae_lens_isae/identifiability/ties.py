"""Atoms that occur more than once in a dictionary, and which of them go with which.

Where several latents have the same direction, many matchings of two dictionaries have the same
total cosine, and which one a solver returns depends on the order of the latents. IoU and l2 would
depend on it too. Here the codes decide: of all matchings with the largest total cosine the one is
taken under which the codes agree best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from sae_lens_isae.identifiability.matching import DictionaryMatch
from sae_lens_isae.solvers.codes import unit_atoms

_SAME_WITHIN = 1e-5
"""Distance of two unit vectors below which they are one direction; rounding is about 1e-7."""
_N_PROJECTIONS = 6
_SHARE_OF_CODES = 1e-5
"""What the agreement of codes may add to the total cosine of a block: it decides between equals."""


@dataclass(frozen=True)
class Directions:
    """Which atoms of a dictionary have the same direction."""

    group: Int[torch.Tensor, " d_sae"]
    """Number of each atom's direction; the first of equal atoms stands for all."""
    first: Int[torch.Tensor, " groups"]
    """The first atom of each direction."""

    @classmethod
    def all_different(cls, n: int) -> Directions:
        """Of a dictionary in which nothing is to be taken as equal."""
        return cls(torch.arange(n), torch.arange(n))

    @property
    def n_repeated(self) -> int:
        """Atoms whose direction an earlier one has."""
        return len(self.group) - len(self.first)


def directions(atoms: Float[torch.Tensor, "d_sae d_in"], *, up_to_sign: bool) -> Directions:
    """Group the unit-norm atoms of a dictionary by direction; a zero atom is one of its own.

    Args:
        up_to_sign: Opposite directions are one.
    """
    # norms that are 1 in float32 only would blur the comparison
    points = unit_atoms(atoms.double()).cpu().numpy()
    n, d_in = points.shape
    if up_to_sign:
        leading = np.take_along_axis(points, np.abs(points).argmax(1)[:, None], 1)
        points = points * np.where(leading < 0, -1.0, 1.0)
    zero = ~points.any(1)
    # exact copies first: there may be thousands of one atom
    _, representative, copy_of = np.unique(points, axis=0, return_index=True, return_inverse=True)
    distinct = points[representative]
    basis = np.linalg.qr(
        np.random.default_rng(0).standard_normal((d_in, min(d_in, _N_PROJECTIONS)))
    )[0]
    low = distinct @ basis
    # the sign of the largest entry may differ between near copies
    low = np.concatenate([low, -low]) if up_to_sign else low
    pairs = KDTree(low).query_pairs(_SAME_WITHIN, output_type="ndarray") % len(distinct)
    cosine = np.einsum("pi,pi->p", distinct[pairs[:, 0]], distinct[pairs[:, 1]])
    cosine = np.abs(cosine) if up_to_sign else cosine
    # |u - v|^2 = 2 - 2 cos
    near = pairs[2 - 2 * cosine <= _SAME_WITHIN**2]
    graph = coo_array(
        (np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(distinct), len(distinct))
    )
    labels = connected_components(graph, directed=False)[1][copy_of.reshape(-1)]
    labels = np.where(zero, labels.max(initial=0) + 1 + np.arange(n), labels)
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return Directions(torch.from_numpy(group.reshape(-1)), torch.from_numpy(first))


@dataclass
class _Block:
    """Latents of A and of B that may go with each other in several equally good ways."""

    a: Int[torch.Tensor, " of_a"]
    b: Int[torch.Tensor, " of_b"]
    cosine: Float[torch.Tensor, "of_a of_b"]
    """Equal for equal directions, to the last bit."""
    product: Float[torch.Tensor, "of_a of_b"]
    """Sum of the products of the codes."""
    energy: float = 0.0


class TieBreaker:
    """Chooses between the matchings of two dictionaries that have the same total cosine."""

    def __init__(
        self,
        match: DictionaryMatch,
        atoms_a: Float[torch.Tensor, "d_sae_a d_in"],
        atoms_b: Float[torch.Tensor, "d_sae_b d_in"],
        directions_a: Directions,
        directions_b: Directions,
        *,
        signed: bool,
    ) -> None:
        """
        Args:
            signed: The match maximises the cosine itself.
        """
        self._match = match
        self._signed = signed
        self._blocks = [
            _Block(a, b, self._cosines(a, b, atoms_a, atoms_b, directions_a, directions_b), product)
            for a, b in _components(match, directions_a, directions_b)
            for product in [torch.zeros(len(a), len(b), dtype=torch.float64)]
        ]

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to choose."""
        return bool(self._blocks)

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """See a batch of codes of both SAEs."""
        for block in self._blocks:
            of_a = a[:, block.a.to(a.device)].double()
            of_b = b[:, block.b.to(b.device)].double().to(of_a.device)
            block.product += (of_a.T @ of_b).cpu()
            block.energy += float(of_a.square().sum() + of_b.square().sum()) / 2

    def resolve(self) -> DictionaryMatch:
        """The matching under which the codes seen so far agree best."""
        partner = dict(zip(self._match.index_a.tolist(), self._match.index_b.tolist(), strict=True))
        cosine = dict(
            zip(
                self._match.index_a.tolist(),
                (self._match.sign * self._match.cosine).tolist(),
                strict=True,
            )
        )
        for block in self._blocks:
            aligned = block.product * block.cosine.sign()
            score = block.cosine if self._signed else block.cosine.abs()
            if block.energy > 0:
                score = score + _SHARE_OF_CODES * aligned / block.energy
            rows, columns = linear_sum_assignment(score.numpy(), maximize=True)
            for latent in block.a.tolist():
                partner.pop(latent, None)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                latent = int(block.a[row])
                partner[latent] = int(block.b[column])
                cosine[latent] = float(block.cosine[row, column])
        index_a = torch.tensor(sorted(partner))
        index_b = torch.tensor([partner[i] for i in index_a.tolist()])
        found = torch.tensor([cosine[i] for i in index_a.tolist()])
        sign = torch.where(found < 0, -1.0, 1.0)
        if self._signed:
            sign = torch.ones_like(found)
        return DictionaryMatch(index_a, index_b, sign, sign * found, self._match.gap)

    def _cosines(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        atoms_a: torch.Tensor,
        atoms_b: torch.Tensor,
        directions_a: Directions,
        directions_b: Directions,
    ) -> Float[torch.Tensor, "of_a of_b"]:
        group_a, place_a = directions_a.group[a].unique(return_inverse=True)
        group_b, place_b = directions_b.group[b].unique(return_inverse=True)
        first_a = atoms_a.cpu().double()[directions_a.first[group_a]]
        first_b = atoms_b.cpu().double()[directions_b.first[group_b]]
        between = (first_a @ first_b.T).clamp(-1, 1)[place_a][:, place_b]
        # an atom may be the opposite of the one that stands for its direction
        side_a = _side(atoms_a.cpu()[a], first_a[place_a])
        side_b = _side(atoms_b.cpu()[b], first_b[place_b])
        return between * side_a[:, None] * side_b


def _side(
    atoms: Float[torch.Tensor, "some d_in"], first: Float[torch.Tensor, "some d_in"]
) -> Float[torch.Tensor, " some"]:
    return torch.where((atoms.double() * first).sum(-1) < 0, -1.0, 1.0).double()


def _components(
    match: DictionaryMatch, directions_a: Directions, directions_b: Directions
) -> list[tuple[Int[torch.Tensor, " of_a"], Int[torch.Tensor, " of_b"]]]:
    """Latents that are linked by a pair of the matching or by a common direction, where there is a
    choice between them."""
    n_a, n_b = len(directions_a.first), len(directions_b.first)
    if not directions_a.n_repeated and not directions_b.n_repeated:
        return []
    rows = directions_a.group[match.index_a].numpy()
    columns = n_a + directions_b.group[match.index_b].numpy()
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_a + n_b, n_a + n_b))
    component = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    of_a, of_b = component[directions_a.group], component[n_a + directions_b.group]
    size_a, size_b = (of.bincount(minlength=int(component.max()) + 1) for of in (of_a, of_b))
    choices = ((size_a > 1) | (size_b > 1)) & (size_a > 0) & (size_b > 0)
    return [
        ((of_a == number).nonzero()[:, 0], (of_b == number).nonzero()[:, 0])
        for number in choices.nonzero()[:, 0].tolist()
    ]
