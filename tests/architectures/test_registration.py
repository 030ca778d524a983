"""Registration is idempotent and never takes another package's name."""

from __future__ import annotations

import importlib

import pytest
from sae_lens import TrainingSAE
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    get_sae_training_class,
)

import sae_lens_isae
from sae_lens_isae import architectures
from tests.conftest import run_python


@pytest.fixture(autouse=True)
def _keep_registries():
    training, inference = dict(SAE_TRAINING_CLASS_REGISTRY), dict(SAE_CLASS_REGISTRY)
    yield
    SAE_TRAINING_CLASS_REGISTRY.clear()
    SAE_TRAINING_CLASS_REGISTRY.update(training)
    SAE_CLASS_REGISTRY.clear()
    SAE_CLASS_REGISTRY.update(inference)


def test_names_are_registered():
    assert get_sae_training_class("isae")[0] is sae_lens_isae.ISAETrainingSAE
    assert get_sae_training_class("isae_me")[0] is sae_lens_isae.ISAEMETrainingSAE
    assert "regularized_topk" in SAE_TRAINING_CLASS_REGISTRY


def test_importing_again_and_reloading_is_harmless():
    before = {**SAE_TRAINING_CLASS_REGISTRY, **SAE_CLASS_REGISTRY}
    importlib.reload(architectures)
    importlib.reload(sae_lens_isae)
    after = {**SAE_TRAINING_CLASS_REGISTRY, **SAE_CLASS_REGISTRY}
    assert after.keys() == before.keys()
    # what a reload registers is usable, and is what the package exports
    assert get_sae_training_class("isae_me")[0] is sae_lens_isae.ISAEMETrainingSAE
    cfg = get_sae_training_class("isae_me")[1](d_in=4, d_sae=8, k=2)
    assert isinstance(TrainingSAE.from_dict(cfg.to_dict()), sae_lens_isae.ISAEMETrainingSAE)


@pytest.mark.slow
def test_a_second_copy_of_the_modules_replaces_the_first():
    code = """
import sys, sae_lens_isae
from sae_lens.registry import get_sae_training_class
first = get_sae_training_class("isae")[0]
for name in [n for n in sys.modules if n.startswith("sae_lens_isae")]:
    del sys.modules[name]
import sae_lens_isae
print(get_sae_training_class("isae")[0] is not first)
"""
    assert run_python(code).strip() == "True"


@pytest.mark.parametrize("registry", [SAE_TRAINING_CLASS_REGISTRY, SAE_CLASS_REGISTRY])
def test_somebody_elses_class_is_named_and_kept(registry):
    class Theirs: ...

    theirs = (Theirs, Theirs)
    registry["isae_me"] = theirs
    with pytest.raises(ValueError, match="already registered") as error:
        architectures.register()
    assert f"{__name__}." in str(error.value)
    assert "Theirs" in str(error.value)
    assert "sae_lens_isae.architectures.isae_me.ISAEME" in str(error.value)
    assert registry["isae_me"] is theirs


def test_private_modules_stay_out_of_the_import():
    """Importing the package must not load the runners, the commands or SAEBench."""
    loaded = run_python("import sys, sae_lens_isae; print(*sys.modules)").split()
    assert "sae_lens_isae.architectures.isae" in loaded
    unwanted = {"sae_lens_isae.demo", "sae_lens_isae.training", "isae_cli", "sae_bench"}
    assert not unwanted & set(loaded)
