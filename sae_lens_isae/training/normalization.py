"""The constants that SAELens estimates before training, for several SAEs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAETrainer

from sae_lens_isae.distributed import joined


def estimate_normalization(
    trainers: Mapping[str, SAETrainer[Any, Any]],
    batches: Iterator[dict[str, Float[torch.Tensor, "batch d_in"]]],
) -> None:
    """Let every trainer's scaler estimate what it needs from its own batches, as SAELens does.

    What a checkpoint brought is kept. On several ranks the batches of all of them count.

    Args:
        trainers: By the names under which `batches` has their activations.
    """
    kinds = {name: _needed(trainer) for name, trainer in trainers.items()}
    kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    if not kinds:
        return
    n = next(iter(trainers.values())).cfg.n_batches_for_norm_estimate
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in kinds}
    for _ in range(n):
        found = next(batches)
        for name, kind in kinds.items():
            # a scaling factor needs the norms alone, and a number's norm is the number
            part = found[name] if kind == _WHITENING else found[name].norm(dim=-1, keepdim=True)
            seen[name].append(joined(part))
    for name, kind in kinds.items():
        scaler, d_in = trainers[name].activation_scaler, trainers[name].sae.cfg.d_in
        if kind == _WHITENING:
            scaler.estimate_whitening(d_in, iter(seen[name]), n)
        else:
            scaler.estimate_scaling_factor(d_in, iter(seen[name]), n)


_SCALING = "expected_average_only_in"
_WHITENING = "covariance_whitening"


def _needed(trainer: SAETrainer[Any, Any]) -> str | None:
    kind, scaler = trainer.sae.cfg.normalize_activations, trainer.activation_scaler
    if kind == _SCALING and scaler.scaling_factor is None:
        return kind
    if kind == _WHITENING and scaler.whitening is None:
        return kind
    return None
