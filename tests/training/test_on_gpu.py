"""On a GPU the model runs beside the steps, and SAEs step beside each other: the same results."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from sae_lens import SAETrainer

from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.data import opened_data
from sae_lens_isae.training.runs import train
from tests.conftest import D_IN
from tests.training.test_contexts import store
from tests.training.test_recovery import HOOK, runner_config, weights

pytestmark = pytest.mark.gpu


def on_gpu(tiny_model, folder, **changes):
    return runner_config(tiny_model, folder, device="cuda", **changes)


def test_activations_computed_ahead_are_those_computed_when_asked_for(tiny_model, tmp_path):
    """Their memory is used again and again, by two streams."""
    cfg = on_gpu(tiny_model, tmp_path, n_batches_in_buffer=24)
    found = []
    for ahead in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            there = store(tiny_model, device=torch.device("cuda"), n_batches_in_buffer=24)
            there.model.to("cuda")
            with opened_data(cfg, there, {"a": 1, "b": 2}) as data:
                if not ahead:
                    data.stream._batches._side = None
                batches = []
                for _ in range(200):
                    batch = next(data.stream)
                    # as a step would
                    torch.randn(512, 512, device="cuda") @ torch.randn(512, 512, device="cuda")
                    batches.append(torch.cat([batch["a"], batch["b"]]).cpu())
                found.append(torch.stack(batches))
    assert found[0].shape[-1] == D_IN
    assert torch.equal(*found)


def test_seeds_beside_each_other_are_seeds_alone(tiny_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"n_eval_batches": 0, "n_kept_activations": 0}
        train(on_gpu(tiny_model, tmp_path / "all"), n_seeds=3, **settings)
        whole = weights(tmp_path / "all" / "out")
        for seed in (42, 43, 44):
            train(on_gpu(tiny_model, tmp_path / str(seed), seed=seed), **settings)
            alone = weights(tmp_path / str(seed) / "out")
            for name, tensor in alone.items():
                found = whole[f"seed_{seed}/{name}"]
                torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cache_is_written_and_trained_from(tiny_model, tmp_path, in_memory):
    cfg = on_gpu(tiny_model, tmp_path, n_batches_in_buffer=24)
    seen = []
    original = SAETrainer.step

    def noted(self, batch):
        seen.append(batch.device.type)
        return original(self, batch)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched:
        warnings.simplefilter("ignore")
        patched.setattr(SAETrainer, "step", noted)
        cache = cache_activations(cfg, tmp_path / "cache", None, 100, 300)
        train(cfg, 2, 0, 50, activations=cache.folder, in_memory=in_memory)
    assert set(seen) == {"cuda"}
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", "cpu", [HOOK])
    found = cache.load(cache.files[2].name)
    _, acts = model.run_with_cache(found.token_ids.long(), names_filter=[HOOK], prepend_bos=False)
    expected = acts[HOOK].reshape(-1, D_IN)[found.places.long()]
    torch.testing.assert_close(found.activations, expected, rtol=1e-2, atol=1e-2)
    assert (Path(str(cfg.output_path)) / "seed_43" / "cfg.json").is_file()
