"""The signed generator on SAELens' interfaces."""

from __future__ import annotations

import pytest
import torch
from sae_lens.synthetic import SyntheticModel

from sae_lens_isae.architectures.variants import paper_variants
from sae_lens_isae.synthetic import GENERATORS, SignedSparseGenerator, signed_synthetic_model
from sae_lens_isae.training.seeds import seeded_sae


def test_codes_are_the_largest_magnitudes_of_gaussians():
    generator = SignedSparseGenerator(50, 4)
    torch.manual_seed(0)
    codes = generator(2000)
    torch.manual_seed(0)
    dense = torch.randn(2000, 50)
    assert ((codes != 0).sum(-1) == 4).all()
    assert torch.equal(codes[codes != 0], dense[codes != 0])
    dropped = torch.where(codes == 0, dense, 0).abs().amax(-1)
    kept = torch.where(codes != 0, dense.abs(), torch.inf).amin(-1)
    assert (kept >= dropped).all()
    assert abs((codes > 0).float().sum() / (codes < 0).float().sum() - 1) < 0.1


def test_concepts_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = signed_synthetic_model(20, 8, 3, seed=5)
    torch.manual_seed(2)
    second = signed_synthetic_model(20, 8, 3, seed=5)
    assert isinstance(first, SyntheticModel)
    assert torch.equal(first.feature_dict.feature_vectors, second.feature_dict.feature_vectors)
    torch.testing.assert_close(first.feature_dict.feature_vectors.norm(dim=-1), torch.ones(20))
    assert not torch.equal(first.sample(4), first.sample(4))


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("seed", [0, 3])
def test_concepts_have_nothing_in_common_with_the_weights_of_an_sae_of_their_seed(name, seed):
    model = GENERATORS[name](512, 256, 4, seed=seed)
    sae = seeded_sae(paper_variants(d_in=256, d_sae=512, k=4)["AbsTopK"], seed)
    for weights in (sae.W_dec, sae.W_enc.T):
        atoms = torch.nn.functional.normalize(weights, dim=-1)
        own = (atoms.detach() * model.feature_dict.feature_vectors.detach()).sum(-1)
        # of random unit vectors: mean square 1 / d
        assert own.square().mean() == pytest.approx(1 / 256, rel=0.3)


def test_bad_k():
    with pytest.raises(ValueError, match="k must be between 1 and num_features = 20"):
        signed_synthetic_model(20, 8, 21)
