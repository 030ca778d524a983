"""Bad settings fail before any training, with the field and the value in the message."""

from __future__ import annotations

import pytest

from sae_lens_isae import (
    ISAEMESAEConfig,
    ISAEMETrainingSAEConfig,
    ISAETrainingSAEConfig,
    RegularizedTopKTrainingSAEConfig,
)

BAD = [
    ("k", 0),
    ("k", -3),
    ("k", 2.5),
    ("k", 21),
    ("d_in", 0),
    ("arip_weight", -0.1),
    ("arip_weight", float("nan")),
    ("aux_loss_coefficient", -1.0),
    ("activation", "relu"),
    ("normalize_activations", "layer_norm"),
    ("apply_b_dec_to_input", False),
    ("use_sparse_activations", True),
    ("decoder_init_norm", 0.1),
    ("resample_until", -1),
    ("resample_every", 0),
]
BAD_ME = [
    ("encoder_steps", 0),
    ("encoder_steps", 1.5),
    ("step_matrix", "diagonal"),
    ("encoder_warm_up_steps", -1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
@pytest.mark.parametrize("config", [ISAETrainingSAEConfig, ISAEMETrainingSAEConfig])
def test_bad_value_is_named(config, field, value):
    settings = {"d_in": 8, "d_sae": 40, "k": 3, field: value}
    with pytest.raises(ValueError, match=field) as error:
        config(**settings)
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        *((ISAEMETrainingSAEConfig, *bad) for bad in BAD_ME),
        # how long the encoder warms up is a matter of training
        *((ISAEMESAEConfig, *bad) for bad in BAD_ME if bad[0] != "encoder_warm_up_steps"),
    ],
)
def test_bad_multistep_value_is_named(config, field, value):
    with pytest.raises(ValueError, match=field) as error:
        config(d_in=8, d_sae=40, k=3, **{field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(("field", "value"), [("arip_weight", -1.0), ("k", 30)])
def test_bad_term_value_is_named_on_a_regularized_config(field, value):
    settings = {"d_in": 8, "d_sae": 40, "k": 3, "arip_weight": 0.1, field: value}
    with pytest.raises(ValueError, match=field):
        RegularizedTopKTrainingSAEConfig(**settings)


def test_a_regularized_config_without_terms_accepts_what_stock_accepts():
    RegularizedTopKTrainingSAEConfig(d_in=8, d_sae=40, k=30)


def test_round_trip_through_a_dict():
    cfg = ISAEMETrainingSAEConfig(8, 40, k=3, arip_weight=0.2, step_matrix="tied", encoder_steps=7)
    again = ISAEMETrainingSAEConfig.from_dict(cfg.to_dict())
    assert again.to_dict() == cfg.to_dict()
