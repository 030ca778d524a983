"""Dictionary health with and without latent self-consistency (Tables 1 and 2 of 'Latent Recovery',
B.3).

    python benchmarks/self_consistency_study.py          # needs `make real`
    python benchmarks/self_consistency_study.py --kinds "ReLU + L1" --l1 0.5 --name NAME

ReLU + L1 and TopK, each with and without the regulariser, the same seeds for both, on SmolLM2-135M
after block 9: everything as in the paper but model, text and the number of tokens, with the warm-up
at the same shares of the run. All SAEs see the same tokens, on one shared forward pass.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from provenance import write_result
from sae_lens import TrainingSAE, TrainingSAEConfig
from safetensors.torch import load_file

from sae_lens_isae import (
    RegularizedStandardTrainingSAEConfig,
    RegularizedTopKTrainingSAEConfig,
    audit,
)
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train_together
from sae_lens_isae.training.seeds import seeded_sae

CONFIG = Path(__file__).parent.parent / "configs" / "smollm2_topk.yaml"
"""Model, text and buffers; its own SAE is not trained."""
D_IN, D_SAE, BATCH = 576, 2048, 256
WEIGHTS = {"ReLU + L1": 10.0, "TopK": 0.5}
PAPER = {
    "ReLU + L1": {
        "dead_fraction": (0.0844, 0.0320),
        "usage_entropy": (0.9049, 0.9403),
        "coherence_rms": (0.0346, 0.0339),
        "active_share": (0.3137, 0.3432),
    },
    "TopK": {
        "dead_fraction": (0.1599, 0.0286),
        "usage_entropy": (0.8124, 0.8477),
        "coherence_rms": (0.0387, 0.0373),
        "active_share": (0.0156, 0.0156),
    },
}
"""Without and with the regulariser."""


def sae_config(kind: str, regularised: bool, n_steps: int, l1: float) -> TrainingSAEConfig:
    """One of the four SAEs."""
    shared: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "normalize_activations": "expected_average_only_in",
        "self_consistency_weight": WEIGHTS[kind] if regularised else 0.0,
        "self_consistency_warm_up_start": n_steps // 5,
        "self_consistency_warm_up_end": 2 * n_steps // 5,
    }
    if kind == "TopK":
        return RegularizedTopKTrainingSAEConfig(**shared, k=32)
    return RegularizedStandardTrainingSAEConfig(**shared, l1_coefficient=l1)


def measure(sae: TrainingSAE[Any], activations: torch.Tensor) -> dict[str, float]:
    """Health by appendix D, and what it must not cost."""
    # supports of a ReLU SAE are large, and what is measured here needs few of them
    found = audit(sae.eval(), activations, n_kept=256, n_supports=16)
    return {
        "dead_fraction": found.health.dead_fraction,
        "usage_entropy": found.health.usage_entropy,
        "coherence_rms": found.health.coherence_rms,
        "active_share": found.l0.mean / D_SAE,
        "self_consistency_residual": found.self_consistency.residual_in_support.mean,
        "relative_error": found.error.mean,
    }


def table(rows: dict[str, dict[str, list[float]]], kind: str) -> dict[str, Any]:
    """Ours beside the paper's: mean, spread over seeds, and the change in percent."""
    without, with_term = rows[f"{kind}/without"], rows[f"{kind}/with"]
    lines: dict[str, Any] = {}
    for name, plain in without.items():
        regularised = with_term[name]
        lines[name] = {
            "without": [fmean(plain), stdev(plain)],
            "with": [fmean(regularised), stdev(regularised)],
            "change_percent": 100 * (fmean(regularised) / fmean(plain) - 1) if any(plain) else None,
            "seeds_that_fall": sum(b < a for a, b in zip(plain, regularised, strict=True)),
        }
        if name in PAPER[kind]:
            before, after = PAPER[kind][name]
            lines[name]["paper"] = [before, after]
            lines[name]["paper_change_percent"] = 100 * (after / before - 1)
    return lines


def main() -> None:
    """Train all, measure all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256_000)
    parser.add_argument("--held-out", type=int, default=20_000)
    parser.add_argument("--kinds", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--l1", type=float, default=10.0, help="of ReLU + L1; the paper's is 10")
    parser.add_argument("--name", default="self_consistency_study", help="of the result file")
    args = parser.parse_args()
    n_steps = args.tokens // BATCH
    saes = {
        f"{kind}/{name}/seed_{seed}": seeded_sae(
            sae_config(kind, name == "with", n_steps, args.l1), seed
        )
        for kind in args.kinds
        for name in ("without", "with")
        for seed in range(args.seeds)
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "training_tokens": args.tokens,
            "train_batch_size_tokens": BATCH,
            "output_path": folder,
            # SAELens' defaults, where the file has those of a shorter run
            "dead_feature_window": 1000,
            "lr_decay_steps": 0,
        }
        cfg = load_runner_config(CONFIG, [f"--{name}={value}" for name, value in flags.items()])
        result = train_together(cfg, saes, n_eval_batches=0, n_kept_activations=args.held_out)
        assert result.activations_path is not None
        activations = load_file(result.activations_path)["activations"]
    each = {name: measure(sae, activations) for name, sae in saes.items()}
    rows: dict[str, dict[str, list[float]]] = {}
    for name, values in each.items():
        row = rows.setdefault(name.rpartition("/")[0], {})
        for key, value in values.items():
            row.setdefault(key, []).append(value)
    write_result(
        args.name,
        {
            "setting": {"d_sae": D_SAE, "batch": BATCH, **vars(args)},
            "seconds": time.perf_counter() - start,
            "tables": {kind: table(rows, kind) for kind in args.kinds},
            "each": each,
        },
    )


if __name__ == "__main__":
    main()
