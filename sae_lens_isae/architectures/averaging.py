"""Weights averaged over the last steps of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

Parameters = Mapping[str, torch.nn.Parameter]


class WeightAverage(torch.nn.Module):
    """The running mean of some parameters, kept in checkpoints and left out of exports.

    torch's own `AveragedModel` holds parameters of its own, which an optimizer of the whole SAE
    would take for some to train.

    Args:
        first: The first training step before which the parameters are counted.
        until: The number of training steps of the run, before whose last the parameters become
            their mean.
    """

    def __init__(self, parameters: Parameters, first: int, until: int) -> None:
        super().__init__()
        self._first, self._until = first, until
        for name, parameter in parameters.items():
            self.register_buffer(name, torch.zeros_like(parameter))

    @torch.no_grad()
    def before_step(self, sae: torch.nn.Module, n_steps: int) -> None:
        """Count the parameters where it is time, and before the last step let them be their mean.

        Args:
            sae: Whose parameters these are.
            n_steps: Training steps so far.
        """
        if n_steps == self._until:
            warnings.warn(
                f"training goes on after {n_steps} steps, before whose last the weights became "
                "their mean: let average_until be the number of steps of the whole run",
                stacklevel=2,
            )
        if not self._first <= n_steps < self._until:
            return
        parameters = dict(sae.named_parameters())
        for name, mean in self.named_buffers():
            mean.lerp_(parameters[name], 1 / (n_steps - self._first + 1))
            if n_steps == self._until - 1:
                parameters[name].copy_(mean)

    def check_export(self, n_steps: int) -> None:
        """Say so where the weights have not become their mean yet.

        Args:
            n_steps: Training steps so far.
        """
        if n_steps < self._until:
            warnings.warn(
                f"the weights are not averaged: that happens before the last of {self._until} "
                f"steps (average_until), and training has made {n_steps}",
                stacklevel=2,
            )
