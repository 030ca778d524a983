"""Weights that are averaged over the last steps, against averaging from outside."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sae_lens_isae.errors import InputError
from tests.conftest import Activations, isae_config, make_sae, make_trainer

N_STEPS, FIRST, NORM_BATCHES = 30, 20, 3
VARIANTS = ["iSAE", "iSAE-ME", "iSAE-ME full", "iSAE-LS"]


def averaged_from_outside(sae):
    """Batches that average the weights of an SAE while it trains on them."""
    seen = []
    for number, batch in enumerate(Activations(0.5)):
        if number >= NORM_BATCHES + FIRST:
            seen.append({name: p.detach().clone() for name, p in sae.named_parameters()})
        if number == NORM_BATCHES + N_STEPS - 1:
            with torch.no_grad():
                for name, parameter in sae.named_parameters():
                    parameter.copy_(torch.stack([each[name] for each in seen]).mean(0))
        yield batch


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mean_of_the_last_steps(variant, tmp_path):
    normalized = {"normalize_activations": "expected_average_only_in"}
    by_hand = make_sae(isae_config(variant, **normalized))
    make_trainer(by_hand, averaged_from_outside(by_hand), N_STEPS).fit()
    mean = {"average_from": FIRST, "average_until": N_STEPS}
    sae = make_sae(isae_config(variant, **normalized, **mean))
    make_trainer(sae, Activations(0.5), N_STEPS).fit()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(sae.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
    plain = make_sae(isae_config(variant, **normalized))
    make_trainer(plain, Activations(0.5), N_STEPS).fit()
    assert not torch.allclose(plain.W_dec, sae.W_dec, atol=1e-3)
    # an export has the keys of any other
    for each, name in ((sae, "mean"), (plain, "plain")):
        each.save_inference_model(tmp_path / name)
    found, expected = (
        load_file(tmp_path / name / "sae_weights.safetensors") for name in ("mean", "plain")
    )
    assert found.keys() == expected.keys()


def test_a_checkpoint_keeps_the_mean(tmp_path):
    mean = {"average_from": FIRST, "average_until": N_STEPS}
    sae = make_sae(isae_config("iSAE", **mean))
    make_trainer(sae, Activations(0.5), FIRST + 3).fit()
    sae.save_model(tmp_path)
    again = type(sae).load_from_disk(tmp_path)
    assert again.n_steps == FIRST + 3
    for name, kept in sae.weight_average.named_buffers():
        assert torch.equal(again.weight_average.get_buffer(name), kept)
    assert not torch.equal(sae.weight_average.get_buffer("W_dec"), sae.W_dec)


def test_weights_that_are_not_averaged_are_exported_with_a_warning(tmp_path):
    sae = make_sae(isae_config("iSAE", average_from=FIRST, average_until=N_STEPS))
    make_trainer(sae, Activations(0.5), N_STEPS - 1).fit()
    with pytest.warns(UserWarning, match=f"not averaged.*{N_STEPS} steps.*made {N_STEPS - 1}"):
        sae.save_inference_model(tmp_path)


def test_steps_after_the_mean_are_warned_of():
    sae = make_sae(isae_config("iSAE", average_from=FIRST, average_until=N_STEPS))
    with pytest.warns(UserWarning, match=f"goes on after {N_STEPS} steps") as caught:
        make_trainer(sae, Activations(0.5), N_STEPS + 3).fit()
    assert len([w for w in caught if "goes on" in str(w.message)]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"average_from": 5},
        {"average_from": 10, "average_until": 10},
        {"average_from": -1, "average_until": 10},
        {"average_from": 4, "average_until": 10, "resample_until": 5},
    ],
)
def test_what_has_no_mean_is_refused(wrong):
    with pytest.raises(InputError, match="average_from"):
        isae_config("iSAE", **wrong)
