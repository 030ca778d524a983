"""What agreement is by chance."""

from __future__ import annotations

import torch
from jaxtyping import Float


def random_directions(
    activations: Float[torch.Tensor, "samples d_in"], n: int, generator: torch.Generator
) -> Float[torch.Tensor, "n d_in"]:
    """Gaussian directions with the covariance of activations: two dictionaries of such atoms have a
    cosine well above that of isotropic ones, and no training."""
    centred = activations - activations.mean(0)
    # sums of the activations with Gaussian weights
    return torch.randn(n, len(centred), generator=generator) @ centred
