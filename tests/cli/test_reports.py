"""The files of a report, and what lies there when a command was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from isae_cli.app import main
from tests.conftest import D_IN, complaint, isae_config, make_sae, run_isae


@pytest.fixture
def arguments(tmp_path):
    for seed, name in enumerate(("a", "b")):
        make_sae(isae_config("iSAE"), seed).save_inference_model(tmp_path / name)
    data = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
    saes = [str(tmp_path / "a"), str(tmp_path / "b")]
    return ["pairwise", *saes, "--activations", data, "--samples", "64"]


def test_the_same_seed_gives_the_same_report(arguments, tmp_path):
    for out in ("first", "second"):
        run_isae(*arguments, "--out", tmp_path / out)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / out).iterdir() if p.suffix == ".json"}
        for out in ("first", "second")
    )
    assert first == second
    assert set(first) == {"pairwise.json", "latents.json"}


def test_an_interrupted_write_leaves_the_old_report(arguments, tmp_path, monkeypatch):
    run_isae(*arguments, "--out", tmp_path)
    before = (tmp_path / "pairwise.json").read_text()

    def half_written(path, *_, **__):
        with path.open("w") as file:
            file.write('{"half":')
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half_written)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert (tmp_path / "pairwise.json").read_text() == before
    assert json.loads(before)["n_samples"] == 64
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(arguments, tmp_path, monkeypatch, capsys):
    said = complaint((*arguments, "--device", "cuda"), tmp_path, monkeypatch, capsys)
    assert "use --device cpu" in said
