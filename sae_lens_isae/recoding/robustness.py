"""Which features do all algorithms pick where the encoder does? The future work of paper 4."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import torch

from sae_lens_isae.solvers import SparseCodes


def latent_agreement(
    encoder: SparseCodes, others: Mapping[str, SparseCodes], agreeing: Collection[str]
) -> pd.DataFrame:
    """One row per latent that the encoder uses.

    Columns: `latent`; `n_encoder`, samples in which the encoder uses it; `mean_magnitude` of its
    coefficient there; for every method M `picked_M`, the share of these samples in which M uses it
    too; and `picked_by_all`, in which all of the methods `agreeing` do. A method with fewer rows
    than the encoder belongs to the first ones; where it saw none of a latent's samples its share
    is missing.
    """
    d_sae = encoder.d_sae
    used = encoder.values != 0
    rows = used.nonzero()[:, 0].cpu().numpy()
    latents = encoder.indices[used].cpu().numpy()
    magnitude = encoder.values[used].abs().double().cpu().numpy()
    count = np.bincount(latents, minlength=d_sae)
    keys = latents + rows * d_sae
    everywhere = np.ones(len(keys), dtype=bool)
    columns: dict[str, np.ndarray] = {}
    for method, codes in others.items():
        n_seen = len(codes.indices)
        mine = codes.values != 0
        taken = (codes.indices + torch.arange(n_seen, device=mine.device)[:, None] * d_sae)[mine]
        picked = np.isin(keys, taken.cpu().numpy())
        seen = np.bincount(latents[rows < n_seen], minlength=d_sae)
        columns[f"picked_{method}"] = np.divide(
            np.bincount(latents[picked], minlength=d_sae),
            seen,
            out=np.full(d_sae, np.nan),
            where=seen > 0,
        )
        if method in agreeing:
            everywhere &= picked
    active = count > 0
    table = {
        "latent": np.arange(d_sae),
        "n_encoder": count,
        "mean_magnitude": np.bincount(latents, magnitude, d_sae) / np.maximum(count, 1),
        **columns,
        "picked_by_all": np.bincount(latents[everywhere], minlength=d_sae) / np.maximum(count, 1),
    }
    return (
        pd.DataFrame({name: values[active] for name, values in table.items()})
        .sort_values(["picked_by_all", "n_encoder"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )
