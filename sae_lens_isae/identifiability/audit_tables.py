"""The tables of `isae audit`."""

from __future__ import annotations

from sae_lens_isae.identifiability.audit_results import Audit
from sae_lens_isae.report.tables import Table, finite, number


def assumption_table(title: str, audit: Audit) -> Table:
    """One row per assumption of Theorem 3.6."""
    shown = {
        "refuted": "REFUTED on",
        "not refuted": "not refuted on",
        "not estimable": "not estimable from",
    }
    rows = [
        [f"{a.name} {a.title}", f"{shown[a.verdict]} {a.evidence}", a.sentence]
        for a in audit.assumptions
    ]
    return Table(title, ("assumption", "verdict", "measured"), rows, is_text=True)


def number_table(title: str, audit: Audit) -> Table:
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
    return Table(title, ("number", "value"), rows, is_text=True)


def _spread(median: float, largest: float) -> str:
    return f"{median:.4f} (median), {largest:.4f} (largest)"
