"""Which latents do all algorithms pick where the encoder does? The future work of "Which Sparse
Code?"."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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


TEMPLATE_SHARE = 0.9
TEMPLATE_COVERAGE = 0.5
"""A latent fires on a template if this share of its samples are prompts of one template, and it
fires on this share of the prompts of that template."""


def template_shares(
    encoder: SparseCodes, templates: Sequence[int], texts: Sequence[str], n_shown: int = 3
) -> pd.DataFrame:
    """Whether latents fire on a template of prompts rather than on what it says.

    Args:
        encoder: Codes of prompts, one each.
        templates: See `prompts.templates_of`.
        texts: The prompts.

    Returns:
        Per latent that the encoder uses: `latent`; `template_share`, of its samples in the template
        that most of them have; `template_coverage`, of that template's prompts that it fires on;
        `on_template`; `prompts`, those on which it is strongest, the first first.
    """
    used = encoder.values != 0
    found = pd.DataFrame(
        {
            "row": used.nonzero()[:, 0].cpu().numpy(),
            "latent": encoder.indices[used].cpu().numpy(),
            "magnitude": encoder.values[used].abs().cpu().numpy(),
        }
    )
    found["template"] = np.asarray(templates)[found["row"]]
    found["n"] = found.groupby(["latent", "template"])["row"].transform("count")
    most = found.sort_values(by="n", ascending=False, kind="stable").drop_duplicates("latent")
    most = most.set_index("latent").sort_index()
    share = most["n"] / found.groupby("latent").size()
    coverage = most["n"] / most["template"].map(pd.Series(templates).value_counts())
    strongest = found.sort_values("magnitude", ascending=False, kind="stable").groupby("latent")
    return pd.DataFrame(
        {
            "template_share": share,
            "template_coverage": coverage,
            "on_template": (share >= TEMPLATE_SHARE) & (coverage >= TEMPLATE_COVERAGE),
            "prompts": strongest["row"].agg(lambda rows: [texts[row] for row in rows[:n_shown]]),
        }
    ).reset_index()


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
