"""The tables of `isae pairwise`, and what a reader must know before believing them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import pandas as pd

from sae_lens_isae.identifiability.code_agreement import CodeAgreement, Estimate
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.table1 import table_row
from sae_lens_isae.report.tables import Table, number

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
                f"{found_everywhere(sae.name, latents, len(saes) - 1):.1%}",
            ]
        )
    headers = ("SAE", "architecture", "latents", "L0", "MSE", "R_S", "dead", "found")
    return Table(title, headers, rows)


def found_everywhere(sae: str, latents: pd.DataFrame, n_others: int) -> float:
    """Share of an SAE's latents that were found in all others; zero atoms are left out."""
    of_sae = latents[(latents["sae"] == sae) & ~latents["zero_atom"]]
    return float((of_sae["n_found"] == n_others).mean())


def pair_table(saes: Sequence[SAESummary], pairs: Sequence[PairIdentifiability]) -> Table:
    """Two rows per pair, with the SAEs' codes and with the oracle's; means where there are several
    pairs."""
    rows: list[list[str]] = []
    for pair in pairs:
        name = f"{pair.a} | {pair.b}"
        own = [f"{pair.dcs:.4f}", f"{pair.signed_mcc:.4f}", *_code_cells(pair.sae)]
        rows.append([name, "SAE", *own])
        if pair.oracle is not None:
            rows.append([name, "oracle", "", "", *_code_cells(pair.oracle)])
    if len(pairs) > 1:
        row = table_row("mean", saes, pairs)
        mcc = mean(p.signed_mcc for p in pairs)
        own_means = [row.dcs, mcc, row.sae_iou, row.sae_l2, row.sae_l2_paper]
        rows.append(["mean", "SAE", *(number(value, 4) for value in own_means)])
        if row.oracle_iou is not None:
            oracle = [row.oracle_iou, row.oracle_l2, row.oracle_l2_paper]
            rows.append(["mean", "oracle", "", "", *(number(value, 4) for value in oracle)])
    headers = ("pair", "codes", "DCS", "MCC", "IoU", "l2", "l2/√2")
    return Table("Pairwise identifiability", headers, rows)


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
