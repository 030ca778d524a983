"""Stop a training run whose loss is NaN or infinite, before a checkpoint of it is written."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.lagging import LaggingCopies


class NonFiniteWatch:
    """Finds the training step whose loss was NaN or infinite without making the host wait.

    On a CUDA device the host learns of it two steps late. `check(wait=True)` looks at everything
    that was recorded: it is meant for the moment before a checkpoint is written.
    """

    def __init__(self) -> None:
        self._losses = LaggingCopies()
        self._first_bad: int | None = None

    @not_compiled
    def record(self, loss: Float[torch.Tensor, ""], step: int) -> None:
        """Note the loss of `step`."""
        self._losses.push(step, loss)

    @not_compiled
    def check(self, wait: bool = False) -> None:
        """Raise for the first step with a NaN or infinite loss.

        Raises:
            InputError: It names the step.
        """
        for step, loss in self._losses.pop(wait):
            if self._first_bad is None and not math.isfinite(float(loss)):
                self._first_bad = step
        if self._first_bad is not None:
            raise InputError(
                f"training step {self._first_bad}: the loss is NaN or infinite. Look for NaN, Inf "
                "or (with normalize_activations='constant_norm_rescale') all-zero activations in "
                "that batch, or lower the learning rate. No checkpoint was written since; go on "
                "from the last one."
            )
