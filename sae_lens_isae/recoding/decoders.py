"""Is the decoder determined by the codes? Refitted decoders of paper 4, appendix F."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from sae_lens_isae.solvers import SparseCodes


@dataclass(frozen=True)
class RefittedDecoder:
    """Atoms for the latents that some code uses; the others have none."""

    latents: Int[torch.Tensor, " active"]
    atoms: Float[torch.Tensor, "active d_in"]

    def cosines_to(
        self, dictionary: Float[torch.Tensor, "d_sae d_in"]
    ) -> Float[torch.Tensor, " active"]:
        """Cosine of every refitted atom with the one it replaces."""
        return torch.nn.functional.cosine_similarity(
            self.atoms, dictionary[self.latents].to(self.atoms), dim=-1
        )

    def cosines_with(self, other: RefittedDecoder) -> Float[torch.Tensor, " shared"]:
        """Cosine of the atoms of the latents that both have."""
        mine = torch.isin(self.latents, other.latents)
        theirs = torch.isin(other.latents, self.latents)
        return torch.nn.functional.cosine_similarity(self.atoms[mine], other.atoms[theirs], dim=-1)


@torch.no_grad()
def refit_decoder(
    codes: SparseCodes, target: Float[torch.Tensor, "samples d_in"], ridge: float = 1e-6
) -> RefittedDecoder:
    """D* = argmin |X - Z D|^2 + ridge |D|^2 (paper 4, equation 3), in float64.

    Solved in the dual, Z^T (Z Z^T + ridge I)^-1 X, where fewer samples than latents are active.

    Args:
        target: X, what the decoder adds whatever the code subtracted.

    Raises:
        ValueError: ridge is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    x = target.double()
    latents, place = codes.indices[codes.values != 0].unique(return_inverse=True)
    z = x.new_zeros(len(x), len(latents))
    row = (codes.values != 0).nonzero()[:, 0]
    z[row, place] = codes.values[codes.values != 0].double()
    dual = len(latents) > len(x)
    values, vectors = torch.linalg.eigh(z @ z.T if dual else z.T @ z)
    inverse = (vectors / (values.clamp_min(0) + ridge)) @ vectors.T
    return RefittedDecoder(latents, z.T @ (inverse @ x) if dual else inverse @ (z.T @ x))
