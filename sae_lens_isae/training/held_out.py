"""Activations to measure SAEs on, which no SAE was trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float

from sae_lens_isae.inputs.patch_images import Origin


class HeldOut(NamedTuple):
    """Some activations and what they are of."""

    activations: Float[torch.Tensor, "activations d_in"]
    origin: Origin | None
    """Their tokens or image patches, where they are known."""

    def first(self, n: int) -> HeldOut:
        """The first `n` of them."""
        return HeldOut(self.activations[:n], self.origin and self.origin.first(n))
