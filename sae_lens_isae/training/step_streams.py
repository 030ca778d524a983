"""Training steps of several SAEs beside each other on one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepOutput


def step_beside_each_other(trainers: Sequence[SAETrainer[Any, Any]]) -> None:
    """Let each trainer step on a CUDA stream of its own; the last waits for all of them.

    Kernels of one SAE seldom fill a GPU. The trainers must step in the order in which they are
    given, as SAELens' `MultiSAETrainer` lets them.
    """
    devices = [torch.device(trainer.cfg.device) for trainer in trainers]
    if any(device.type != "cuda" for device in devices):
        return
    streams = [torch.cuda.Stream(device) for device in devices]
    for trainer, stream in zip(trainers, streams, strict=True):
        joins = streams if trainer is trainers[-1] else []
        _step_on(trainer, stream, joins)


def _step_on(
    trainer: SAETrainer[Any, Any], stream: torch.cuda.Stream, joins: Sequence[torch.cuda.Stream]
) -> None:
    step = trainer.step

    def step_there(batch: torch.Tensor) -> TrainStepOutput:
        main = torch.cuda.current_stream(stream.device)
        # for the batch, and for what was read of the last step
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            output = step(batch)
        for other in joins:
            main.wait_stream(other)
        return output

    trainer.step = step_there
