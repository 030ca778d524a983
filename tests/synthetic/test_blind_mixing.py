"""'Latent Recovery', appendix D: exactly k active latents in [0.5, 1], columns with a given
correlation."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae.synthetic import UniformSparseGenerator, blind_mixing_synthetic_model


@pytest.mark.parametrize("k", [1, 4, 20])
def test_latents_are_exactly_sparse_and_uniform(k):
    torch.manual_seed(0)
    x = UniformSparseGenerator(20, k).sample(20_000)
    assert ((x != 0).sum(-1) == k).all()
    values = x[x != 0]
    assert values.min() >= 0.5
    assert values.max() <= 1
    assert values.mean().item() == pytest.approx(0.75, abs=0.003)
    torch.testing.assert_close(
        (x != 0).float().mean(0), torch.full((20,), k / 20), atol=0.015, rtol=0
    )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.7])
def test_concepts_have_the_correlation(rho):
    atoms = blind_mixing_synthetic_model(200, 300, 4, rho).feature_dict.feature_vectors
    torch.testing.assert_close(atoms.norm(dim=-1), torch.ones(200))
    cosine = atoms @ atoms.T
    mean = (cosine.sum() - 200) / (200 * 199)
    assert mean.item() == pytest.approx(rho, abs=0.03)


def test_activations_are_mixed_latents():
    model = blind_mixing_synthetic_model(30, 10, 3)
    torch.manual_seed(1)
    latents = model.activation_generator.sample(5)
    torch.manual_seed(1)
    torch.testing.assert_close(model.sample(5), latents @ model.feature_dict.feature_vectors)


@pytest.mark.parametrize("k", [0, 21])
def test_k_out_of_range_is_named(k):
    with pytest.raises(ValueError, match=f"got {k}"):
        UniformSparseGenerator(20, k)
