"""What goes into a training step and what comes out, apart from the parameters."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class StepInputs:
    """What a training step computes with, besides the parameters."""

    sae_in: Float[torch.Tensor, "batch d_in"]
    dead_neuron_mask: Bool[torch.Tensor, " d_sae"] | None
    coefficients: dict[str, float]
    of_terms: dict[str, tuple[torch.Tensor, ...]]
    """What each loss term needs besides the batch, see `LossTerm.inputs`."""


@dataclass(frozen=True)
class StepOutputs:
    """What a training step computes; only `loss` carries gradients."""

    loss: Float[torch.Tensor, ""]
    losses: dict[str, Float[torch.Tensor, ""]]
    feature_acts: Float[torch.Tensor, "batch d_sae"]
    hidden_pre: Float[torch.Tensor, "batch d_sae"]
    sae_out: Float[torch.Tensor, "batch d_in"]
    dictionary: Float[torch.Tensor, "d_sae d_in"]
