"""What one rank of a test does: train a variant on its share of every batch, and keep the weights.

python rank_worker.py FOLDER N_STEPS,N_STEPS,... cpu|cuda VARIANT ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sae_lens import SAETrainer
from sae_lens.config import SAETrainerConfig
from safetensors.torch import save_file

from sae_lens_isae.architectures.regularized import REGULARIZED
from sae_lens_isae.training.data_parallel import launched, share_steps
from sae_lens_isae.training.normalization import estimate_normalization
from tests.conftest import BATCH, D_IN, D_SAE, Activations, K, isae_config, make_sae

LOSSES = {
    "arip_weight": 0.1,
    "wsae_alpha": 0.5,
    "self_consistency_weight": 0.5,
    "self_consistency_warm_up_start": 0,
    "self_consistency_warm_up_end": 2,
}


def config(variant: str) -> Any:
    """At test size, with what has statistics over a batch switched on."""
    if variant.startswith("regularized_"):
        cls = next(c for _, c in REGULARIZED if c.architecture() == variant)
        sizes = {"k": K} if "topk" in variant else {}
        return cls(d_in=D_IN, d_sae=D_SAE, **sizes, **LOSSES)
    settings = {"resample_until": 40, "resample_every": 4}
    normalization = "covariance_whitening" if variant == "TopK" else "expected_average_only_in"
    return isae_config(variant, normalize_activations=normalization, **settings)


def train(variant: str, n_steps: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Weights and counts after so many steps."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    sae = make_sae(config(variant)).to(device)
    shares = (batch.chunk(world)[rank].to(device) for batch in Activations(0.5))
    settings = SAETrainerConfig(
        total_training_samples=50 * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_end=3e-4,
        dead_feature_window=2,
        n_batches_for_norm_estimate=3,
        device=device,
    )
    trainer = SAETrainer(settings, sae, shares)
    share_steps(trainer)
    named: Iterator[dict[str, torch.Tensor]] = ({"": batch} for batch in shares)
    estimate_normalization({"": trainer}, named)
    for _ in range(n_steps):
        trainer.step(next(shares))
        trainer.n_training_steps += 1
    assert trainer.n_training_samples == n_steps * BATCH
    counts = {
        "fired": trainer.act_freq_scores,
        "passes": trainer.n_forward_passes_since_fired,
    }
    tensors = {**sae.state_dict(), **counts}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    """Every variant, in a group of this launch."""
    torch.set_num_threads(1)
    folder, n_steps, device, *variants = sys.argv[1:]
    if device == "cuda":
        device = f"cuda:{launched().local_rank}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    for n in n_steps.split(","):
        for variant in variants:
            found = train(variant, int(n), device)
            save_file(found, Path(folder) / f"{variant}_{n}_{launched().rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
