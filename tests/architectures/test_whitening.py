"""SAELens' whitening with our architectures: folding, and training on after it."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import SAE

from sae_lens_isae.architectures.schedule import SyntheticSchedule
from tests.conftest import (
    BATCH,
    D_IN,
    D_SAE,
    ENCODED_VARIANTS,
    VARIANTS,
    Activations,
    isae_config,
    make_sae,
    make_trainer,
)


def whitened_sae(variant, n_steps=20):
    """A trained SAE in float64 before its whitening is folded, and the whitening."""
    cfg = isae_config(variant, normalize_activations="covariance_whitening", dtype="float64")
    sae = make_sae(cfg)
    trainer = make_trainer(sae, Activations(0.5), n_steps)
    fold = sae.fold_activation_whitening
    before = []

    def keep_then_fold(mean, whitening_matrix, unwhitening_matrix):
        before.append((copy.deepcopy(sae), mean, whitening_matrix, unwhitening_matrix))
        fold(mean, whitening_matrix, unwhitening_matrix)

    sae.fold_activation_whitening = keep_then_fold
    trainer.fit()
    del sae.fold_activation_whitening
    return sae, *before[0]


@pytest.mark.parametrize("variant", ENCODED_VARIANTS)
def test_folded_sae_does_to_activations_what_it_did_to_whitened_ones(variant, activations):
    sae, whitened, mean, matrix, inverse = whitened_sae(variant)
    x = activations.double()
    with torch.no_grad():
        expected = whitened.encode((x - mean) @ matrix)
        torch.testing.assert_close(sae.encode(x), expected, rtol=1e-9, atol=1e-9)
        rebuilt = whitened.decode(expected) @ inverse + mean
        torch.testing.assert_close(sae(x), rebuilt, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unit_norm_atoms_leave_codes_of_the_same_support_decode_alike(variant, activations):
    sae, *_ = whitened_sae(variant)
    sae.cfg.k = D_SAE  # nothing to choose: only then must both agree for every input
    sae.activation_fn = sae.get_activation_fn()
    with torch.no_grad():
        folded = sae(activations.double())
        norm = sae.W_dec.norm(dim=-1)
        codes = sae.encode(activations.double())
        sae.set_unit_norm_atoms()
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))
        torch.testing.assert_close(sae.encode(activations.double()), codes * norm)
        torch.testing.assert_close(sae(activations.double()), folded)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_goes_on_after_the_fold(monkeypatch, variant, tmp_path):
    """The second phase starts where the first one ended, and its export has unit-norm atoms."""
    schedule = SyntheticSchedule(60)
    sae = make_sae(isae_config(variant, normalize_activations="covariance_whitening"))
    data = Activations(0.5)
    step, mse = sae.training_forward_pass, []

    def recorded_step(step_input):
        output = step(step_input)
        mse.append(output.losses["mse_loss"].item())
        return output

    monkeypatch.setattr(sae, "training_forward_pass", recorded_step)
    for phase in schedule.phases():
        settings = {**phase.trainer_settings, "lr_warm_up_steps": 0}
        make_trainer(sae, data, phase.n_steps, **settings).fit()
    assert len(mse) == 60
    assert mse[48] < 1.5 * mse[47]
    assert sae.cfg.rescale_acts_by_decoder_norm
    assert sae.cfg.normalize_activations == "none"
    assert sae.n_steps == 60
    folder = tmp_path / "sae"
    sae.save_model(folder)
    reloaded = type(sae).load_from_disk(folder)
    x = torch.randn(BATCH, D_IN)
    torch.testing.assert_close(reloaded(x), sae(x))
    sae.save_inference_model(tmp_path / "export")
    atoms = SAE.load_from_disk(tmp_path / "export").W_dec
    torch.testing.assert_close(atoms.norm(dim=-1), torch.ones(D_SAE))


def test_phases_add_up_and_the_last_one_decays():
    for n_steps in (5, 4000, 40_000):
        phases = SyntheticSchedule(n_steps).phases()
        assert sum(phase.n_steps for phase in phases) == n_steps
        assert phases[-1].trainer_settings["lr_end"] == 0
    (only,) = SyntheticSchedule(100, whitened_share=0.0).phases()
    assert only.n_steps == 100
