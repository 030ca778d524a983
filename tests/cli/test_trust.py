"""What comes with a checkpoint runs no code and writes nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import stat
from importlib.util import find_spec
from pathlib import Path

import pytest

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.language_models import harmless_model_kwargs
from sae_lens_isae.private_folders import private_folder, secret_folder
from tests.conftest import complaint, isae_config, make_sae, run_isae
from tests.saebench.conftest import needs_saebench

PAYLOAD = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "mine"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture
def armed(tiny_model, tmp_path, monkeypatch):
    """An SAE whose config asks for code that comes with its model; the mark says that it ran."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model[0], model)
    mark = tmp_path / "mark"
    (model / "mine.py").write_text(PAYLOAD.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
    }
    (model / "config.json").write_text(json.dumps(config))
    make_sae(isae_config("AbsTopK")).save_inference_model(tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"] |= {
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "dataset_path": str(tiny_model[1]),
        "context_size": 16,
        "prepend_bos": True,
        "model_from_pretrained_kwargs": {"trust_remote_code": True},
    }
    path.write_text(json.dumps(cfg))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "sae", mark


COMMANDS = [("audit",), ("pairwise",), ("recode",)]
if find_spec("sae_bench") is not None:
    COMMANDS += [("bench", "--evals", "core", "--text", "model")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_code_named_by_a_checkpoint_does_not_run(command, armed, monkeypatch, capsys, tmp_path):
    sae, mark = armed
    saes = (sae, sae) if command[0] == "pairwise" else (sae,)
    said = complaint((command[0], *saes, *command[1:]), tmp_path, monkeypatch, capsys)
    assert "'trust_remote_code': True" in said
    assert "--trust-remote-code" in said
    assert not mark.exists()


def test_it_runs_where_the_user_says_so(armed, tmp_path):
    """And so the test above can fail."""
    sae, mark = armed
    out = tmp_path / "out"
    run_isae("audit", sae, "--samples", 20, "--trust-remote-code", "--out", out)
    assert mark.read_text() == "ran"


def test_harmless_options_pass():
    kwargs = {"revision": "step1000", "center_writing_weights": False, "dtype": "bfloat16"}
    assert harmless_model_kwargs(kwargs) == kwargs
    assert harmless_model_kwargs(None) == {}
    for bad in (
        {"hf_model": "x"},
        {"code_revision": "x"},
        {"revision": {"a": 1}},
        {"tokenizer": "x"},
        {"attn_implementation": "someone/kernel"},
    ):
        with pytest.raises(InputError, match="--trust-remote-code"):
            harmless_model_kwargs({**kwargs, **bad})


def test_folders_for_pickles_are_this_users_alone(tmp_path):
    folder = private_folder(tmp_path / "new")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for bad in ("shared", "everybody"):
        (tmp_path / bad).mkdir()
        (tmp_path / bad).chmod(0o770 if bad == "shared" else 0o777)
        with pytest.raises(InputError, match="others may write there"):
            private_folder(tmp_path / bad)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match="is a link"):
        private_folder(tmp_path / "link")
    if os.getuid() == 0:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 12345, -1)
        with pytest.raises(InputError, match="belongs to another user"):
            private_folder(tmp_path / "theirs")


def test_nobody_else_can_guess_where_pickles_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_ISAE_CACHE", str(tmp_path / "one"))
    mine = secret_folder(tmp_path / "out", "key")
    assert secret_folder(tmp_path / "out", "key") == mine
    assert secret_folder(tmp_path / "out", "other") != mine
    secret = tmp_path / "one" / "private" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    monkeypatch.setenv("SAE_LENS_ISAE_CACHE", str(tmp_path / "two"))
    assert secret_folder(tmp_path / "out", "key") != mine


@needs_saebench
def test_a_models_name_makes_no_paths(tiny_model, tmp_path, monkeypatch):
    """`gguf:/../../x` wrote below the folder above."""
    from sae_lens_isae import bench

    model, _ = tiny_model
    name = f"{model.parent}/{model.name}/../../{model.parent.name}/{model.name}"
    make_sae(isae_config("AbsTopK")).save_inference_model(tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"] |= {
        "model_name": name,
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "prepend_bos": True,
        "context_size": 16,
    }
    path.write_text(json.dumps(cfg))
    stories = [{"story1": "a b", "story2": "c d", "subject_title": str(i)} for i in range(2)]
    (tmp_path / "s.json").write_text(json.dumps(stories))
    before = {p for p in tmp_path.rglob("*") if p.is_file()} | set(model.parent.rglob("*"))
    out = tmp_path / "out"
    bench(tmp_path / "sae", ["ce_bench"], out, stories=str(tmp_path / "s.json"))
    new = {p for p in tmp_path.rglob("*") if p.is_file()} | set(model.parent.rglob("*"))
    assert all(Path(p).is_relative_to(out) for p in new - before)
    (result,) = out.glob("ce_bench/*_eval_results.json")
    assert json.loads(result.read_text())["eval_config"]["model_name"] == name
