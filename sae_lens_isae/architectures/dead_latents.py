"""The loss that keeps latents alive (Gao et al. 2024, appendix A.2), and which latents it reads.

Dead latents reconstruct what the code left over. They are encoded linearly in every variant: a loss
that read `hidden_pre`, or the last step of the multistep encoder, would send a dense gradient
through the encoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.abstopk_sae import calculate_abstopk_aux_acts
from sae_lens.saes.topk_sae import calculate_topk_aux_acts
from torch.nn.functional import normalize

from sae_lens_isae.ops.lagging import LaggingCopies

_FEWEST_SLOTS = 256


def dead_latent_loss(
    residual: Float[torch.Tensor, "batch d_in"],
    centred: Float[torch.Tensor, "batch d_in"],
    to_unit_norm: Float[torch.Tensor, "batch 1"] | float,
    dead: Bool[torch.Tensor, " d_sae"],
    n_slots: int,
    W_enc: Float[torch.Tensor, "d_in d_sae"],
    W_dec: Float[torch.Tensor, "d_sae d_in"],
    signed: bool,
) -> Float[torch.Tensor, ""]:
    """Squared error of the residual as dead latents rebuild it, mean over samples.

    Up to d_in / 2 of them are used per sample. Where fewer latents than that are dead, the loss is
    scaled by their share, as in SAELens.

    Args:
        residual: What the code left over, on the unit-norm scale; no gradient.
        centred: x - b.
        to_unit_norm: Takes a reconstruction to the unit-norm scale.
        n_slots: Latents that are read, at least as many as are dead; see `DeadLatentSlots`.
    """
    d_in, d_sae = W_enc.shape
    k_aux = min(max(d_in // 2, 1), d_sae)
    latents = first_dead(dead, n_slots)
    acts = dead_latent_acts(centred @ W_enc[:, latents], dead[latents], k_aux, signed)
    recons = acts @ normalize(W_dec[latents], dim=-1)
    error = (recons * to_unit_norm - residual).pow(2).sum(-1).mean()
    return (dead.sum() / k_aux).clamp(max=1) * error


def first_dead(dead: Bool[torch.Tensor, " d_sae"], n_slots: int) -> Int[torch.Tensor, " slots"]:
    """Indices of the first `n_slots` dead latents, then of living ones if there are fewer.

    The host chooses the number of slots, so it need not wait for the number of dead latents.
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


class DeadLatentSlots:
    """How many slots the dead latents of a step get, without making the host wait for their number.

    On a CUDA device it goes by the number of two steps ago; only the first step waits.
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
