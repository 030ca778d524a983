"""The tables of `isae pairwise`, and what a reader must know before believing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import mean

import pandas as pd

from sae_lens_isae.contexts.latent_browser import FIRES, MAGNITUDE
from sae_lens_isae.identifiability.code_agreement import CodeAgreement, Estimate
from sae_lens_isae.identifiability.latents import cosine_by_activity, cosine_by_firing_rate
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.table1 import TABLE1_HEADERS, table_row
from sae_lens_isae.report.browser import Column
from sae_lens_isae.report.tables import Table, number

BROWSER_COLUMNS = (
    Column("trust", "trust", "see below the table"),
    FIRES,
    MAGNITUDE,
    Column("n_found", "found in", "in how many other SAEs its atom was found"),
    Column("mean_cosine", "cosine", "mean |cosine| with its partners' atoms", 3),
    Column(
        "mean_code_iou",
        "IoU",
        "samples on which it and its partner fire, over those on which one does",
        3,
    ),
)
"""Of every latent, on the page."""
_GAP = 1e-4
"""Distance from the best DCS that is worth a note."""


def sae_table(title: str, saes: Sequence[SAESummary], latents: pd.DataFrame) -> Table:
    """One row per SAE."""
    rows: list[list[str]] = []
    for sae in saes:
        rows.append(
            [
                sae.name,
                sae.architecture,
                str(sae.d_sae),
                f"{sae.l0:.1f}",
                f"{sae.mse:.4f}",
                number(sae.r_arip, 3),
                str(sae.n_dead),
                f"{found_everywhere(sae.name, latents):.1%}",
            ]
        )
    headers = ("SAE", "architecture", "latents", "L0", "MSE", "R_S", "dead", "found")
    return Table(title, headers, rows)


def found_everywhere(sae: str, latents: pd.DataFrame) -> float:
    """Share of an SAE's latents that were found in all others of its group; zero atoms are left
    out."""
    of_sae = latents[(latents["sae"] == sae) & ~latents["zero_atom"]]
    return float((of_sae["n_found"] == of_sae["n_others"]).mean())


def share_of_activations(sae: str, latents: pd.DataFrame) -> float:
    """How much of all activity of an SAE is that of latents that were found in all others of its
    group."""
    of_sae = latents[latents["sae"] == sae]
    rates = of_sae["firing_rate"]
    found = (of_sae["n_found"] == of_sae["n_others"]) & ~of_sae["zero_atom"]
    return float(rates[found].sum() / rates.sum()) if rates.sum() > 0 else 0.0


def by_group(saes: Sequence[SAESummary], groups: Mapping[str, str]) -> dict[str, list[SAESummary]]:
    """The SAEs of every group."""
    found: dict[str, list[SAESummary]] = {}
    for sae in saes:
        found.setdefault(groups[sae.name], []).append(sae)
    return found


def within(
    group: str, pairs: Sequence[PairIdentifiability], groups: Mapping[str, str]
) -> list[PairIdentifiability]:
    """The pairs of SAEs of one group."""
    return [pair for pair in pairs if groups[pair.a] == groups[pair.b] == group]


def group_table(
    saes: Sequence[SAESummary],
    pairs: Sequence[PairIdentifiability],
    latents: pd.DataFrame,
    groups: Mapping[str, str],
) -> Table:
    """One row per group: the columns of Table 1 of Nelson et al. 2026, and what was found."""
    rows: list[list[str]] = []
    for group, members in by_group(saes, groups).items():
        row = table_row(group, members, within(group, pairs, groups))
        found = mean(found_everywhere(sae.name, latents) for sae in members)
        rows.append([*row.cells(), str(len(members)), f"{found:.1%}"])
    return Table("Groups side by side", (*TABLE1_HEADERS, "seeds", "found"), rows)


def pair_table(
    saes: Sequence[SAESummary], pairs: Sequence[PairIdentifiability], groups: Mapping[str, str]
) -> Table:
    """Two rows per pair, with the SAEs' codes and with the oracle's; means where a group has
    several pairs."""
    rows: list[list[str]] = []
    for pair in pairs:
        name = f"{pair.a} | {pair.b}"
        own = [f"{pair.dcs:.4f}", f"{pair.signed_mcc:.4f}", *_code_cells(pair.sae)]
        rows.append([name, "SAE", *own])
        if pair.oracle is not None:
            rows.append([name, "oracle", "", "", *_code_cells(pair.oracle)])
    for group, members in by_group(saes, groups).items():
        of_group = within(group, pairs, groups)
        if len(of_group) < 2:
            continue
        name = f"mean, {group}" if group else "mean"
        row = table_row(name, members, of_group)
        mcc = mean(p.signed_mcc for p in of_group)
        own_means = [row.dcs, mcc, row.sae_iou, row.sae_l2, row.sae_l2_paper]
        rows.append([name, "SAE", *(number(value, 4) for value in own_means)])
        if row.oracle_iou is not None:
            oracle = [row.oracle_iou, row.oracle_l2, row.oracle_l2_paper]
            rows.append([name, "oracle", "", "", *(number(value, 4) for value in oracle)])
    headers = ("pair", "codes", "DCS", "MCC", "IoU", "l2", "l2/√2")
    return Table("Pairwise identifiability", headers, rows)


def cosine_table(latents: pd.DataFrame) -> Table:
    """How well dictionaries agree on rare latents and on frequent ones."""
    rows: list[list[str]] = []
    for name, of_sae in latents.groupby("sae", sort=False):
        values = [*cosine_by_firing_rate(of_sae), cosine_by_activity(of_sae)]
        rows.append([str(name), *(number(None if isnan(v) else v, 3) for v in values)])
    headers = ("SAE", "rarest fifth", "2nd", "3rd", "4th", "most frequent", "by activity")
    return Table("Mean cosine with the partners", headers, rows)


def pair_notes(saes: Sequence[SAESummary], pairs: Sequence[PairIdentifiability]) -> list[str]:
    """What the tables do not show."""
    notes: list[str] = []
    for pair in pairs:
        names = f"{pair.a} and {pair.b}"
        if pair.same_sae:
            notes.append(f"{names} are the same SAE: they agree by construction.")
        if pair.n_unmatched:
            notes.append(
                f"{names}: {pair.n_unmatched} latents of the larger have no partner and count as "
                "disagreement where they are active."
            )
        if pair.dcs_gap > _GAP:
            notes.append(
                f"{names}: the matching is within {pair.dcs_gap:.2g} of the best DCS, not nearer."
            )
    for sae in saes:
        if sae.n_zero_atoms:
            notes.append(
                f"{sae.name}: {sae.n_zero_atoms} latents have an all-zero atom; they are not "
                "matched, and count neither in DCS nor in 'found'."
            )
        if sae.n_repeated:
            notes.append(
                f"{sae.name}: {sae.n_repeated} latents repeat the direction of another; their "
                "codes decide which of them are matched."
            )
        if sae.n_dead:
            notes.append(
                f"{sae.name}: {sae.n_dead} of {sae.d_sae} latents never fire on these "
                "activations; they are matched like all others."
            )
        if sae.oracle_k is not None and sae.oracle_k.startswith("none"):
            notes.append(f"{sae.name}: no oracle ({sae.oracle_k.removeprefix('none: ')}).")
    return notes


def _code_cells(codes: CodeAgreement) -> list[str]:
    return [_estimate(codes.iou), _estimate(codes.l2), number(codes.l2_paper.value, 4)]


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    half = f"{(estimate.high - estimate.low) / 2:.3f}"
    return f"{estimate.value:.4f} ±{half.removeprefix('0')}"
