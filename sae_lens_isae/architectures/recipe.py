"""The training recipe that all variants share (Nelson et al. 2026, 'Training recipe', after Gao et
al. 2024).

Unit-norm inputs enter through the loss alone. Without an encoder bias AbsTopK(W (x - b)), TopK and
the multistep recursion are positively homogeneous in x - b, so scaling x - b to unit norm and the
code back changes nothing, and mean |x - x_hat|^2 / |x|^2 is the mean squared error on unit-norm
inputs. The SAE itself stays stateless. (With `normalize_activations="constant_norm_rescale"`, the
paper's exact placement, SAELens scales x before b is subtracted; the loss is the same.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float

_SMALLEST_DISTANCE = 1e-30


def inverse_norm(x: Float[torch.Tensor, "batch d_in"]) -> Float[torch.Tensor, "batch 1"]:
    """1 / |x| per token, and 0 for a zero token, so that it drops out of every loss."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, 1 / norm, 0.0)


def unit_norm_mse(
    sae_out: Float[torch.Tensor, "batch d_in"], sae_in: Float[torch.Tensor, "batch d_in"]
) -> Float[torch.Tensor, ""]:
    """Mean of |x - x_hat|^2 / |x|^2: the MSE column of the paper's tables."""
    return ((sae_out - sae_in) * inverse_norm(sae_in)).pow(2).sum(-1).mean()


@torch.no_grad()
def geometric_median(
    points: Float[torch.Tensor, "batch d_in"], n_iterations: int = 100
) -> Float[torch.Tensor, " d_in"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration.

    The number of iterations is fixed: a stopping test would make the host wait for the device.
    """
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    median = points.mean(0)
    for _ in range(n_iterations):
        distance = (points - median).norm(dim=-1)
        # a point that the estimate sits on would get infinite weight, and all may sit on it
        nearest = (1e-6 * distance.mean()).clamp_min(_SMALLEST_DISTANCE)
        weight = 1 / distance.clamp_min(nearest)
        median = (weight / weight.sum()) @ points
    return median
