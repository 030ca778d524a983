"""The evals: what runs each, where its results go, in which form it takes signed codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from sae_lens import SAE

from sae_lens_isae.inputs.signs import CodeForm
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.autointerp import run_autointerp
from sae_lens_isae.saebench.context import EvalContext
from sae_lens_isae.saebench.core import run_core
from sae_lens_isae.saebench.sae_probes import run_sae_probes
from sae_lens_isae.saebench.scr_and_tpp import run_scr_or_tpp
from sae_lens_isae.saebench.sparse_probing import run_sparse_probing

CE_BENCH = "ce_bench"
AUTOINTERP = "autointerp"

RunEval = Callable[[EvalContext, SAE[Any], SAEBenchAdapter, str], dict[str, Any]]


class Eval(NamedTuple):
    """One eval."""

    form: CodeForm
    """In which a signed SAE takes it. `as_is` where the eval is right about signs: probes have
    weights of both signs, SCR takes the size of an effect. `non_negative` where it is not: core
    counts activations above 0 as densities and adds codes up as L1, TPP credits positive ones only,
    CE-bench averages, autointerp looks for the largest."""
    folder: str
    """Of the results; SAEBench's own name, by which its plots know it."""
    run: RunEval | None
    """SAEBench's code; None for CE-bench, which is this package's own."""


def _without_sae(run: Callable[[EvalContext, SAEBenchAdapter, str], dict[str, Any]]) -> RunEval:
    return lambda context, _, adapter, name: run(context, adapter, name)


EVALS: dict[str, Eval] = {
    "core": Eval("non_negative", "core", run_core),
    "sparse_probing": Eval("as_is", "sparse_probing", _without_sae(run_sparse_probing)),
    "scr": Eval("as_is", "scr", _without_sae(partial(run_scr_or_tpp, scr=True))),
    "tpp": Eval("non_negative", "tpp", _without_sae(partial(run_scr_or_tpp, scr=False))),
    "sae_probes": Eval("as_is", "sparse_probing_sae_probes", _without_sae(run_sae_probes)),
    CE_BENCH: Eval("non_negative", CE_BENCH, None),
    AUTOINTERP: Eval("non_negative", AUTOINTERP, run_autointerp),
}
DEFAULT_EVALS = ("core", "sparse_probing", "scr", "tpp")
