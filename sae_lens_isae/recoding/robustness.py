"""Which latents do all algorithms pick where the encoder does? The future work of "Which Sparse
Code?"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from sae_lens_isae.solvers import SparseCodes


class LatentPicks(NamedTuple):
    """Which algorithms pick the latents that the encoder uses, in long form."""

    latents: pd.DataFrame
    """One row per latent, those first that all agree on: `latent`; `n_encoder`, samples in which
    the encoder uses it; `mean_magnitude` of its coefficient there; `picked_by_all`, the share of
    these samples in which all agreeing algorithms use it too."""
    picks: pd.DataFrame
    """One row per latent and `method`: `picked`, the share of the latent's samples in which the
    method uses it, missing where it saw none of them."""


def latent_picks(
    encoder: SparseCodes, others: Mapping[str, SparseCodes], agreeing: Collection[str]
) -> LatentPicks:
    """Compare the encoder's picks with those of other algorithms.

    Args:
        others: Codes by method. A method with fewer rows than the encoder belongs to the first
            ones.
        agreeing: The methods that `picked_by_all` asks.
    """
    d_sae = encoder.d_sae
    used = encoder.values != 0
    rows = used.nonzero()[:, 0].cpu().numpy()
    latents = encoder.indices[used].cpu().numpy()
    magnitude = encoder.values[used].abs().double().cpu().numpy()
    count = np.bincount(latents, minlength=d_sae)
    keys = latents + rows * d_sae
    everywhere = np.ones(len(keys), dtype=bool)
    share: dict[str, np.ndarray] = {}
    for method, codes in others.items():
        n_seen = len(codes.indices)
        mine = codes.values != 0
        taken = (codes.indices + torch.arange(n_seen, device=mine.device)[:, None] * d_sae)[mine]
        picked = np.isin(keys, taken.cpu().numpy())
        seen = np.bincount(latents[rows < n_seen], minlength=d_sae)
        share[method] = np.divide(
            np.bincount(latents[picked], minlength=d_sae),
            seen,
            out=np.full(d_sae, np.nan),
            where=seen > 0,
        )
        if method in agreeing:
            everywhere &= picked
    table = pd.DataFrame(
        {
            "latent": np.arange(d_sae),
            "n_encoder": count,
            "mean_magnitude": np.bincount(latents, magnitude, d_sae) / np.maximum(count, 1),
            "picked_by_all": np.bincount(latents[everywhere], minlength=d_sae)
            / np.maximum(count, 1),
        }
    )
    table = (
        table.loc[count > 0]
        .sort_values(["picked_by_all", "n_encoder"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    picks = pd.concat(
        [
            pd.DataFrame(
                {"latent": table["latent"], "method": method, "picked": of[table["latent"]]}
            )
            for method, of in share.items()
        ],
        ignore_index=True,
    )
    return LatentPicks(table, picks)
