"""Two commands on one folder, and commands that are killed: no result is half of one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lens_isae.files import output_folder
from tests.cli.malformed.damage import STORIES, for_model
from tests.conftest import D_IN, complaint
from tests.forked import ForkedCommand
from tests.training.test_recovery import train_arguments

TRIES = int(os.environ.get("ISAE_TRIES", "3"))
"""Of the slow tests; more of them are for a day on which this code was changed."""
COMMANDS = ["pairwise", "audit", "recode", "train"]
if find_spec("sae_bench") is not None:
    COMMANDS.append("bench")
RESULTS = {
    "pairwise": {"pairwise.json", "latents.json", "latents.parquet", "pairwise.html"},
    "audit": {"audit.json", "audit.html"},
    "recode": {"recode.json", "latents.parquet", "recode.html"},
    "bench": {"bench.json", "bench.html"},
    "train": {"sae_weights.safetensors", "cfg.json"},
}


@pytest.fixture
def work(tiny_model, tmp_path):
    from tests.conftest import isae_config, make_sae

    for seed, name in enumerate("ab"):
        make_sae(isae_config("AbsTopK"), seed).save_inference_model(tmp_path / name)
    for_model(tmp_path, tiny_model[0])
    save_file({"x": torch.randn(400, D_IN)}, tmp_path / "x.safetensors")
    stories = [{**STORIES, "subject_title": str(i)} for i in range(40)]
    (tmp_path / "s.json").write_text(json.dumps(stories))
    return tmp_path


def arguments(command, work, tiny_model):
    data = ("--activations", work / "x.safetensors", "--device", "cpu")
    if command == "train":
        return train_arguments(tiny_model, work / "train", 200), work / "train" / "out"
    some = {
        "pairwise": (work / "a", work / "b", *data),
        "audit": (work / "a", *data),
        "recode": (work / "a", *data, "--gd-samples", 8),
        "bench": (work / "a", "--evals", "ce_bench", "--stories", work / "s.json", "--resume"),
    }
    return [command, *some[command], "--out", work / "out"], work / "out"


def start(command, work, tiny_model):
    some, _ = arguments(command, work, tiny_model)
    return ForkedCommand(some, work)


def check_whole(out):
    for path in out.rglob("*"):
        if not path.is_file() or any(p.startswith(".") for p in path.relative_to(out).parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_use_is_refused(command, work, tiny_model, monkeypatch, capsys):
    some, out = arguments(command, work, tiny_model)
    with output_folder(out):
        said = complaint(some, work, monkeypatch, capsys)
    assert f"another process is writing to {out}" in said
    assert not out.exists()


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / ".x.json.0123456789ab.partial").write_text("{")
    (tmp_path / "out" / ".0123456789ab.partial").mkdir()
    (tmp_path / "out" / ".theirs.partial").touch()
    with output_folder(tmp_path / "out"):
        found = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    assert found == [".theirs.partial", "parts"]
    # a folder that was there is kept
    assert (tmp_path / "out").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_at_once(command, work, tiny_model):
    """The later one is refused, or finds the folder free again; what is there is whole."""
    _, out = arguments(command, work, tiny_model)
    for _ in range(TRIES):
        processes = [start(command, work, tiny_model) for _ in range(2)]
        said = [process.communicate()[1] for process in processes]
        codes = [process.returncode for process in processes]
        assert 0 in codes, said
        for code, text in zip(codes, said, strict=True):
            assert code == 0 or "another process is writing" in text, text[-2000:]
            assert "Traceback" not in text
        check_whole(out)
        assert RESULTS[command] <= {path.name for path in out.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "train"])
def test_killed_at_random_moments(command, work, tiny_model):
    _, out = arguments(command, work, tiny_model)
    begun = time.monotonic()
    process = start(command, work, tiny_model)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    seconds = time.monotonic() - begun
    rng = random.Random(0)
    for _ in range(TRIES):
        process = start(command, work, tiny_model)
        try:
            process.communicate(timeout=rng.uniform(0.1, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        check_whole(out)
    process = start(command, work, tiny_model)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    check_whole(out)
    assert RESULTS[command] <= {path.name for path in out.iterdir()}
    assert not list(out.rglob(".*.partial"))
