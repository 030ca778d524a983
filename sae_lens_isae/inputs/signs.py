"""Codes with signs, and the non-negative form of an SAE that has them.

That form has each atom twice, once with either sign,

    W_dec' = [D; -D],    z' = relu([z, -z]),    z' W_dec' = z D,

so that what is rebuilt, the loss of a model with it and L0 are equal, and each direction of a
latent is a latent of its own.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float

from sae_lens_isae.inputs.linear_sae import LinearSAE

CodeForm = Literal["as_is", "non_negative"]
"""Codes as they are, or in the non-negative form where they have signs."""

_TRIED = 256


def unfold_signs(z: Float[torch.Tensor, "*batch f"]) -> Float[torch.Tensor, "*batch f2"]:
    """relu([z, -z]): non-negative codes of twice as many latents."""
    return torch.cat([z, -z], dim=-1).relu_()


def has_signed_codes(linear: LinearSAE) -> bool:
    """Whether the encoder gives negative coefficients, tried on random activations."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_TRIED, linear.d_in, generator=generator).to(linear.device)
    # activations as large as the bias, or of norm sqrt(d_in) around one that is small
    offset = linear.encode(torch.zeros(1, linear.d_in)).offset
    x = offset + noise * (offset.norm() / linear.d_in**0.5).clamp_min(1.0)
    return bool((linear.encode(x).codes < 0).any())
