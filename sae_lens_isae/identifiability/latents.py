"""Which features to trust: every latent's fate in the other SAEs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sae_lens_isae.identifiability.matching import DictionaryMatch

N_RATES = 5
TRUST = ("trusted", "doubtful", "unique", "dead")
TRUST_CODE_IOU = 0.5
"""A latent that was found everywhere is trusted if it and its partners fire together on half of the
samples on which one of them does."""
UNIQUE_COSINE = 2**-0.5
"""A latent is unique if no partner's atom has this cosine: less than half of its squared length is
along any of them."""


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

    @property
    def firing_rate(self) -> np.ndarray:
        """Share of the samples in which each latent is not zero."""
        return self.active.numpy() / self.n_samples

    @property
    def mean_magnitude(self) -> np.ndarray:
        """Of each latent where it is not zero."""
        return self.magnitude.numpy() / np.maximum(self.active.numpy(), 1)

    def add(self, codes: Float[torch.Tensor, "batch d_sae"]) -> None:
        """Count a batch."""
        self.n_samples += len(codes)
        self.active += (codes != 0).sum(0).cpu()
        self.energy += codes.square().sum(0).cpu()
        self.magnitude += codes.abs().sum(0).cpu()


class PairCounts:
    """How the matched latents of two SAEs act together, over a stream of codes."""

    def __init__(self, a: str, match: DictionaryMatch) -> None:
        """
        Args:
            a: Name of the first SAE.
        """
        self.a = a
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


class LatentTables(NamedTuple):
    """Every latent's fate in the other SAEs, in long form."""

    latents: pd.DataFrame
    """One row per SAE and latent: `sae`, `group`, `latent`; `zero_atom`, whose latents are found
    nowhere; `firing_rate`; `mean_magnitude` of the code where active; `n_others`, the other SAEs of
    the group; `n_found`, in how many of them its partner's atom has cosine `found_cosine` or more,
    after its sign; `mean_cosine`, `min_cosine` and `max_cosine` over them; `mean_code_iou`;
    `trust`: 'trusted' if it was found in all of them and fires together with its partners
    (`TRUST_CODE_IOU`), 'unique' if none is like it (`UNIQUE_COSINE`), 'dead' if it never fires or
    has no atom, else 'doubtful'."""
    partners: pd.DataFrame
    """One row per SAE, latent and other SAE: `sae`, `latent`, `other`; `partner`, the latent there
    that it is matched to, missing without one; `sign` and `cosine` of the two atoms; `code_iou`,
    samples in which both are active over those in which one is; `code_cosine`, of their codes over
    the samples. Agreement of codes is missing where neither is active."""


def cosine_by_firing_rate(latents: pd.DataFrame) -> list[float]:
    """Mean cosine with the partners in each fifth of the latents that fire, the rarest first.

    Args:
        latents: See `LatentTables`, of one SAE or several; each SAE has its own fifths.
    """
    active = latents[latents["firing_rate"] > 0]
    of_sae = active.groupby("sae")["firing_rate"]
    rank = np.asarray(of_sae.rank(method="first")) - 1
    fifth = rank * N_RATES // np.asarray(of_sae.transform("size"))
    cosine = np.asarray(active["mean_cosine"])
    members = [cosine[fifth == i] for i in range(N_RATES)]
    return [float(np.mean(values)) if len(values) else np.nan for values in members]


def cosine_by_activity(latents: pd.DataFrame) -> float:
    """Mean cosine with the partners, each latent weighted by its share of the sum of |codes|."""
    weights = latents["firing_rate"].to_numpy() * latents["mean_magnitude"].to_numpy()
    if not weights.any():
        return np.nan
    return float(np.average(latents["mean_cosine"].to_numpy(), weights=weights))


def latent_tables(
    saes: Mapping[str, LatentCounts],
    pairs: Mapping[tuple[str, str], PairCounts],
    is_zero: Mapping[str, Bool[torch.Tensor, " d_sae"]],
    found_cosine: float,
    groups: Mapping[str, str],
) -> LatentTables:
    """What was counted over a stream of codes, as tables.

    Args:
        groups: Of every SAE. Latents are looked for in the SAEs of the same one.
    """
    partners = pd.concat(
        [
            _partners(name, other, saes, pair)
            for name in saes
            for (a, b), pair in pairs.items()
            for other in ({a: b, b: a}.get(name),)
            if other is not None
        ],
        ignore_index=True,
    )
    # an atom without partner was not found there: cosine 0, not missing
    cosine = partners["cosine"].fillna(0.0)
    same_group = partners["sae"].map(groups) == partners["other"].map(groups)
    of_latent = partners.assign(cosine=cosine, found=cosine >= found_cosine)[same_group].groupby(
        ["sae", "latent"], sort=False
    )
    sizes = Counter(groups.values())
    latents = pd.concat(
        [
            _latents(name, counts, is_zero[name]).assign(
                group=groups[name], n_others=sizes[groups[name]] - 1
            )
            for name, counts in saes.items()
        ],
        ignore_index=True,
    )
    summary = of_latent.agg(
        n_found=("found", "sum"),
        mean_cosine=("cosine", "mean"),
        min_cosine=("cosine", "min"),
        max_cosine=("cosine", "max"),
        mean_code_iou=("code_iou", "mean"),
    )
    latents = latents.join(summary, on=["sae", "latent"])
    return LatentTables(latents.assign(trust=_trust(latents)), partners)


def _trust(latents: pd.DataFrame) -> np.ndarray:
    together = latents["mean_code_iou"] >= TRUST_CODE_IOU
    return np.select(
        [
            latents["zero_atom"] | (latents["firing_rate"] == 0),
            latents["max_cosine"] < UNIQUE_COSINE,
            (latents["n_found"] == latents["n_others"]) & together,
        ],
        ["dead", "unique", "trusted"],
        default="doubtful",
    )


def _latents(
    name: str, counts: LatentCounts, is_zero: Bool[torch.Tensor, " d_sae"]
) -> pd.DataFrame:
    active = counts.active.numpy()
    return pd.DataFrame(
        {
            "sae": name,
            "latent": np.arange(len(active)),
            "zero_atom": is_zero.cpu().numpy(),
            "firing_rate": counts.firing_rate,
            "mean_magnitude": counts.mean_magnitude,
        }
    )


def _partners(
    name: str, other: str, saes: Mapping[str, LatentCounts], pair: PairCounts
) -> pd.DataFrame:
    """The latents of `name`, and their partners in `other`."""
    counts, theirs = saes[name], saes[other]
    match = pair.match
    here, there = match.index_a, match.index_b
    if pair.a != name:
        here, there = there, here
    either = counts.active[here] + theirs.active[there] - pair.both
    scale = (counts.energy[here] * theirs.energy[there]).sqrt()
    d_sae = len(counts.active)
    table = pd.DataFrame({"sae": name, "latent": np.arange(d_sae), "other": other})
    for column, values in {
        "partner": there.double(),
        "sign": match.sign.double(),
        "cosine": match.cosine.double(),
        "code_iou": torch.where(either > 0, pair.both / either, torch.nan),
        "code_cosine": torch.where(scale > 0, pair.product / scale, torch.nan),
    }.items():
        full = torch.full((d_sae,), torch.nan, dtype=torch.float64)
        full[here] = values
        table[column] = full.numpy()
    return table.astype({"partner": "Int64", "sign": "Int64"})
