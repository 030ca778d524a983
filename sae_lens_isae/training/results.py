"""What a training run produces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE

from sae_lens_isae.distributed import rank, wait_for_all
from sae_lens_isae.inputs.activation_files import save_activations
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.training.data import TrainingData
from sae_lens_isae.training.held_out import HeldOut

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


def finish(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: Mapping[str, TrainingSAE[Any]],
    data: TrainingData,
    n_kept_activations: int,
    evaluate: Callable[[TrainingSAE[Any], HeldOut | None], dict[str, float]],
) -> TrainingResult:
    """Keep held-out activations beside the SAEs, and evaluate these; on the first rank alone.

    Args:
        saes: By name; the only one of a run is `""`.
        evaluate: Takes an SAE and the activations, None where none are kept.
    """
    if rank():
        # the first evaluates, and the group ends for all at once
        wait_for_all()
        return TrainingResult(saes=[], activations_path=None)
    output = Path(cfg.output_path) if cfg.output_path is not None else None
    activations_path, held_out = None, None
    # before the evaluation, which reads on in the text
    if output is not None and n_kept_activations > 0:
        activations_path = output / ACTIVATIONS_FILENAME
        held_out = data.held_out(n_kept_activations)
        save_activations(activations_path, *held_out)
    trained = [
        TrainedSAE(
            name=name or sae.cfg.architecture(),
            sae=sae,
            path=output / name if output is not None else None,
            metrics=evaluate(sae, held_out),
        )
        for name, sae in progress_bar(saes.items(), desc="Evaluating", unit="SAE")
    ]
    wait_for_all()
    return TrainingResult(saes=trained, activations_path=activations_path)
