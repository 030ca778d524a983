"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sae_lens_isae.identifiability.audit import Audit
from sae_lens_isae.identifiability.code_agreement import CodeAgreement, Estimate
from sae_lens_isae.identifiability.pairwise import PairwiseReport
from sae_lens_isae.identifiability.table import TableRow, table_row


class Table(NamedTuple):
    """A table of text, for the terminal or a page."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


TABLE1_HEADERS = (
    "Model",
    "MSE",
    "R_S",
    "SAE IoU",
    "SAE l2/√2",
    "Oracle IoU",
    "Oracle l2/√2",
    "DCS",
)
"""The paper's columns, l2 on the scale that its values fit (`CodeAgreement.l2_paper`)."""


_NAME_WIDTH = 8
"""A name is shown this far, however narrow the terminal is."""


def table1_cells(row: TableRow) -> list[str]:
    """The cells of a Table 1 row, three decimals as in the paper."""
    numbers = (
        row.mse,
        row.r_arip,
        row.sae_iou,
        row.sae_l2_paper,
        row.oracle_iou,
        row.oracle_l2_paper,
        row.dcs,
    )
    return [row.variant, *("-" if number is None else f"{number:.3f}" for number in numbers)]


def print_table(
    console: Console, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table whose first column is text and whose others are numbers.

    Long names give way and headers wrap; numbers do neither. Where the terminal is too narrow for
    that, every row is a paragraph with each number behind its name.
    """
    # a border before every column and one at the end, a space on both sides of a cell
    room = console.width - 3 * len(headers) - 1
    cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(headers))]
    whole = [max(width, len(h)) for h, width in zip(headers, cells, strict=True)]
    wrapped = [max([width, *map(len, h.split())]) for h, width in zip(headers, cells, strict=True)]
    widths = whole if sum(whole) <= room else wrapped
    left_for_names = room - sum(widths[1:])
    if left_for_names < min(widths[0], _NAME_WIDTH):
        console.print(title, style="italic", markup=False)
        for row in rows:
            cells = ", ".join(f"{h} {c}" for h, c in zip(headers[1:], row[1:], strict=True) if c)
            console.print(f"  {row[0]}: {cells}", markup=False, highlight=False)
        return
    table = RichTable(title=escape(title))
    for i, (header, width) in enumerate(zip(headers, widths, strict=True)):
        if i == 0:
            table.add_column(header, overflow="fold", width=min(width, left_for_names))
        else:
            table.add_column(header, justify="right", width=width)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def text_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    """A table of sentences, which wrap."""
    long = any(len(cell) > 80 for row in rows for cell in row)
    table = RichTable(title=escape(title), show_lines=long)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


SAE_HEADERS = ("SAE", "architecture", "latents", "L0", "MSE", "R_S", "dead", "found")
PAIR_HEADERS = ("pair", "codes", "DCS", "MCC", "IoU", "l2", "l2/√2")


def sae_rows(report: PairwiseReport) -> list[list[str]]:
    """One row per SAE of a comparison."""
    n_others = len(report.saes) - 1
    rows: list[list[str]] = []
    for sae in report.saes:
        of_sae = report.latents[report.latents["sae"] == sae.name]
        of_sae = of_sae[~of_sae["zero_atom"]]
        rows.append(
            [
                sae.name,
                sae.architecture,
                str(sae.d_sae),
                f"{sae.l0:.1f}",
                f"{sae.mse:.4f}",
                _number(sae.r_arip, 3),
                str(sae.n_dead),
                f"{(of_sae['n_found'] == n_others).mean():.1%}",
            ]
        )
    return rows


def pair_rows(report: PairwiseReport) -> list[list[str]]:
    """Two rows per pair, with the SAEs' codes and with the oracle's; means where there are several
    pairs."""
    rows: list[list[str]] = []
    for pair in report.pairs:
        name = f"{pair.a} | {pair.b}"
        rows.append(
            [
                name,
                "SAE",
                f"{pair.dcs:.4f}",
                f"{pair.signed_mcc:.4f}",
                *_code_cells(pair.sae),
            ]
        )
        if pair.oracle is not None:
            rows.append([name, "oracle", "", "", *_code_cells(pair.oracle)])
    if len(report.pairs) > 1:
        row = table_row("mean", report)
        mcc = mean(p.signed_mcc for p in report.pairs)
        sae = [row.dcs, mcc, row.sae_iou, row.sae_l2, row.sae_l2_paper]
        rows.append(["mean", "SAE", *(_number(value, 4) for value in sae)])
        if row.oracle_iou is not None:
            oracle = [row.oracle_iou, row.oracle_l2, row.oracle_l2_paper]
            rows.append(["mean", "oracle", "", "", *(_number(value, 4) for value in oracle)])
    return rows


def pair_notes(report: PairwiseReport) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = list(report.differences)
    if report.n_zero_rows:
        notes.append(f"{report.n_zero_rows} all-zero activations are left out.")
    for pair in report.pairs:
        names = f"{pair.a} and {pair.b}"
        if pair.same_sae:
            notes.append(f"{names} are the same SAE: they agree by construction.")
        if pair.n_unmatched:
            notes.append(
                f"{names}: {pair.n_unmatched} latents of the larger have no partner and count as "
                "disagreement where they are active."
            )
        if pair.dcs_gap > 1e-4:
            notes.append(
                f"{names}: the matching is within {pair.dcs_gap:.2g} of the best DCS, not nearer."
            )
    for sae in report.saes:
        if sae.n_zero_atoms:
            notes.append(
                f"{sae.name}: {sae.n_zero_atoms} latents have an all-zero atom; they are not "
                "matched, and count neither in DCS nor in 'found'."
            )
        if sae.n_repeated:
            notes.append(
                f"{sae.name}: {sae.n_repeated} latents repeat the direction of another; which of "
                "them go together is decided by their codes."
            )
        if sae.n_dead:
            notes.append(
                f"{sae.name}: {sae.n_dead} of {sae.d_sae} latents never fire on these "
                "activations; they are matched like all others."
            )
        if sae.oracle_k is not None and sae.oracle_k.startswith("none"):
            notes.append(f"{sae.name}: no oracle ({sae.oracle_k.removeprefix('none: ')}).")
    return notes


ASSUMPTION_HEADERS = ("assumption", "verdict", "measured")
AUDIT_HEADERS = ("number", "value")


def assumption_rows(audit: Audit) -> list[list[str]]:
    """One row per assumption of Theorem 3.6."""
    shown = {
        "refuted": "REFUTED on",
        "not refuted": "not refuted on",
        "not estimable": "not estimable from",
    }
    return [
        [f"{a.name} {a.title}", f"{shown[a.verdict]} {a.evidence}", a.sentence]
        for a in audit.assumptions
    ]


def audit_rows(audit: Audit) -> list[list[str]]:
    """The numbers of an audit, named as in the glossary."""
    theorem, consistency, health = audit.theorem, audit.self_consistency, audit.health
    proxy = audit.proxy
    zeta = theorem.zeta
    rows = [
        ["epsilon", f"{audit.error.max:.4f} (median {audit.error.median:.4f})"],
        ["L0", f"{audit.l0.mean:.1f} (at most {audit.l0.max:.0f})"],
        ["R_S", "-" if proxy is None else f"{proxy.r_arip:.4f}"],
        ["delta on pairs", _spread(audit.pairs.delta.median, audit.pairs.delta.max)],
        ["delta on 2k", "-" if proxy is None else _spread(proxy.delta.median, proxy.delta.max)],
        *(
            [f"pairs with delta < {name}", f"{share:.1%}"]
            for name, share in audit.pairs.share_below.items()
        ),
        [
            "zeta",
            f"{zeta:.4g}"
            if audit.diversity.is_complete
            else f"at most {theorem.zeta:.4f}, from {audit.diversity.n_estimable:,} of "
            f"{audit.diversity.n_supports:,} supports",
        ],
        ["alpha", f"{theorem.alpha:.4f}"],
        ["eta", _finite(theorem.eta)],
        ["atom bound", _finite(theorem.dictionary_bound)],
        ["code bound", _finite(theorem.code_bound)],
        [
            "least-squares gap",
            _spread(audit.least_squares.median, audit.least_squares.max),
        ],
        [
            "mu",
            f"{audit.coherence.mu:.4f} (latents {audit.coherence.latents[0]} and "
            f"{audit.coherence.latents[1]})",
        ],
        ["(k - 1) mu", f"{audit.coherence.rip_bound:.3f}"],
        [
            "self-consistency",
            f"{consistency.residual.mean:.4f}, in support "
            f"{consistency.residual_in_support.mean:.4f}",
        ],
        ["Lipschitz", _number(consistency.lipschitz, 3)],
        ["error bound", _number(consistency.lower_bound, 4)],
        ["dead fraction", f"{health.dead_fraction:.4f}"],
        ["usage entropy", f"{health.usage_entropy:.4f}"],
        ["coherence RMS", f"{health.coherence_rms:.4f}"],
    ]
    if health.n_zero_atoms:
        rows.append(["all-zero atoms", str(health.n_zero_atoms)])
    if audit.n_at_offset:
        rows.append(["samples at the bias, left out", str(audit.n_at_offset)])
    if audit.n_zero_rows:
        rows.append(["all-zero samples, left out", str(audit.n_zero_rows)])
    return rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _code_cells(codes: CodeAgreement) -> list[str]:
    paper = codes.l2_paper.value
    return [_estimate(codes.iou), _estimate(codes.l2), _number(paper, 4)]


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    half = f"{(estimate.high - estimate.low) / 2:.3f}"
    return f"{estimate.value:.4f} ±{half.removeprefix('0')}"


def _spread(median: float, largest: float) -> str:
    return f"{median:.4f} (median), {largest:.4f} (largest)"


def _finite(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
