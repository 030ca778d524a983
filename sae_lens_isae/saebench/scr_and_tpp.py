"""SAEBench's `scr` (spurious correlation removal) and `tpp` (targeted probe perturbation)."""

from __future__ import annotations

import math
from typing import Any

from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.context import EvalContext, run_eval, shared_fields
from sae_lens_isae.saebench.installed import module


def run_scr_or_tpp(
    context: EvalContext, adapter: SAEBenchAdapter, name: str, *, scr: bool
) -> dict[str, Any]:
    """Spurious correlation removal, or targeted probe perturbation."""
    main = module("sae_bench.evals.scr_and_tpp.main")
    settings = context.settings
    info = module("sae_bench.sae_bench_utils.dataset_info")
    datasets = context.data.scr if scr else context.data.tpp
    config = main.ScrAndTppEvalConfig(
        **shared_fields(context),
        perform_scr=scr,
        train_set_size=settings.train_size,
        test_set_size=settings.test_size,
        n_values=[n for n in settings.n_values if n <= len(adapter.W_dec)],
        **(
            {}
            if datasets is None
            else {"dataset_names": list(datasets), "column1_vals_lookup": context.data.column1_vals}
        ),
    )
    sizes = context.data.sizes(settings)

    def calls() -> int:
        total = 0
        for dataset in config.dataset_names:
            train, test = sizes.get(dataset, (settings.train_size, settings.test_size))
            trained = 3 if scr else len(info.chosen_classes_per_dataset[dataset])
            tested = 6 if scr else trained
            repeats = len(config.column1_vals_lookup[dataset]) if scr else 1
            effects = trained * math.ceil(train / settings.sae_batch_size)
            ablations = tested * math.ceil(test // 2 / settings.sae_batch_size)
            total += repeats * (effects + trained * len(config.n_values) * ablations)
        return total

    return run_eval(context, main, config, adapter, name, "scr" if scr else "tpp", calls)
