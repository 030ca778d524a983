"""Concepts in clusters: the mixture setting of Nelson et al. 2026, section 4."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.synthetic import SyntheticModel

from sae_lens_isae.errors import InputError
from sae_lens_isae.synthetic.signed import (
    SignedSparseGenerator,
    seed_of_concepts,
    synthetic_model,
)


def mixture_atoms(
    num_features: int, hidden_dim: int, n_clusters: int, similarity: float, seed: int
) -> Float[torch.Tensor, "features hidden"]:
    """Unit vectors from a mixture of equal isotropic Gaussians, projected to the sphere.

    Args:
        n_clusters: Components of the mixture; each atom belongs to a random one.
        similarity: Cosine that two atoms of one cluster have on average, between 0 and 1. 0 is the
            i.i.d. setting.

    Raises:
        InputError: A setting is out of range.
    """
    if n_clusters < 1:
        raise InputError(f"n_clusters must be >= 1, got {n_clusters}")
    if not 0 <= similarity < 1:
        raise InputError(f"similarity must be at least 0 and below 1, got {similarity}")
    generator = torch.Generator().manual_seed(seed_of_concepts(seed))
    centres = torch.randn(n_clusters, hidden_dim, generator=generator)
    centres = torch.nn.functional.normalize(centres, dim=-1)
    cluster = torch.randint(n_clusters, (num_features,), generator=generator)
    own = torch.randn(num_features, hidden_dim, generator=generator) / hidden_dim**0.5
    atoms = similarity**0.5 * centres[cluster] + (1 - similarity) ** 0.5 * own
    return torch.nn.functional.normalize(atoms, dim=-1)


def mixture_synthetic_model(
    num_features: int,
    hidden_dim: int,
    k: int,
    n_clusters: int = 224,
    similarity: float = 0.473,
    seed: int = 0,
    device: str = "cpu",
) -> SyntheticModel:
    """`signed_synthetic_model` with clustered concepts; see `mixture_atoms`."""
    atoms = mixture_atoms(num_features, hidden_dim, n_clusters, similarity, seed)
    generator = SignedSparseGenerator(num_features, k, device)
    return synthetic_model(generator, hidden_dim, seed, device, atoms)
