"""The training recipe that all variants share (paper 1, 'Training recipe', after Gao et al. 2024).

Unit-norm inputs enter through the loss alone. Without an encoder bias AbsTopK(W (x - b)), TopK and
the multistep recursion are positively homogeneous in x - b, so scaling x - b to unit norm and the
code back changes nothing, and mean |x - x_hat|^2 / |x|^2 is the mean squared error on unit-norm
inputs. The SAE itself stays stateless. (With `normalize_activations="constant_norm_rescale"`, the
paper's exact placement, SAELens scales x before b is subtracted; the loss is the same.)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.abstopk_sae import calculate_abstopk_aux_acts
from sae_lens.saes.topk_sae import calculate_topk_aux_acts

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.lagging import LaggingCopies

_FEWEST_SLOTS = 256
_SMALLEST_DISTANCE = 1e-30


def inverse_norm(x: Float[torch.Tensor, "batch d_in"]) -> Float[torch.Tensor, "batch 1"]:
    """1 / |x| per token, and 0 for a zero token, which thereby drops out of every loss."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, 1 / norm, 0.0)


def unit_norm_mse(
    sae_out: Float[torch.Tensor, "batch d_in"], sae_in: Float[torch.Tensor, "batch d_in"]
) -> Float[torch.Tensor, ""]:
    """Mean of |x - x_hat|^2 / |x|^2: the MSE column of the paper's tables."""
    return ((sae_out - sae_in) * inverse_norm(sae_in)).pow(2).sum(-1).mean()


def first_dead(dead: Bool[torch.Tensor, " d_sae"], n_slots: int) -> Int[torch.Tensor, " slots"]:
    """Indices of the first `n_slots` dead latents, then of living ones if there are fewer.

    The number of slots is the host's to choose, so that it need not wait for the number of dead.
    """
    return dead.logical_not().to(torch.uint8).argsort(stable=True)[:n_slots]


def dead_latent_acts(
    linear_pre: Float[torch.Tensor, "batch slots"],
    dead: Bool[torch.Tensor, " slots"],
    k_aux: int,
    signed: bool,
) -> Float[torch.Tensor, "batch slots"]:
    """The `k_aux` largest dead latents of each sample, all others zero."""
    acts = torch.where(dead, linear_pre, 0.0)
    if k_aux < len(dead):
        pick = calculate_abstopk_aux_acts if signed else calculate_topk_aux_acts
        # living ones that fill up the selection are 0 in `acts`
        acts = pick(k_aux, acts, dead)
    return acts if signed else acts.relu()


@torch.no_grad()
def project_to_unit_norm(weight: Float[torch.Tensor, "d_sae d_in"]) -> None:
    """Scale every row to unit norm, in place."""
    weight.div_(weight.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny))


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
            ValueError: It names the step.
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


class DeadLatentSlots:
    """How many slots the dead latents of a step get, without making the host wait for their number.

    The number of two steps ago counts on a CUDA device; at the first step the host does wait.
    """

    def __init__(self) -> None:
        self._counts = LaggingCopies()
        self._n_dead: int | None = None
        self.n = 0
        """Slots of the present step: a power of two, so that shapes seldom change; 0 for none."""

    def update(self, dead: Bool[torch.Tensor, " d_sae"]) -> None:
        """Hand in the dead latents of the present step."""
        self._counts.push(0, dead.sum())
        for _, count in self._counts.pop(wait=self._n_dead is None):
            self._n_dead = int(count)
        n_dead = self._n_dead or 0
        rounded = 1 << (n_dead - 1).bit_length()
        self.n = min(max(_FEWEST_SLOTS, rounded), len(dead)) if n_dead else 0
