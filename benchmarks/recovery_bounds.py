"""How well codes recover latents, where these are known: x_p = W_p x.

The bounds of 'Latent Recovery', section 3 on the error of a code, and the terms by which the loss
of WSAE differs from it (Cui et al. 2025, Theorem 4). Concepts are rows here, as in `SAE.W_dec`: W_p
has shape [latents, d_in] and x_p = x W_p. Leading dimensions, one model each, broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float


def lemma_1(
    latents: Float[torch.Tensor, "*models samples latents"],
    codes: Float[torch.Tensor, "*models samples latents"],
    concepts: Float[torch.Tensor, "*models latents d_in"],
) -> tuple[
    Float[torch.Tensor, "*models samples"],
    Float[torch.Tensor, "*models samples"],
]:
    """Both sides of Lemma 1 of 'Latent Recovery': |(D^-1/2 x_m - x~)_S|, and its upper bound
    (k - 1) mu |x~| + |(x~ - relu(x~))_S|, with x~ = D^1/2 x and S the support of x.

    It holds where codes are relu(x_p W_p^T): encoder and concepts are the same matrix.
    """
    norm = concepts.norm(dim=-1)
    unit = concepts / norm[..., None]
    cosine = unit @ unit.mT
    mu = (cosine - torch.eye(cosine.shape[-1], device=cosine.device)).abs().amax((-2, -1))
    norm = norm[..., None, :]
    scaled = norm * latents
    active = latents != 0
    error = torch.where(active, codes / norm - scaled, 0.0).norm(dim=-1)
    lost = scaled.clamp(max=0).norm(dim=-1)
    k = active.sum(-1)
    return error, (k - 1) * mu[..., None] * scaled.norm(dim=-1) + lost


def theorem_2(
    codes: Float[torch.Tensor, "*models samples latents"],
    again: Float[torch.Tensor, "*models samples latents"],
    encoder: Float[torch.Tensor, "*models d_in latents"],
    concepts: Float[torch.Tensor, "*models latents d_in"],
) -> Float[torch.Tensor, "*models samples"]:
    """The lower bound |x_t - x_m| / L on |x_m - x| (Theorem 2 of 'Latent Recovery', L of Corollary
    3).

    It holds where codes are F(x) = relu(x W_p W_enc), without biases, and `again` = F(codes): the
    decoder is W_p. The encoder need not be its transpose: F is |W_p W_enc|-Lipschitz anyway.
    """
    lipschitz = torch.linalg.matrix_norm(concepts @ encoder, ord=2)
    return (again - codes).norm(dim=-1) / lipschitz[..., None]


@dataclass(frozen=True)
class ReweightingGap:
    """L_WSAE = `recovery` + `mismatch` + `cross` + `interference`, each a mean over samples.

    With e = x - x_m the error of the codes, W_p the concepts and W_dec the decoder, x_p - x_hat is
    e W_p + x_m (W_p - W_dec), and |(x_p - x_hat) Gamma|^2 falls into these.
    """

    recovery: Float[torch.Tensor, "*models"]
    """L_Rec = |e|^2: what one would like to minimise."""
    mismatch: Float[torch.Tensor, "*models"]
    """|x_m (W_p - W_dec) Gamma|^2."""
    cross: Float[torch.Tensor, "*models"]
    """2 <e W_p Gamma, x_m (W_p - W_dec) Gamma>."""
    interference: Float[torch.Tensor, "*models"]
    """e (W_p Gamma^2 W_p^T - I) e^T: what the weights can narrow."""

    @property
    def total(self) -> Float[torch.Tensor, "*models"]:
        """L_WSAE."""
        return self.recovery + self.mismatch + self.cross + self.interference


def reweighting_gap(
    latents: Float[torch.Tensor, "*models samples latents"],
    codes: Float[torch.Tensor, "*models samples latents"],
    concepts: Float[torch.Tensor, "*models latents d_in"],
    decoder: Float[torch.Tensor, "*models latents d_in"],
    squared_weights: Float[torch.Tensor, "*models d_in"],
) -> ReweightingGap:
    """The terms of Theorem 4 of Cui et al. 2025, as they follow from x_p = x W_p.

    Args:
        codes: Matched to the latents: code i stands for latent i.
        decoder: Rows in the same order.
        squared_weights: The diagonal of Gamma^2; ones for the plain SAE.
    """
    gamma = squared_weights.sqrt()[..., None, :]
    error = latents - codes
    of_codes = error @ concepts * gamma
    of_decoder = codes @ (concepts - decoder) * gamma
    recovery = error.square().sum(-1).mean(-1)
    return ReweightingGap(
        recovery=recovery,
        mismatch=of_decoder.square().sum(-1).mean(-1),
        cross=2 * (of_codes * of_decoder).sum(-1).mean(-1),
        interference=of_codes.square().sum(-1).mean(-1) - recovery,
    )
