"""What agreement is by chance: of dictionaries that nothing was learned for, and of codes that
belong to other samples or other latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lens_isae.identifiability.code_agreement import CodeComparison
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.report.tables import Table, number

Null = Literal["isotropic", "covariance", "activations", "other samples", "other latents"]
TITLES: dict[Null, str] = {
    "isotropic": "random directions",
    "covariance": "random directions, activations' covariance",
    "activations": "centred activations as atoms",
    "other samples": "codes of other samples",
    "other latents": "codes of other latents",
}
N_SAMPLES = 4096
"""Codes that are shuffled: the means settle quickly."""


@dataclass(frozen=True, kw_only=True)
class Chance:
    """The numbers of one null, means over the pairs of SAEs; None where it has no such number."""

    null: Null
    dcs: float | None = None
    mcc: float | None = None
    found: float | None = None
    """Share of the atoms with a partner of cosine `found_cosine` or more."""
    iou: float | None = None
    l2: float | None = None
    why_not: str = ""
    """Why a null has no numbers at all."""


def random_directions(
    activations: Float[torch.Tensor, "samples d_in"], n: int, generator: torch.Generator
) -> Float[torch.Tensor, "n d_in"]:
    """Gaussian directions with the covariance of activations: two dictionaries of such atoms have a
    cosine well above that of isotropic ones, and no training."""
    centred = activations - activations.mean(0)
    # sums of the activations with Gaussian weights
    return torch.randn(n, len(centred), generator=generator) @ centred


class PairSizes(NamedTuple):
    """What the agreement of two dictionaries by chance depends on."""

    n_a: int
    n_b: int
    signed_codes: bool
    """Atoms count as found up to sign."""


@torch.no_grad()
def dictionaries_by_chance(
    activations: Float[torch.Tensor, "samples d_in"],
    pairs: Sequence[PairSizes],
    found_cosine: float,
    seed: int,
    device: torch.device,
) -> list[Chance]:
    """DCS, MCC and 'found' of dictionaries without training, as large as those compared.

    Args:
        activations: Some of those that the SAEs see.
        device: Where cosines are computed.
    """
    rows: list[Chance] = []
    nulls: tuple[Null, ...] = ("isotropic", "covariance", "activations")
    for null in progress_bar(nulls, desc="Matching random dictionaries", unit="null", leave=False):
        why_not = _why_not(null, activations, max(pair.n_a + pair.n_b for pair in pairs))
        if why_not:
            rows.append(Chance(null=null, why_not=why_not))
            continue
        generator = torch.Generator().manual_seed(seed)
        of_size = {
            pair: _agreement(
                null_atoms(null, activations, pair.n_a + pair.n_b, generator),
                pair,
                found_cosine,
                device,
            )
            for pair in sorted(set(pairs))
        }
        dcs, mcc, found = zip(*(of_size[pair] for pair in pairs), strict=True)
        rows.append(Chance(null=null, dcs=mean(dcs), mcc=mean(mcc), found=mean(found)))
    return rows


def _why_not(null: Null, activations: Float[torch.Tensor, "samples d_in"], n_atoms: int) -> str:
    if null == "isotropic":
        return ""
    if (activations == activations[0]).all():
        return "needs activations that differ"
    if null == "activations" and len(activations) < n_atoms:
        return f"needs {n_atoms:,} activations, there are {len(activations):,}"
    return ""


def _agreement(
    atoms: Float[torch.Tensor, "atoms d_in"],
    pair: PairSizes,
    found_cosine: float,
    device: torch.device,
) -> tuple[float, float, float]:
    """DCS, MCC and 'found' of two dictionaries."""
    a, b = atoms.to(device).split([pair.n_a, pair.n_b])
    up_to_sign, by_cosine = (match_dictionaries(a, b, signed=signed) for signed in (False, True))
    of_latents = up_to_sign if pair.signed_codes else by_cosine
    found = float((of_latents.cosine >= found_cosine).double().mean())
    return up_to_sign.dcs, by_cosine.dcs, found


def null_atoms(
    null: Null,
    activations: Float[torch.Tensor, "samples d_in"],
    n: int,
    generator: torch.Generator,
) -> Float[torch.Tensor, "n d_in"]:
    """Atoms that nothing was learned for: `isotropic`, `covariance` or `activations`."""
    if null == "isotropic":
        return torch.randn(n, activations.shape[1], generator=generator)
    if null == "covariance":
        return random_directions(activations, n, generator)
    order = torch.randperm(len(activations), generator=generator)[:n]
    return activations[order] - activations.mean(0)


class CodesByChance:
    """The agreement of two SAEs' codes after samples, or after partners, were shuffled."""

    def __init__(self, match: DictionaryMatch, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        order = _derangement(len(match.index_b), self._rng)
        other = DictionaryMatch(match.index_a, match.index_b[order], match.sign, match.cosine, 0.0)
        self._comparisons: dict[Null, CodeComparison] = {
            "other samples": CodeComparison(match),
            "other latents": CodeComparison(other),
        }
        self._left = N_SAMPLES

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """Compare a batch of codes."""
        a, b = a[: self._left], b[: self._left]
        if len(a) < 2:
            return
        self._left -= len(a)
        shuffled = _derangement(len(b), self._rng).to(b.device)
        self._comparisons["other samples"].add(a, b[shuffled])
        self._comparisons["other latents"].add(a, b)

    def means(self) -> dict[Null, tuple[float, float]]:
        """IoU and l2 of each null; empty for a single activation."""
        found: dict[Null, tuple[float, float]] = {}
        for null, comparison in self._comparisons.items():
            values = comparison.means()
            if values is not None:
                found[null] = values
        return found


def chance_table(rows: Sequence[Chance]) -> Table:
    """One row for each null."""
    headers = ("by chance", "DCS", "MCC", "found", "IoU", "l2", "l2/√2")
    cells: list[list[str]] = []
    for row in rows:
        found = "-" if row.found is None else f"{row.found:.1%}"
        l2_paper = None if row.l2 is None else row.l2 / math.sqrt(2)
        of_dictionary = [number(row.dcs, 4), number(row.mcc, 4), found]
        of_codes = [number(value, 4) for value in (row.iou, row.l2, l2_paper)]
        cells.append([TITLES[row.null], *of_dictionary, *of_codes])
    return Table("What these numbers are by chance", headers, cells)


def _derangement(n: int, rng: np.random.Generator) -> Int[torch.Tensor, " n"]:
    """An order in which nothing stays in its place."""
    cycle = torch.from_numpy(rng.permutation(n))
    return torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(1))


def codes_by_chance(pairs: Sequence[CodesByChance]) -> list[Chance]:
    """Means over the pairs of SAEs."""
    of_pairs = [pair.means() for pair in pairs]
    nulls: tuple[Null, ...] = ("other samples", "other latents")
    return [
        Chance(
            null=null,
            iou=mean(found[null][0] for found in of_pairs),
            l2=mean(found[null][1] for found in of_pairs),
        )
        for null in nulls
        if all(null in found for found in of_pairs)
    ]
