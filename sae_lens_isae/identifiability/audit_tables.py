"""The tables of `isae audit`."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lens_isae.contexts.latent_browser import FIRES, MAGNITUDE
from sae_lens_isae.identifiability.audit_results import Audit
from sae_lens_isae.report.browser import Column
from sae_lens_isae.report.tables import Table, finite, number

BROWSER_COLUMNS = (
    FIRES,
    MAGNITUDE,
    Column("nearest_cosine", "cosine", "|cosine| with the nearest other atom of this SAE", 3),
    Column("nearest", "nearest", "the latent of that atom"),
)
"""Of every latent, on the page."""
_SHOWN = {
    "refuted": "REFUTED on",
    "not refuted": "not refuted on",
    "not estimable": "not estimable from",
}


def assumption_table(audits: Sequence[Audit]) -> Table:
    """A row per assumption of Theorem 3.6, a column per SAE; of one SAE with what was measured."""
    by_assumption = zip(*(audit.assumptions for audit in audits), strict=True)
    rows = [
        [f"{of_saes[0].name} {of_saes[0].title}"]
        + [f"{_SHOWN[a.verdict]} {a.evidence}" for a in of_saes]
        + [a.sentence for a in of_saes if len(audits) == 1]
        for of_saes in by_assumption
    ]
    measured = ("measured",) if len(audits) == 1 else ()
    headers = ("assumption", *(audit.name for audit in audits), *measured)
    return Table("Theorem 3.6", headers, rows, is_text=True)


def number_table(audits: Sequence[Audit]) -> Table:
    """A row per number, named as in the glossary, a column per SAE."""
    columns = [_numbers(audit) for audit in audits]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    headers = ("number", *(audit.name for audit in audits))
    return Table("Numbers", headers, rows, is_text=True)


def _numbers(audit: Audit) -> dict[str, str]:
    theorem, consistency, health = audit.theorem, audit.self_consistency, audit.health
    proxy = audit.proxy
    zeta = theorem.zeta
    rows = [
        ["architecture", f"{audit.architecture}, {audit.d_sae} latents"],
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
        ["eta", finite(theorem.eta)],
        ["atom bound", finite(theorem.dictionary_bound)],
        ["code bound", finite(theorem.code_bound)],
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
        ["Lipschitz", number(consistency.lipschitz, 3)],
        ["error bound", number(consistency.lower_bound, 4)],
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
    return {name: value for name, value in rows}


def _spread(median: float, largest: float) -> str:
    return f"{median:.4f} (median), {largest:.4f} (largest)"
