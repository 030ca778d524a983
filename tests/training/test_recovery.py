"""Interrupted training goes on to the same SAE, bit for bit."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import SAE, ActivationsStore, LanguageModelSAERunnerConfig, LoggingConfig, SAETrainer
from safetensors.torch import load_file
from transformers import set_seed

from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.training.activation_stream import STATE_FILENAME
from sae_lens_isae.training.checkpoints import Stopped
from sae_lens_isae.training.data import opened_data
from sae_lens_isae.training.runs import train
from tests.conftest import D_IN, D_SAE, K, complaint, isae_config
from tests.forked import ForkedCommand

HOOK = "model.layers.0"


def runner_config(tiny_model, folder, **changes):
    model, text = tiny_model
    settings = {
        "sae": isae_config("iSAE-ME", normalize_activations="expected_average_only_in"),
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": HOOK,
        "dataset_path": str(text),
        "streaming": False,
        "context_size": 16,
        # more than the text has: it is read several times
        "training_tokens": 64 * 40,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 12,
        "store_batch_size_prompts": 3,
        "n_batches_for_norm_estimate": 2,
        "exclude_special_tokens": True,
        "lr": 0.003,
        "lr_warm_up_steps": 5,
        "lr_decay_steps": 10,
        "dead_feature_window": 3,
        "n_checkpoints": 2,
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "out"),
        "logger": LoggingConfig(log_to_wandb=False),
        **changes,
    }
    return LanguageModelSAERunnerConfig(**settings)


def trained(cfg, n_seeds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(cfg, n_seeds=n_seeds, n_eval_batches=0, n_kept_activations=50)
    return weights(Path(cfg.output_path))


def weights(out):
    found = {}
    for path in sorted(out.rglob("*.safetensors")):
        found |= {f"{path.relative_to(out)}:{k}": v for k, v in load_file(path).items()}
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def checkpoints(folder):
    return sorted(
        (p.parent if p.parent.name.isdigit() else p.parent.parent)
        for p in (folder / "checkpoints").rglob("trainer_state.pt")
    )


def interrupt_at(monkeypatch, step, kind=signal.SIGTERM):
    """Send a signal in the middle of a training step."""
    original, count = SAETrainer.step, [0]

    def interrupted(self, batch):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), kind)
        return original(self, batch)

    monkeypatch.setattr(SAETrainer, "step", interrupted)


@pytest.mark.parametrize("mixing", [0.5, 0.9, 0.0])
@pytest.mark.parametrize("cached", [False, True])
def test_the_stream_gives_what_sae_lens_gives(tiny_model, tmp_path, mixing, cached):
    changes = {"activations_mixing_fraction": mixing}
    if cached:
        changes |= {
            "use_cached_activations": True,
            "cached_activations_path": str(cache(tiny_model, tmp_path / "cache")),
        }
    cfg = runner_config(tiny_model, tmp_path, **changes)
    model = load_language_model(cfg.model_name, cfg.model_class_name, "cpu", [HOOK])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_seed(3)
        theirs = ActivationsStore.from_config(model, cfg)
        expected = [next(theirs) for _ in range(150)]
        set_seed(3)
        with opened_data(cfg, ActivationsStore.from_config(model, cfg), {"": 3}) as data:
            for number, batch in enumerate(expected):
                assert torch.equal(next(data.stream)[""], batch), number


def cache(tiny_model, folder):
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    model, text = tiny_model
    CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path=str(text),
            model_name=str(model),
            model_class_name="AutoModelForCausalLM",
            model_batch_size=4,
            hook_name=HOOK,
            d_in=D_IN,
            training_tokens=16 * 120,
            new_cached_activations_path=str(folder),
            context_size=16,
            buffer_size_gb=0.001,
            streaming=False,
            prepend_bos=True,
        )
    ).run()
    return folder


@pytest.mark.parametrize("n_seeds", [1, 2])
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed(tiny_model, tmp_path, monkeypatch, n_seeds, kind):
    whole = trained(runner_config(tiny_model, tmp_path / "whole"), n_seeds)
    before = signal.getsignal(kind)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 11 * n_seeds, kind)
        with pytest.raises(Stopped, match="after 704 tokens, with a checkpoint in") as stop:
            trained(runner_config(tiny_model, tmp_path / "half"), n_seeds)
    assert signal.getsignal(kind) is before
    folder = str(stop.value).rpartition(" ")[2]
    cfg = runner_config(tiny_model, tmp_path / "rest", resume_from_checkpoint=folder)
    assert_same(trained(cfg, n_seeds), whole)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_resumed_from_a_checkpoint_on_the_way(tiny_model, tmp_path, n_seeds):
    whole = trained(runner_config(tiny_model, tmp_path / "whole"), n_seeds)
    kept = checkpoints(tmp_path / "whole")
    assert len(set(kept)) == 2
    for folder in set(kept):
        cfg = runner_config(tiny_model, tmp_path / folder.name, resume_from_checkpoint=str(folder))
        assert_same(trained(cfg, n_seeds), whole)
        # those that the run had passed are not written again
        assert len(set(checkpoints(tmp_path / folder.name))) < 2


def test_each_of_several_seeds_is_the_sae_of_this_seed(tiny_model, tmp_path):
    both = trained(runner_config(tiny_model, tmp_path / "both"), 2)
    for seed in (42, 43):
        alone = trained(runner_config(tiny_model, tmp_path / str(seed), seed=seed), 1)
        for start, prefix in (("sae_weights", f"seed_{seed}/"), ("activations", "")):
            mine = {f"{prefix}{k}": v for k, v in alone.items() if k.startswith(start)}
            others = {k: v for k, v in both.items() if k.startswith(f"{prefix}{start}")}
            assert_same(mine, others)


@pytest.mark.parametrize(
    ("vary", "same_weights", "same_data"),
    [("init", False, True), ("data", True, False), ("both", False, False)],
)
def test_seeds_differ_in_what_was_asked(
    tiny_model, tmp_path, monkeypatch, vary, same_weights, same_data
):
    weights_of, batches_of = {}, {}
    original = SAETrainer.step

    def noted(self, batch):
        weights_of.setdefault(id(self), self.sae.W_enc.detach().clone())
        batches_of.setdefault(id(self), []).append(batch)
        return original(self, batch)

    monkeypatch.setattr(SAETrainer, "step", noted)
    cfg = runner_config(tiny_model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(cfg, n_seeds=2, n_eval_batches=0, n_kept_activations=0, vary=vary)
    one, two = weights_of.values()
    assert torch.equal(one, two) == same_weights
    one, two = batches_of.values()
    assert all(map(torch.equal, one, two)) == same_data
    # the same activations all the same, but for what is still in the buffers
    rows = [{tuple(row.tolist()) for row in torch.cat(batches)} for batches in (one, two)]
    assert len(rows[0] & rows[1]) > 0.8 * len(rows[0])
    for trained_sae in result.saes:
        metadata = SAE.load_from_disk(str(trained_sae.path)).cfg.metadata
        number = int(trained_sae.name.removeprefix("seed_"))
        assert metadata.seed == (42 if same_weights else number)
        assert metadata.data_seed == (42 if same_data else number)


def test_without_checkpoints_the_message_says_so(tiny_model, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Stopped, match="after 256 tokens; nothing was saved"):
        trained(runner_config(tiny_model, tmp_path, checkpoint_path=None), 1)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_sae_lens_goes_on_and_says_that_it_is_not_the_same(tiny_model, tmp_path):
    trained(runner_config(tiny_model, tmp_path), 1)
    folder = checkpoints(tmp_path)[0]
    (folder / STATE_FILENAME).unlink()
    cfg = runner_config(tiny_model, tmp_path / "rest", resume_from_checkpoint=str(folder))
    with pytest.warns(UserWarning, match="not resumed exactly"):
        train(cfg, n_eval_batches=0, n_kept_activations=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_size": 20}, "context_size 16 instead of 20"),
        ({"n_batches_in_buffer": 30}, "n_batches_in_buffer 12 instead of 30"),
        ({"exclude_special_tokens": False}, "exclude_special_tokens"),
        ({"sae": isae_config("iSAE-ME", d_sae=D_SAE + 1)}, "cannot be resumed"),
        ({"sae": isae_config("iSAE-ME full")}, "cannot be resumed"),
    ],
)
def test_another_run_is_not_resumed(tiny_model, tmp_path, changes, message):
    trained(runner_config(tiny_model, tmp_path), 1)
    folder = str(checkpoints(tmp_path)[0])
    cfg = runner_config(tiny_model, tmp_path / "b", resume_from_checkpoint=folder, **changes)
    with pytest.raises(ValueError, match=message):
        train(cfg, n_eval_batches=0)


def test_damaged_checkpoints_are_named(tiny_model, tmp_path):
    trained(runner_config(tiny_model, tmp_path), 1)
    whole = checkpoints(tmp_path)[0]
    for file in ("trainer_state.pt", "sae_weights.safetensors", STATE_FILENAME):
        folder = tmp_path / f"broken_{file}"
        shutil.copytree(whole, folder)
        (folder / file).write_bytes((folder / file).read_bytes()[:100])
        cfg = runner_config(tiny_model, tmp_path / "b", resume_from_checkpoint=str(folder))
        with pytest.raises(ValueError, match=r"broken_.* (cannot be resumed|is damaged)"):
            train(cfg, n_eval_batches=0)
    for n_seeds, folder in ((1, tmp_path / "none"), (2, whole), (1, tmp_path)):
        cfg = runner_config(tiny_model, tmp_path / "b", resume_from_checkpoint=str(folder))
        with pytest.raises(ValueError, match="checkpoint"):
            train(cfg, n_seeds=n_seeds, n_eval_batches=0)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file: file write failed")),
        ("sae_lens.training.sae_trainer.save_file", OSError(28, "No space left on device")),
    ],
)
def test_a_full_disk_is_one_sentence(function, error, tiny_model, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(function, full)
    arguments = train_arguments(tiny_model, tmp_path, 20)
    assert "the disk is full" in complaint(arguments, tmp_path, monkeypatch, capsys)
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))


def train_arguments(tiny_model, folder, n_steps, **changes):
    """What follows `isae`, with the config in the folder."""
    model, text = tiny_model
    settings = {
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": HOOK,
        "dataset_path": str(text),
        "streaming": False,
        "context_size": 16,
        "training_tokens": 64 * n_steps,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 12,
        "store_batch_size_prompts": 3,
        "n_checkpoints": n_steps // 10,
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "out"),
        "sae": {"architecture": "isae", "d_in": D_IN, "d_sae": D_SAE, "k": K},
        "logger": {"log_to_wandb": False},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    config = str(folder / "config.yaml")
    return ["train", "--config", config, "--eval-batches", "0", "--keep-activations", "0"]


N_KILLS = 20
"""With one seed and with two, half of them each."""


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [1, 2])
def test_killed_at_random_moments_and_resumed(tiny_model, tmp_path, n_seeds):
    """Whatever is there under a final name is whole, and the last checkpoint leads to the same."""

    def started(folder):
        arguments = train_arguments(tiny_model, folder, 200)
        flags = ("--seeds", n_seeds, "--resume_from_checkpoint", "latest")
        return ForkedCommand([*arguments, *flags], tmp_path)

    begun = time.monotonic()
    process = started(tmp_path / "whole")
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    seconds = time.monotonic() - begun
    whole = weights(tmp_path / "whole" / "out")
    rng, n_killed = random.Random(n_seeds), 0
    for number in itertools.count():
        folder = tmp_path / f"killed_{number}"
        for attempt in itertools.count():
            process = started(folder)
            try:
                # longer each time: on a machine that got slower no attempt might reach a checkpoint
                _, said = process.communicate(rng.uniform(0.5, 0.95) * seconds * 1.2**attempt)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                n_killed += 1
            for path in folder.rglob("*.safetensors"):
                if not any(part.endswith(".partial") for part in path.parts):
                    load_file(path)
        assert process.returncode == 0, said[-2000:]
        assert_same(weights(folder / "out"), whole)
        if n_killed >= N_KILLS // 2:
            return


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--training_tokens", 0), "training_tokens must be >= 64, got 0"),
        (("--train_batch_size_tokens", -5), "train_batch_size_tokens must be >= 1, got -5"),
        (("--store_batch_size_prompts", 0), "store_batch_size_prompts must be >= 1, got 0"),
        (("--n_batches_in_buffer", 2), "do not fill a batch"),
        (("--context_size", 0), "adjust your seqpos or context_size"),
        (("--lr", "nan"), "lr must be a number > 0, got nan"),
        (("--seeds", 0), "seeds must be >= 1, got 0"),
        (("--eval-batches", -1), "eval_batches must be >= 0, got -1"),
        (("--keep-activations", -1), "keep_activations must be >= 0, got -1"),
        (("--output_path", "config.yaml"), "is, or lies below, a file"),
        (("--output_path", "config.yaml/x"), "is, or lies below, a file"),
        (("--output_path", "/proc/x"), "--output_path /proc/x cannot be written"),
        (("--checkpoint_path", "config.yaml"), "--checkpoint_path config.yaml"),
        (("--hook_name", "model.layers.9"), "no hook 'model.layers.9'; the nearest are ['model"),
        (("--d_in", 20), "d_in is 20, but the model's activations at model.layers.0 have 16"),
        (("--dataset_path", "none/such"), "the data set 'none/such' cannot be read"),
        (("--resume_from_checkpoint", "none"), "there is no checkpoint none"),
        (("--model_name", "none/such"), "the model none/such cannot be loaded"),
        (("--model_class_name", "Bert"), "model_class_name must be one of"),
        (
            ("--model_class_name", "HookedTransformer", "--hook_name", "blocks.0.hook_resid_post"),
            "may load with model_class_name TransformerBridge or AutoModelForCausalLM",
        ),
        (("--device", "cuda"), "use --device cpu"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found_before_training(
    tiny_model, tmp_path, flags, message, monkeypatch, capsys
):
    if flags[0] == "--device" and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    arguments = train_arguments(tiny_model, tmp_path, 20)
    monkeypatch.setattr(SAETrainer, "fit", lambda *_: pytest.fail("training began"))
    assert message in complaint([*arguments, *flags], tmp_path, monkeypatch, capsys)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "checkpoints").exists()
