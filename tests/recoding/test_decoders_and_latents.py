"""Refitted decoders against scikit-learn's ridge regression; agreement on latents against sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sae_lens_isae.recoding.decoders import refit_decoder
from sae_lens_isae.recoding.robustness import latent_picks
from sae_lens_isae.solvers import SparseCodes
from tests.recoding.test_agreement import D_IN, D_SAE, sparse
from tests.solvers.test_omp import signals, unit_atoms


@pytest.mark.parametrize("n", [10, 80])  # fewer samples than active latents, and more
@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_refitted_decoder_is_scikit_learns(n, ridge):
    z, x = sparse(0, n=n), signals(n, D_IN)
    found = refit_decoder(SparseCodes.from_dense(z), x, ridge)
    active = (z != 0).any(0)
    assert torch.equal(found.latents, active.nonzero()[:, 0])
    expected = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(z.numpy(), x.numpy()).coef_
    torch.testing.assert_close(found.atoms, torch.tensor(expected.T)[active], rtol=1e-6, atol=1e-8)


def test_a_determined_decoder_comes_back():
    atoms = unit_atoms(D_SAE, D_IN, 0)
    z = sparse(0, n=400)
    found = refit_decoder(SparseCodes.from_dense(z), z @ atoms)
    torch.testing.assert_close(found.cosines_to(atoms), torch.ones(D_SAE).double())
    torch.testing.assert_close(found.cosines_to(-atoms), -torch.ones(D_SAE).double())
    some = refit_decoder(SparseCodes.from_dense(z * (torch.arange(D_SAE) % 2)), z @ atoms)
    assert len(found.cosines_with(some)) == len(some.cosines_with(found)) == D_SAE // 2
    torch.testing.assert_close(found.cosines_with(some), some.cosines_with(found))


def test_ridge_must_be_positive():
    with pytest.raises(ValueError, match="ridge must be > 0"):
        refit_decoder(SparseCodes.from_dense(sparse(0)), signals(80, D_IN), 0.0)


def test_latents_that_all_pick():
    encoder = sparse(0, k=6)
    others = {"A": sparse(1, k=9), "B": encoder * (torch.rand(encoder.shape) < 0.7)}
    codes = {name: SparseCodes.from_dense(z) for name, z in others.items()}
    codes["few"] = SparseCodes.from_dense(others["A"][:20])
    found = latent_picks(SparseCodes.from_dense(encoder), codes, ("A", "B"))
    table = found.latents.set_index("latent")
    picked_by = found.picks.pivot(index="latent", columns="method", values="picked")
    assert len(table) == int((encoder != 0).any(0).sum())
    for latent in range(D_SAE):
        samples = np.flatnonzero(encoder[:, latent])
        if not len(samples):
            assert latent not in table.index
            continue
        row = table.loc[latent]
        assert row["n_encoder"] == len(samples)
        magnitude = encoder[samples, latent].abs().mean().item()
        assert row["mean_magnitude"] == pytest.approx(magnitude)
        picked = {name: (z[samples, latent] != 0).numpy() for name, z in others.items()}
        assert picked_by.loc[latent, "A"] == pytest.approx(picked["A"].mean())
        assert picked_by.loc[latent, "B"] == pytest.approx(picked["B"].mean())
        assert row["picked_by_all"] == pytest.approx((picked["A"] & picked["B"]).mean())
        early = samples[samples < 20]
        few = (others["A"][early, latent] != 0).double().mean().item()
        assert picked_by.loc[latent, "few"] == pytest.approx(few, nan_ok=True)
    assert table["picked_by_all"].is_monotonic_decreasing
