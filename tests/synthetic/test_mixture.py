"""Clustered concepts: their cosines, and the generator behind `synthetic:mixture`."""

from __future__ import annotations

import pytest
import torch
from sae_lens.synthetic import SyntheticModel

from sae_lens_isae.synthetic import GENERATORS, mixture_atoms, mixture_synthetic_model


@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.8])
def test_atoms_of_one_cluster_are_similar_and_others_are_not(similarity):
    atoms = mixture_atoms(300, 2000, n_clusters=3, similarity=similarity, seed=0)
    torch.testing.assert_close(atoms.norm(dim=-1), torch.ones(300))
    cosine = (atoms @ atoms.T)[~torch.eye(300, dtype=torch.bool)]
    if similarity == 0:
        assert cosine.abs().max() < 6 / 2000**0.5
        return
    near = cosine > similarity / 2
    assert cosine[near].mean() == pytest.approx(similarity, abs=0.02)
    # the centres themselves are random: their cosines are small, not zero
    assert cosine[~near].abs().max() < similarity / 2
    assert 0.25 < near.float().mean() < 0.42


def test_atoms_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = mixture_atoms(20, 8, 4, 0.5, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, mixture_atoms(20, 8, 4, 0.5, seed=3))
    assert not torch.equal(first, mixture_atoms(20, 8, 4, 0.5, seed=4))


def test_samples_combine_k_of_the_atoms():
    model = mixture_synthetic_model(30, 40, k=4, n_clusters=5, similarity=0.4, seed=2)
    assert isinstance(model, SyntheticModel)
    atoms = mixture_atoms(30, 40, 5, 0.4, seed=2)
    torch.testing.assert_close(model.feature_dict.feature_vectors.detach(), atoms)
    samples = model.sample(200).detach()
    codes = torch.linalg.lstsq(atoms.T, samples.T).solution.T
    assert ((codes.abs() > 1e-3).sum(-1) == 4).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be >= 1, got 0"),
        ({"similarity": 1.0}, "similarity must be at least 0 and below 1, got 1.0"),
        ({"similarity": -0.1}, "similarity must be at least 0"),
        ({"k": 31}, "k must be between 1 and num_features = 30"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GENERATORS["mixture"](**{"num_features": 30, "hidden_dim": 40, "k": 4, **settings})
