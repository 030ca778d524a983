"""Matching the atoms of two dictionaries up to permutation and sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class DictionaryMatch:
    """A one-to-one matching: atom `index_a[i]` of A goes with `sign[i] *` atom `index_b[i]` of B.

    It has as many pairs as the smaller dictionary has atoms, ordered by `index_a`.
    """

    index_a: Int[torch.Tensor, " pairs"]
    index_b: Int[torch.Tensor, " pairs"]
    sign: Float[torch.Tensor, " pairs"]
    """+1 or -1."""
    abs_cosine: Float[torch.Tensor, " pairs"]

    @property
    def dcs(self) -> float:
        """Dictionary cosine similarity: the mean |cosine| over the pairs (paper 1, section 4)."""
        return self.abs_cosine.mean().item()


@torch.no_grad()
def match_dictionaries(
    W_dec_a: Float[torch.Tensor, "d_sae_a d_in"], W_dec_b: Float[torch.Tensor, "d_sae_b d_in"]
) -> DictionaryMatch:
    """Match two dictionaries by the largest total |cosine| (Hungarian algorithm).

    Atoms need not have unit norm; an all-zero atom has cosine 0 with everything. Dictionaries of
    different size are matched on the smaller one. The result lies on the CPU.

    Raises:
        ValueError: The atoms have different dimensions, or hold NaN or Inf.
    """
    if W_dec_a.ndim != 2 or W_dec_b.ndim != 2 or W_dec_a.shape[1] != W_dec_b.shape[1]:
        raise ValueError(
            "dictionaries must be [d_sae, d_in] with the same d_in, got shapes "
            f"{tuple(W_dec_a.shape)} and {tuple(W_dec_b.shape)}"
        )
    atoms_a, atoms_b = (
        torch.nn.functional.normalize(w.detach().to("cpu", torch.float32), dim=-1)
        for w in (W_dec_a, W_dec_b)
    )
    cosine = atoms_a @ atoms_b.T
    if not cosine.isfinite().all():
        raise ValueError("a dictionary holds NaN or Inf")
    rows, columns = linear_sum_assignment(cosine.abs().numpy(), maximize=True)
    index_a, index_b = torch.from_numpy(rows), torch.from_numpy(columns)
    matched = cosine[index_a, index_b]
    sign = torch.where(matched < 0, -1.0, 1.0)
    # rounding may leave a cosine just above 1
    return DictionaryMatch(index_a, index_b, sign, matched.abs().clamp(max=1))
