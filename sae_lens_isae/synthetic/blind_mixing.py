"""Blind mixing: k-sparse positive latents over correlated concepts ('Latent Recovery', appendix
B.2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.synthetic import SyntheticModel
from typing_extensions import override

from sae_lens_isae.ops.sparse import to_dense
from sae_lens_isae.synthetic.mixture import mixture_atoms
from sae_lens_isae.synthetic.signed import KSparseGenerator, synthetic_model

_SMALLEST = 0.5


class UniformSparseGenerator(KSparseGenerator):
    """`k` latents of every sample are active, any k alike, with amplitudes uniform in [0.5, 1]."""

    @override
    @torch.no_grad()
    def sample(self, batch_size: int) -> Float[torch.Tensor, "batch num_features"]:
        """Draw latents from torch's global generator."""
        device = self.firing_probabilities.device
        order = torch.rand(batch_size, self.num_features, device=device)
        active = order.topk(self.k, dim=-1, sorted=False).indices
        amplitude = _SMALLEST + (1 - _SMALLEST) * torch.rand(active.shape, device=device)
        return to_dense(active, amplitude, self.num_features)


def blind_mixing_synthetic_model(
    num_features: int,
    hidden_dim: int,
    k: int,
    correlation: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> SyntheticModel:
    """A SAELens synthetic model x_p = W_p x with k-sparse x >= 0.

    Args:
        correlation: rho, the cosine that two concepts have on average: columns of W_p share one
            direction with this weight and are then normalised.
    """
    atoms = mixture_atoms(num_features, hidden_dim, n_clusters=1, similarity=correlation, seed=seed)
    generator = UniformSparseGenerator(num_features, k, device)
    return synthetic_model(generator, hidden_dim, seed, device, atoms)
