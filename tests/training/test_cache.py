"""A cache holds the activations that a run sees, and trains the same SAEs on any machine."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, ActivationsStore, TopKTrainingSAEConfig
from safetensors.torch import load_file, save_file

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME, ActivationCache
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.training.cached import CachedBatches, ShuffledActivations, load_rows
from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.checkpoints import Stopped
from sae_lens_isae.training.runs import train, train_together
from sae_lens_isae.training.seeds import seeded_sae
from tests.conftest import D_IN
from tests.training.test_recovery import (
    HOOK,
    assert_same,
    checkpoints,
    interrupt_at,
    runner_config,
    weights,
)

N = 64 * 40


@pytest.fixture(scope="module")
def cache(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    made = cache_activations(config(tiny_model, folder), folder / "cache", None, 100, 300)
    return made


def config(tiny_model, folder, **changes):
    return runner_config(tiny_model, folder, training_tokens=N, n_batches_in_buffer=24, **changes)


def from_cache(cfg, cache, n_seeds=1, in_memory=None, n_eval_batches=1):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(cfg, n_seeds=n_seeds, n_eval_batches=n_eval_batches, n_kept_activations=50,
              activations=cache.folder, in_memory=in_memory)  # fmt: skip
    return weights(Path(cfg.output_path))


def test_every_activation_is_that_of_its_token(tiny_model, cache):
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", "cpu", [HOOK])
    assert cache.n_activations >= N
    n_held_out = len(cache.load(HELD_OUT_FILENAME).activations)
    assert n_held_out >= 100
    seen = set()
    for name in [HELD_OUT_FILENAME, *(file.name for file in cache.files)]:
        found = cache.load(name)
        tokens = found.token_ids.long()
        _, acts = model.run_with_cache(tokens, names_filter=[HOOK], prepend_bos=False)
        expected = acts[HOOK].reshape(-1, D_IN)[found.places.long()]
        torch.testing.assert_close(found.activations, expected, rtol=1e-5, atol=1e-5)
        left_out = set(range(tokens.numel())) - set(found.places.tolist())
        assert all(tokens.reshape(-1)[place] <= 2 for place in left_out)
        contexts = {tuple(row) for row in tokens.tolist()}
        assert not contexts & seen
        seen |= contexts


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_seed_is_that_of_a_run_alone_and_resumed(
    tiny_model, cache, tmp_path, monkeypatch, in_memory
):
    both = from_cache(config(tiny_model, tmp_path / "both"), cache, 2, in_memory)
    alone = from_cache(config(tiny_model, tmp_path / "alone", seed=43), cache, 1, in_memory)
    # a run's own seed orders the files on disk
    if in_memory:
        name = "sae_weights.safetensors:W_dec"
        assert torch.equal(both[f"seed_43/{name}"], alone[name])
    with monkeypatch.context() as patched:
        interrupt_at(patched, 22)
        with pytest.raises(Stopped, match="with a checkpoint"):
            from_cache(config(tiny_model, tmp_path / "half"), cache, 2, in_memory)
    cfg = config(tiny_model, tmp_path / "half", resume_from_checkpoint="latest")
    cfg.output_path = str(tmp_path / "rest")
    assert_same(from_cache(cfg, cache, 2, in_memory), both)
    assert checkpoints(tmp_path / "half")


def test_several_saes_train_side_by_side_each_in_its_own_order(tiny_model, cache, tmp_path):
    cfg = config(tiny_model, tmp_path / "together", seed=43)
    saes = {
        "recipe": seeded_sae(cfg.sae, 43),
        "stock": seeded_sae(TopKTrainingSAEConfig(d_in=D_IN, d_sae=24, k=2), 5),
    }
    order = {"recipe": 43, "stock": 7}
    train_together(cfg, saes, 0, 50, order, activations=cache.folder)
    both = weights(Path(cfg.output_path))
    alone = from_cache(config(tiny_model, tmp_path / "alone", seed=43), cache, 1, True)
    name = "sae_weights.safetensors:W_dec"
    assert torch.equal(both[f"recipe/{name}"], alone[name])
    assert both[f"stock/{name}"].shape == (24, D_IN)


def test_every_activation_is_seen_once_a_pass(cache):
    numbers = torch.arange(1000.0)[:, None]
    shuffled = ShuffledActivations(numbers, {"a": 1, "b": 2}, 64, {})
    batches = [next(shuffled) for _ in range(30)]
    for name in ("a", "b"):
        passes = [torch.cat([b[name] for b in part]) for part in (batches[:15], batches[15:])]
        assert all(len(found.unique()) == 15 * 64 for found in passes)
        assert not torch.equal(*passes)
    assert not torch.equal(batches[0]["a"], batches[0]["b"])
    cpu, names = torch.device("cpu"), [file.name for file in cache.files]
    rows = load_rows(cache, names, cpu)
    on_disk = CachedBatches(cache, names, 5, cpu)
    passes = [[next(on_disk) for _ in names] for _ in range(2)]
    on_disk.close()
    for part in passes:
        assert torch.equal(torch.cat(part).sum(1).sort().values, rows.sum(1).sort().values)
    assert not torch.equal(*map(torch.cat, passes))


@pytest.mark.parametrize("in_memory", [True, False])
def test_another_number_of_processes_goes_on(tiny_model, cache, tmp_path, monkeypatch, in_memory):
    """As written by the first of two, each of which has half of the files."""
    of_two = config(tiny_model, tmp_path / "two", train_batch_size_tokens=32)
    of_two.training_tokens = N // 2
    names = [file.name for file in cache.files[::2]]
    monkeypatch.setattr("sae_lens_isae.training.data.files_of_rank", lambda *_: names)
    monkeypatch.setattr("sae_lens_isae.training.activation_stream.n_ranks", lambda: 2)
    from_cache(of_two, cache, 1, in_memory)
    monkeypatch.undo()
    folder = sorted(checkpoints(tmp_path / "two"))[0]
    cfg = config(tiny_model, tmp_path / "one", train_batch_size_tokens=32)
    cfg.resume_from_checkpoint = str(folder)
    with pytest.warns(UserWarning, match="was written by 2 processes and goes on in 1"):
        train(cfg, 1, 0, 0, activations=cache.folder, in_memory=in_memory)


def test_it_is_measured_on_what_is_held_out(cache):
    source = open_activations(str(cache.folder), 30)
    (batch,) = source.batches(100)
    held_out = load_file(cache.folder / HELD_OUT_FILENAME)["activations"]
    assert torch.equal(batch, held_out[:30])


def test_saes_from_it_are_compared(tiny_model, cache, tmp_path):
    cfg = config(tiny_model, tmp_path)
    from_cache(cfg, cache, 2)
    paths = [str(p.parent) for p in sorted((tmp_path / "out").glob("*/cfg.json"))]
    report = pairwise_identifiability(paths, str(cache.folder))
    assert len(report.pairs) == 1
    metadata = SAE.load_from_disk(paths[1]).cfg.metadata
    assert (metadata.seed, metadata.data_seed, metadata.model_name) == (43, 43, cfg.model_name)


def test_cut_off_it_goes_on(tiny_model, tmp_path, monkeypatch):
    cfg = config(tiny_model, tmp_path)
    whole = cache_activations(cfg, tmp_path / "whole", None, 100, 300)
    original, count = ActivationCache.add, [0]

    def stopped(self, *args):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ActivationCache, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            cache_activations(cfg, tmp_path / "half", None, 100, 300)
    half = ActivationCache.read(tmp_path / "half")
    assert len(half.files) == 3
    with pytest.raises(InputError, match=r"holds 9\d\d of 2,560 activations: it was cut off"):
        from_cache(config(tiny_model, tmp_path), half)
    again = cache_activations(cfg, tmp_path / "half", None, 100, 300)
    assert [f.name for f in again.files] == [f.name for f in whole.files]
    for file in whole.files:
        assert_same(load_file(again.folder / file.name), load_file(whole.folder / file.name))
    smaller = config(tiny_model, tmp_path)
    smaller.training_tokens = 500
    assert cache_activations(smaller, tmp_path / "half").n_planned == 500


def test_text_that_ends_ends_the_cache(tiny_model, tmp_path, caplog):
    cfg = config(tiny_model, tmp_path)
    cfg.training_tokens = 10**6
    cache = cache_activations(cfg, tmp_path / "cache", None, 100, 10_000)
    assert 30_000 < cache.n_activations == cache.n_planned < 50_000
    assert "the text ends after" in caplog.text
    cache.check_finished()
    assert cache.files[-1].n_activations < 10_000, "the text ended within a file"
    again = cache_activations(cfg, tmp_path / "cache", None, 100, 10_000)
    assert again.files == cache.files, "the text is not read a second time"
    again.check_finished()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": "model.layers.1"}, "hook_name 'model.layers.0' instead of 'model.layers.1'"),
        ({"context_size": 20}, "context_size 16 instead of 20"),
        ({"exclude_special_tokens": False}, "exclude_special_tokens True instead of False"),
        ({"model_from_pretrained_kwargs": {"dtype": "bfloat16"}}, "model_from_pretrained_kwargs"),
    ],
)
def test_a_cache_of_something_else_is_refused(tiny_model, cache, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        from_cache(config(tiny_model, tmp_path, **changes), cache)


def test_what_is_damaged_is_named(tiny_model, cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache.folder, folder)
    name = cache.files[1].name
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    for in_memory in (True, False):
        with pytest.raises(InputError, match=f"{name} is damaged"):
            from_cache(config(tiny_model, tmp_path), ActivationCache.read(folder), 1, in_memory)
    whole = load_file(cache.folder / name)
    whole["activations"] = whole["activations"][:-1].contiguous()
    save_file(whole, folder / name)
    with pytest.raises(InputError, match=r"as cache\.json says"):
        from_cache(config(tiny_model, tmp_path), ActivationCache.read(folder), 1, True)
    (folder / "cache.json").write_text("{")
    with pytest.raises(InputError, match="is no description of a cache"):
        ActivationCache.read(folder)
    with pytest.raises(InputError, match="make a cache with `isae cache"):
        ActivationCache.read(tmp_path)


def test_a_precision_that_does_not_hold_them_is_refused(tiny_model, tmp_path, monkeypatch):
    original = ActivationsStore.get_activations
    monkeypatch.setattr(
        ActivationsStore, "get_activations", lambda self, t: 1e6 * original(self, t)
    )
    cfg = config(tiny_model, tmp_path)
    with pytest.raises(InputError, match=r"does not fit torch.float16; .*--stored-as bfloat16"):
        cache_activations(cfg, tmp_path / "cache", "float16")


def test_the_smallest_precision_of_the_model_is_kept(tiny_model, tmp_path):
    kwargs = {"dtype": "bfloat16"}
    cfg = config(tiny_model, tmp_path, model_from_pretrained_kwargs=kwargs)
    cache = cache_activations(cfg, tmp_path / "cache", None, 100, 300)
    assert cache.activations(cache.files[0].name).dtype == torch.bfloat16
    assert (
        json.loads((cache.folder / "cache.json").read_text())["source"]["stored_as"] == "bfloat16"
    )
    from_cache(cfg, cache, n_eval_batches=0)
