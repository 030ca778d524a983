"""Tables of `isae bench`: one row for SAEs that differ in the seed only, as in Table 3 of Nelson et
al. 2026."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from sae_lens_isae.evals.listed import AUTOINTERP, EVALS
from sae_lens_isae.evals.results import BenchResult, group_of
from sae_lens_isae.report.tables import Table
from sae_lens_isae.saebench.autointerp import judge_note

_SHOWN_N = 20
"""SCR and TPP are shown for this many latents."""
_SHOWN_K = 5


class _Column(NamedTuple):
    header: str
    eval: str
    metric: str
    digits: int


METRIC_OF = {
    "sparse_probing": "sae_top_{}_test_accuracy",
    "scr": "scr_metric_threshold_{}",
    "tpp": "tpp_threshold_{}_total_metric",
    "sae_probes": "sae_top_{}_test_auc",
}
"""What SAEBench calls an eval's metric with so many latents."""


def _column_at(header: str, name: str, n: int) -> _Column:
    return _Column(header, name, METRIC_OF[name].format(n), 3)


_FIXED = (
    _Column("CE loss", "core", "ce_loss_with_sae", 3),
    _Column("CE score", "core", "ce_loss_score", 3),
    _Column("L0", "core", "l0", 1),
    _Column("alive", "core", "frac_alive_latents", 3),
    _Column("Probing", "sparse_probing", "sae_test_accuracy", 3),
    _column_at(f"Probing {_SHOWN_K}", "sparse_probing", _SHOWN_K),
    _column_at(f"SCR {_SHOWN_N}", "scr", _SHOWN_N),
    _column_at(f"TPP {_SHOWN_N}", "tpp", _SHOWN_N),
    _column_at(f"probes AUC {_SHOWN_K}", "sae_probes", _SHOWN_K),
    _Column("CE-bench", "ce_bench", "ce_total", 3),
    _Column("interp", "autointerp", "autointerp_score", 3),
    _Column("interp over control", "autointerp", "above_control", 3),
)


_BY_NUMBER = {
    "sparse_probing": "Sparse probing: accuracy by number of latents",
    "scr": "SCR by number of ablated latents",
    "tpp": "TPP by number of ablated latents",
    "sae_probes": "sae-probes: AUC by number of latents",
}
_JUDGED = (
    "autointerp_score",
    "autointerp_std_dev",
    "above_control",
    "above_control_error",
    "unreadable",
    "n_judged",
)
_SCORES = (
    "contrastive_score",
    "independence_score",
    "sparsity",
    "ce_total",
    "dead_fraction",
    "usage_entropy",
    "coherence_rms",
)


def summary_table(results: Sequence[BenchResult]) -> Table:
    """The columns of Table 3 and what belongs beside them; mean and standard deviation over
    seeds."""
    columns = [c for c in _FIXED if any(c.metric in r.metrics for r in results if r.eval == c.eval)]
    return _table("What the SAEs are good for", results, columns)


def detail_tables(results: Sequence[BenchResult]) -> list[Table]:
    """Every number of latents that was tried, and the scores of CE-bench."""
    tables: list[Table] = []
    for name, title in _BY_NUMBER.items():
        tried = numbers(results, name)
        if tried:
            columns = [_column_at(str(n), name, n) for n in tried]
            tables.append(_table(title, results, columns))
    if any(r.eval == "ce_bench" for r in results):
        columns = [_Column(s.replace("_", " "), "ce_bench", s, 4) for s in _SCORES]
        tables.append(_table("CE-bench and the health of the dictionary", results, columns))
    if any(r.eval == AUTOINTERP for r in results):
        columns = [_Column(s.replace("_", " "), AUTOINTERP, s, 3) for s in _JUDGED]
        tables.append(_table("Explanations by a judge", results, columns))
    return tables


def judge_notes(results: Sequence[BenchResult]) -> list[str]:
    """What is wrong with the judge of an SAE, where its scores say so."""
    found = {r.sae: judge_note(r.metrics) for r in results if r.eval == AUTOINTERP}
    return [f"{sae}: {note}" for sae, note in found.items() if note is not None]


def numbers(results: Sequence[BenchResult], eval_name: str) -> list[int]:
    """The numbers of latents for which an eval has its metric."""
    metrics = {key for r in results if r.eval == eval_name for key in r.metrics}
    pattern = re.compile(METRIC_OF[eval_name].format(r"(\d+)"))
    return sorted(int(found[1]) for found in map(pattern.fullmatch, metrics) if found)


def form_notes(results: Sequence[BenchResult]) -> list[str]:
    """Which form of signed codes each eval took."""
    notes: list[str] = []
    for name in EVALS:
        unfolded = sorted({r.sae for r in results if r.eval == name and r.form == "non_negative"})
        if unfolded:
            notes.append(f"{name} saw the non-negative form of {', '.join(unfolded)}")
    return notes


def groups(results: Sequence[BenchResult]) -> dict[str, list[str]]:
    """SAEs by their name without the seed."""
    found: dict[str, list[str]] = {}
    for result in results:
        members = found.setdefault(group_of(result.sae) or "all seeds", [])
        if result.sae not in members:
            members.append(result.sae)
    return found


def spread(
    results: Sequence[BenchResult], members: Sequence[str], eval_name: str, metric: str
) -> tuple[float, float | None] | None:
    """Mean and standard deviation over SAEs; None where none of them has the metric."""
    values = [
        r.metrics[metric]
        for r in results
        if r.sae in members and r.eval == eval_name and metric in r.metrics
    ]
    if not values:
        return None
    return mean(values), stdev(values) if len(values) > 1 else None


def _table(title: str, results: Sequence[BenchResult], columns: Sequence[_Column]) -> Table:
    rows: list[list[str]] = []
    for group, members in groups(results).items():
        cells: list[str] = []
        for column in columns:
            found = spread(results, members, column.eval, column.metric)
            if found is None:
                cells.append("-")
            elif found[1] is None:
                cells.append(f"{found[0]:.{column.digits}f}")
            else:
                cells.append(f"{found[0]:.{column.digits}f} ±{found[1]:.{column.digits}f}")
        rows.append([group, str(len(members)), *cells])
    return Table(title, ["SAE", "seeds", *(c.header for c in columns)], rows)
