"""What a training run produces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import TrainingSAE

ACTIVATIONS_FILENAME = "activations.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainedSAE:
    """One trained SAE and where its inference form was saved."""

    name: str
    sae: TrainingSAE[Any]
    path: Path | None
    metrics: dict[str, float]
    """CE-loss score, explained variance and L0 from SAELens' `run_evals`, on images the last two;
    empty if not asked."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run produced."""

    saes: list[TrainedSAE]
    activations_path: Path | None
    """Activations that no SAE was trained on, for `isae pairwise`; None without output path."""
