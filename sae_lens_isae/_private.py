"""The only place that uses names which SAELens, TransformerLens and torch do not promise to keep.

Seen in sae-lens 6.54.0 to 6.54.12, transformer-lens 3.9.0 and torch 2.11 to 2.13;
`tests/test_private.py` fails when one moves. (Names of SAEBench are in `saebench/upstream.py`.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformer_lens.loading_from_pretrained as tl_loading
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    MultiSAETrainingRunner,
    SAETrainer,
    TrainingSAE,
)
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.llm_sae_training_runner import (
    _parse_cfg_args,  # pyright: ignore[reportPrivateUsage]
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from typing_extensions import override

from sae_lens_isae.distributed import rank
from sae_lens_isae.files import whole_folder


def parse_runner_config(args: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """Parse the flags of `python -m sae_lens.llm_sae_training_runner` without starting the run.

    SAELens' command line offers no other way to seed, to train several seeds, or to hand over a
    model. Raises `argparse.ArgumentError` or `SystemExit` on bad flags, like any argparse parser.
    """
    return _parse_cfg_args(list(args))


def allow_local_model(folder: str) -> None:
    """Let `HookedTransformer.from_pretrained` load a local folder.

    TransformerLens refuses every name that its list lacks.
    """
    names = tl_loading.OFFICIAL_MODEL_NAMES  # pyright: ignore[reportPrivateImportUsage]
    if folder not in names:
        names.append(folder)


def count_tokens(trainer: SAETrainer[Any, Any] | MultiSAETrainer) -> None:
    """Let a trainer's progress bar move with every step and say that it counts tokens.

    SAELens moves it every hundred steps, and names no unit. Losses are written beside it as often
    as before: reading them waits for the device.
    """
    update: Any = trainer._update_pbar  # pyright: ignore[reportPrivateUsage]
    n_tokens = trainer.cfg.train_batch_size_samples

    def update_each_step(outputs: Any, pbar: Any, update_interval: int = 100) -> None:
        # writes the losses; its own way of moving the bar goes nowhere
        losses_only = SimpleNamespace(set_description=pbar.set_description, update=lambda _: None)
        update(outputs, losses_only, update_interval)
        pbar.unit, pbar.unit_scale = " token", True
        pbar.update(n_tokens)

    vars(trainer)["_update_pbar"] = update_each_step


def writes_to(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to in place; None for inference tensors, which do not tell."""
    return None if tensor.is_inference() else tensor._version


class SingleRunner(LanguageModelSAETrainingRunner):
    """SAELens' runner with another way to run its trainer, and results that are whole or absent."""

    fit: Callable[[Any], TrainingSAE[Any]]
    """Called with the trainer in place of `trainer.fit()`."""

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> TrainingSAE[Any]:
        return self.fit(trainer)

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        if rank():
            return
        with whole_folder(Path(output_path)) as scratch:
            super().save_final_sae(sae, str(scratch), log_feature_sparsity)


class MultiRunner(MultiSAETrainingRunner):
    """The same for several SAEs, where both seams are private."""

    fit: Callable[[Any], dict[str, TrainingSAE[Any]]]
    """Called with the trainer in place of `trainer.fit()`."""

    @override
    def _run_with_interruption_handling(self, trainer: Any) -> dict[str, TrainingSAE[Any]]:
        return self.fit(trainer)

    @override
    def _save_final_outputs(self, saes: dict[str, TrainingSAE[Any]], trainer: Any) -> None:
        output_path = self.cfg.output_path
        assert output_path is not None
        if rank():
            return
        with whole_folder(Path(output_path)) as scratch:
            self.cfg.output_path = str(scratch)
            try:
                super()._save_final_outputs(saes, trainer)
            finally:
                self.cfg.output_path = output_path
            (scratch / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict()))
