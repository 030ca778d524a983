"""What README shows: a training class from elsewhere gets the loss terms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from sae_lens import (
    SAE,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from sae_lens_isae import regularize
from tests.conftest import D_IN, D_SAE, train_sae


@dataclass
class MineConfig(StandardSAEConfig):
    @classmethod
    def architecture(cls):
        return "mine"


class Mine(StandardSAE):
    pass


@dataclass
class MyTrainingSAEConfig(StandardTrainingSAEConfig):
    @classmethod
    def architecture(cls):
        return "mine"


class MyTrainingSAE(StandardTrainingSAE):
    pass


MySAE, MyConfig = regularize(MyTrainingSAE, MyTrainingSAEConfig)


@pytest.fixture
def registered():
    register_sae_class("mine", Mine, MineConfig)
    register_sae_training_class("mine", MyTrainingSAE, MyTrainingSAEConfig)
    register_sae_training_class("regularized_mine", MySAE, MyConfig)
    yield
    del SAE_CLASS_REGISTRY["mine"]
    del SAE_TRAINING_CLASS_REGISTRY["mine"], SAE_TRAINING_CLASS_REGISTRY["regularized_mine"]


def test_a_class_from_elsewhere_trains_with_terms_and_exports_as_before(registered, tmp_path):
    cfg = MyConfig(D_IN, D_SAE, wsae_alpha=0.5, self_consistency_weight=1.0, arip_weight=0.1)
    sae = train_sae(cfg, n_steps=5)
    assert len(sae.loss_terms) == 3
    sae.save_inference_model(tmp_path)
    assert type(SAE.load_from_disk(tmp_path)) is Mine
