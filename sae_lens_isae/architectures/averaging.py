"""Weights averaged over the last steps of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

Parameters = Mapping[str, torch.nn.Parameter]


class WeightAverage(torch.nn.Module):
    """The running mean of some parameters, kept in checkpoints and left out of exports.

    torch's own `AveragedModel` holds parameters of its own, which an optimizer of the whole SAE
    would take for some to train.
    """

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_buffer(name, torch.zeros_like(parameter))

    @torch.no_grad()
    def add(self, parameters: Parameters, n: int) -> None:
        """Count the parameters as they are.

        Args:
            n: How many times they have been counted, with this one.
        """
        for mean, now in self._pairs(parameters):
            mean.lerp_(now, 1 / n)

    @torch.no_grad()
    def put_into(self, parameters: Parameters) -> None:
        """Let the parameters be their mean."""
        for mean, now in self._pairs(parameters):
            now.copy_(mean)

    def _pairs(self, parameters: Parameters) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for name, mean in self.named_buffers():
            yield mean, parameters[name]
