"""Signed k-sparse codes over random concepts: the i.i.d. setting of Nelson et al. 2026, section 4.

SAELens' own generator applies ReLU to the codes, also after its modifiers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.synthetic import (
    ActivationGenerator,
    SyntheticModel,
    SyntheticModelConfig,
)
from typing_extensions import override

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.selection import select_largest
from sae_lens_isae.ops.sparse import to_dense


class KSparseGenerator(ActivationGenerator):
    """Codes with exactly `k` active entries; a subclass says which and how large."""

    def __init__(self, num_features: int, k: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= k <= num_features:
            raise InputError(f"k must be between 1 and num_features = {num_features}, got {k}")
        super().__init__(num_features, firing_probabilities=k / num_features, device=device)
        self.k = k


class SignedSparseGenerator(KSparseGenerator):
    """Unit Gaussian codes, all but the `k` largest magnitudes set to zero."""

    @override
    @torch.no_grad()
    def sample(self, batch_size: int) -> Float[torch.Tensor, "batch num_features"]:
        """Draw codes from torch's global generator."""
        device = self.firing_probabilities.device
        gaussian = torch.randn(batch_size, self.num_features, device=device)
        return to_dense(*select_largest(gaussian, self.k, signed=True), self.num_features)


def seed_of_concepts(seed: int) -> int:
    """A seed drawn from `seed`.

    With `seed` itself the concepts would be made of the same random numbers as the first weights of
    an SAE with that seed, and every latent would start near a concept of its own.
    """
    return int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed)))


def synthetic_model(
    generator: ActivationGenerator,
    hidden_dim: int,
    seed: int,
    device: str,
    atoms: Float[torch.Tensor, "features hidden"] | None = None,
) -> SyntheticModel:
    """A SAELens synthetic model without bias; concepts are i.i.d. on the sphere unless given."""
    cfg = SyntheticModelConfig(
        generator.num_features, hidden_dim, bias=False, seed=seed_of_concepts(seed)
    )
    model = SyntheticModel(cfg, activation_generator=generator, device=device)
    if atoms is not None:
        model.feature_dict.feature_vectors.data.copy_(atoms)
    return model


def signed_synthetic_model(
    num_features: int, hidden_dim: int, k: int, seed: int = 0, device: str = "cpu"
) -> SyntheticModel:
    """A SAELens synthetic model with i.i.d. unit-norm concepts and signed k-sparse codes.

    Hand it to `SyntheticSAERunner(cfg, override_synthetic_model=...)`. Only the concepts depend on
    `seed`; the codes come from torch's global generator.
    """
    generator = SignedSparseGenerator(num_features, k, device)
    return synthetic_model(generator, hidden_dim, seed, device)
