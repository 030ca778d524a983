"""SAEBench's `core`: CE loss and KL with the SAE in the model, L0, variance, densities."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_isae.inputs.model_activations import text_store
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.context import EvalContext
from sae_lens_isae.saebench.installed import module, saebench_version

_PROMPTS = 16
_SHUFFLE_SEED = 42


def run_core(
    context: EvalContext, sae: SAE[Any], adapter: SAEBenchAdapter, name: str
) -> dict[str, Any]:
    """CE loss and KL with the SAE in the model, L0, explained variance, densities."""
    core = module("sae_bench.evals.core.main")
    settings = context.settings
    tokenizer: Any = context.model.tokenizer
    config = core.CoreEvalConfig(
        model_name=context.model_key,
        batch_size_prompts=_PROMPTS,
        n_eval_reconstruction_batches=settings.core_batches,
        n_eval_sparsity_variance_batches=settings.variance_batches,
        exclude_special_tokens_from_reconstruction=True,
        dataset=context.data.text,
        context_size=settings.core_context_size,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )
    store = text_store(
        sae,
        context.model,
        context.data.text,
        context.device,
        context_size=settings.core_context_size,
    )
    store.shuffle_input_dataset(seed=_SHUFFLE_SEED)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    metrics, features = core.run_evals(
        sae=adapter,
        activation_store=store,
        model=context.model,
        eval_config=config,
        ignore_tokens={token for token in special if token is not None},
        verbose=True,
    )
    result = {
        "sae_set": name,
        "sae_id": "",
        "eval_cfg": config,
        "metrics": {**metrics, "misc_metrics": core.calculate_misc_metrics(features)},
        "feature_metrics": features,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.json"
        core.save_single_eval_result(
            core.replace_nans_with_negative_one(result),
            core.get_eval_uuid(),
            core.get_sae_lens_version(),
            saebench_version(),
            str(path),
            adapter,
        )
        return json.loads(path.read_text(encoding="utf-8"))
