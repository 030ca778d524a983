"""Matching the atoms of two dictionaries up to permutation and sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.assignment import Columns, assign
from sae_lens_isae.solvers.codes import unit_atoms

_DENSE_UP_TO = 4096
"""Larger dictionaries are matched on their best candidates; scipy's dense solver takes cubic time
and, at 65,536 atoms, 34 GB."""
_QUICK_UP_TO = 16_384
_TOLERANCE, _LARGE_TOLERANCE = 1e-6, 1e-5
"""Largest `gap` that is accepted without more candidates; the smaller, the longer the bidding, most
so above `_QUICK_UP_TO` atoms."""


@dataclass(frozen=True)
class DictionaryMatch:
    """A one-to-one matching: atom `index_a[i]` of A goes with `sign[i] *` atom `index_b[i]` of B.

    It has as many pairs as the smaller dictionary has atoms that are not zero, ordered by
    `index_a`. Zero atoms have no direction and no partner.
    """

    index_a: Int[torch.Tensor, " pairs"]
    index_b: Int[torch.Tensor, " pairs"]
    sign: Float[torch.Tensor, " pairs"]
    """+1 or -1."""
    cosine: Float[torch.Tensor, " pairs"]
    """Cosine of A's atom and sign times B's."""
    gap: float
    """No matching has a larger mean cosine than this one plus `gap`; 0 where the dense problem was
    solved."""

    @property
    def dcs(self) -> float:
        """Mean cosine over the pairs: dictionary cosine similarity (Nelson et al. 2026, section
        4)."""
        return self.cosine.mean().item()


@torch.no_grad()
def match_dictionaries(
    W_dec_a: Float[torch.Tensor, "d_sae_a d_in"],
    W_dec_b: Float[torch.Tensor, "d_sae_b d_in"],
    *,
    signed: bool = False,
) -> DictionaryMatch:
    """Match two dictionaries one to one by the largest total |cosine| (Hungarian algorithm).

    Atoms need not have unit norm; zero atoms are left out. Dictionaries of different size are
    matched on the smaller one. Where atoms repeat, several matchings are equally good (see `ties`).
    Cosines are computed where the dictionaries are, in blocks; the result lies on the CPU. Above
    4,096 atoms an auction works on the best candidates of each atom, and `gap` certifies how far
    from the best the result can be.

    Args:
        signed: Maximise the cosine itself, with all signs +1: what Song et al. 2025 average as the
            pairwise mean correlation coefficient (MCC).

    Raises:
        InputError: The atoms have different dimensions, hold NaN or Inf, or are all zero.

    Examples:
        >>> atoms = torch.eye(3)
        >>> match = match_dictionaries(atoms, -atoms[[2, 0, 1]])
        >>> match.index_b.tolist(), match.sign.tolist(), match.dcs
        ([1, 2, 0], [-1.0, -1.0, -1.0], 1.0)
    """
    if W_dec_a.ndim != 2 or W_dec_b.ndim != 2 or W_dec_a.shape[1] != W_dec_b.shape[1]:
        raise InputError(
            "dictionaries must be [d_sae, d_in] with the same d_in, got shapes "
            f"{tuple(W_dec_a.shape)} and {tuple(W_dec_b.shape)}"
        )
    atoms_a = unit_atoms(W_dec_a.float())
    atoms_b = unit_atoms(W_dec_b.to(atoms_a))
    if not (atoms_a.isfinite().all() and atoms_b.isfinite().all()):
        raise InputError("a dictionary holds NaN or Inf")
    there_a, there_b = ((atoms != 0).any(-1).nonzero()[:, 0] for atoms in (atoms_a, atoms_b))
    if not len(there_a) or not len(there_b):
        raise InputError("all atoms of a dictionary are zero")
    if len(there_a) <= len(there_b):
        index_a, index_b, gap = _matched_rows(atoms_a[there_a], atoms_b[there_b], signed)
    else:
        index_b, index_a, gap = _matched_rows(atoms_b[there_b], atoms_a[there_a], signed)
    index_a, index_b = there_a.cpu()[index_a], there_b.cpu()[index_b]
    order = index_a.argsort()
    index_a, index_b = index_a[order], index_b[order]
    cosine = (atoms_a[index_a] * atoms_b[index_b]).sum(-1).cpu()
    sign = torch.ones_like(cosine) if signed else torch.where(cosine < 0, -1.0, 1.0)
    # rounding may leave a cosine just above 1
    return DictionaryMatch(index_a, index_b, sign, (sign * cosine).clamp(-1, 1), gap)


def _matched_rows(
    few: Float[torch.Tensor, "few d_in"], many: Float[torch.Tensor, "many d_in"], signed: bool
) -> tuple[Int[torch.Tensor, " few"], Int[torch.Tensor, " few"], float]:
    """Indices of the pairs, and how much larger the mean of any other matching can be."""
    if len(many) <= _DENSE_UP_TO:
        cosine = (few @ many.T).cpu().numpy()
        rows, columns = linear_sum_assignment(cosine if signed else np.abs(cosine), maximize=True)
        return torch.from_numpy(rows), torch.from_numpy(columns), 0.0

    def scores(
        rows: Int[torch.Tensor, " some"], columns: Columns
    ) -> Float[torch.Tensor, "some others"]:
        cosine = few[rows.to(few.device)] @ many[columns].T
        return cosine if signed else cosine.abs_()

    found = assign(
        scores,
        len(few),
        len(many),
        floor=-1.0 if signed else 0.0,
        tolerance=_TOLERANCE if len(many) <= _QUICK_UP_TO else _LARGE_TOLERANCE,
    )
    gap = max(0.0, found.bound - found.total) / len(few)
    return torch.arange(len(few)), found.columns, gap
