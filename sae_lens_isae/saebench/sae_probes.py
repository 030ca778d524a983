"""Sparse probing of the package sae-probes, through SAEBench: on the last token of each text."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_isae.inputs.language_models import context_length
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.context import EvalContext, make_once, only_result
from sae_lens_isae.saebench.installed import module
from sae_lens_isae.saebench.upstream import contained

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def run_sae_probes(context: EvalContext, adapter: SAEBenchAdapter, name: str) -> dict[str, Any]:
    """The sparse probing of sae-probes, on the last token of each text."""
    main = module("sae_bench.evals.sparse_probing_sae_probes.main")
    probes = module("sae_probes.generate_model_activations")
    hook = adapter.cfg.hook_name
    root = context.artifacts / "sae_probes"
    names = main.SparseProbingSaeProbesEvalConfig().dataset_names
    datasets = names if context.data.sae_probes is None else list(context.data.sae_probes)

    def make(dataset: str, folder: Path) -> None:
        with _unchanged_tokenizer(context.model):
            probes.ensure_dataset_activations(
                model_name=context.model_key,
                dataset_short_names=[dataset],
                hook_names=[hook],
                model_cache_path=folder / "activations",
                device=context.device,
                max_seq_len=min(1024, context_length(context.model)),
                model=context.model,
            )
        main.run_baseline_evals(
            model_name=context.model_key,
            hook_name=hook,
            setting="normal",
            method="logreg",
            results_path=folder / "results",
            model_cache_path=folder / "activations",
            datasets=[dataset],
            device=context.device,
            seed=context.settings.seed,
        )

    with contained():
        make_once(root, hook, datasets, make, "sae-probes' activations")
    with tempfile.TemporaryDirectory() as folder, contained():
        # results of its own: sae-probes takes what lies there for finished
        results = Path(folder) / "results"
        shutil.copytree(root / "results", results)
        config = main.SparseProbingSaeProbesEvalConfig(
            model_name=context.model_key,
            random_seed=context.settings.seed,
            dataset_names=datasets,
            ks=list(context.settings.k_values),
            results_path=str(results),
            model_cache_path=str(root / "activations"),
        )
        main.run_eval(config, [(name, adapter)], context.device, folder)
        return only_result(Path(folder))


@contextlib.contextmanager
def _unchanged_tokenizer(model: HookedRootModule) -> Generator[None]:
    """Restore what sae-probes changes on the tokenizer, which later evals would see."""
    tokenizer: Any = model.tokenizer
    sides = tokenizer.truncation_side, tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.truncation_side, tokenizer.padding_side = sides
