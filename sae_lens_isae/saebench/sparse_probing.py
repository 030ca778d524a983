"""SAEBench's `sparse_probing`: accuracy of linear probes on a few latents, and on all."""

from __future__ import annotations

import math
from typing import Any

from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.context import EvalContext, run_eval, shared_fields
from sae_lens_isae.saebench.installed import module


def run_sparse_probing(context: EvalContext, adapter: SAEBenchAdapter, name: str) -> dict[str, Any]:
    """Accuracy of probes on a few latents, and on all."""
    main = module("sae_bench.evals.sparse_probing.main")
    settings = context.settings
    info = module("sae_bench.sae_bench_utils.dataset_info")
    config = main.SparseProbingEvalConfig(
        **shared_fields(context),
        probe_train_set_size=settings.train_size,
        probe_test_set_size=settings.test_size,
        k_values=list(settings.k_values),
        **({} if context.data.probing is None else {"dataset_names": list(context.data.probing)}),
    )
    sizes = context.data.sizes(settings)

    def calls() -> int:
        total = 0
        for dataset in config.dataset_names:
            parts = sizes.get(dataset, (settings.train_size, settings.test_size))
            per_class = sum(math.ceil(part // 2 / settings.sae_batch_size) for part in parts)
            total += per_class * len(info.chosen_classes_per_dataset[dataset])
        return total

    return run_eval(context, main, config, adapter, name, "sparse_probing", calls)
