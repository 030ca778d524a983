"""Which features to trust: every latent's fate in the other SAEs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sae_lens_isae.identifiability.matching import DictionaryMatch


class LatentCounts:
    """How often and how strongly each latent of one SAE is active, over a stream of codes."""

    def __init__(self, d_sae: int) -> None:
        self.n_samples = 0
        self.active: Float[torch.Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        """Samples in which the latent is not zero."""
        self.energy: Float[torch.Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of squared codes."""
        self.magnitude: Float[torch.Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of |code|."""

    def add(self, codes: Float[torch.Tensor, "batch d_sae"]) -> None:
        """Count a batch."""
        self.n_samples += len(codes)
        self.active += (codes != 0).sum(0).cpu()
        self.energy += codes.square().sum(0).cpu()
        self.magnitude += codes.abs().sum(0).cpu()


class PairCounts:
    """How the matched latents of two SAEs act together, over a stream of codes."""

    def __init__(self, match: DictionaryMatch) -> None:
        self.match = match
        n = len(match.index_a)
        self.both: Float[torch.Tensor, " pairs"] = torch.zeros(n, dtype=torch.float64)
        """Samples in which both are active."""
        self.product: Float[torch.Tensor, " pairs"] = torch.zeros(n, dtype=torch.float64)
        """Sum of the products of their codes, signs aligned."""

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """Count a batch of codes of both SAEs."""
        paired_a = a[:, self.match.index_a.to(a.device)]
        paired_b = b.to(a.device)[:, self.match.index_b.to(a.device)]
        self.both += ((paired_a != 0) & (paired_b != 0)).sum(0).cpu()
        self.product += self.match.sign * (paired_a * paired_b).sum(0).cpu()


def latent_table(
    saes: Mapping[str, LatentCounts],
    pairs: Mapping[tuple[str, str], PairCounts],
    is_zero: Mapping[str, Bool[torch.Tensor, " d_sae"]],
    found_cosine: float,
) -> pd.DataFrame:
    """One row per SAE and latent.

    Columns: `sae`, `latent`; `zero_atom`, whose latents are found nowhere; `firing_rate`;
    `mean_magnitude` of the code where active; `n_found`, in how many other SAEs the matched atom
    has cosine `found_cosine` or more, after its sign;
    `mean_cosine` and `min_cosine` over the other SAEs; `mean_code_iou`; and for every other SAE X
    `match_X` (its latent, -1 without partner), `sign_X`, `cosine_X`, `code_iou_X` (samples in
    which both are active over those in which one is) and `code_cosine_X` (cosine of the two
    latents' codes over the samples). Agreement of codes is missing where neither latent was active.
    """
    tables = [
        _table_of(name, counts, saes, pairs, is_zero[name], found_cosine)
        for name, counts in saes.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _table_of(
    name: str,
    counts: LatentCounts,
    saes: Mapping[str, LatentCounts],
    pairs: Mapping[tuple[str, str], PairCounts],
    is_zero: Bool[torch.Tensor, " d_sae"],
    found_cosine: float,
) -> pd.DataFrame:
    d_sae = len(counts.active)
    per_other: dict[str, np.ndarray] = {}
    others: list[str] = []
    for (a, b), pair in pairs.items():
        if name not in (a, b):
            continue
        here, there = (
            (pair.match.index_a, pair.match.index_b)
            if name == a
            else (pair.match.index_b, pair.match.index_a)
        )
        other = b if name == a else a
        others.append(other)
        theirs = saes[other]
        either = counts.active[here] + theirs.active[there] - pair.both
        scale = (counts.energy[here] * theirs.energy[there]).sqrt()
        columns = {
            "match": there.double(),
            "sign": pair.match.sign.double(),
            "cosine": pair.match.cosine.double(),
            "code_iou": torch.where(either > 0, pair.both / either, torch.nan),
            "code_cosine": torch.where(scale > 0, pair.product / scale, torch.nan),
        }
        for column, values in columns.items():
            full = torch.full((d_sae,), torch.nan, dtype=torch.float64)
            full[here] = values
            per_other[f"{column}_{other}"] = full.numpy()
        per_other[f"match_{other}"] = np.nan_to_num(per_other[f"match_{other}"], nan=-1).astype(int)
    # an atom without partner was not found there: cosine 0, not missing
    cosine = np.nan_to_num(np.stack([per_other[f"cosine_{other}"] for other in others]))
    code_iou = pd.DataFrame({other: per_other[f"code_iou_{other}"] for other in others})
    active = counts.active.numpy()
    return pd.DataFrame(
        {
            "sae": name,
            "latent": np.arange(d_sae),
            "zero_atom": is_zero.cpu().numpy(),
            "firing_rate": active / counts.n_samples,
            "mean_magnitude": counts.magnitude.numpy() / np.maximum(active, 1),
            "n_found": (cosine >= found_cosine).sum(0),
            "mean_cosine": cosine.mean(0),
            "min_cosine": cosine.min(0),
            "mean_code_iou": code_iou.mean(axis=1),
            **per_other,
        }
    )
