"""Labels and files of the reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae_lens_isae.inputs.saes import labels
from sae_lens_isae.measuring import Inputs, run_pairwise
from tests.conftest import D_IN, isae_config, make_sae


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["out/a/seed_0", "out/a/seed_1"], ["seed_0", "seed_1"]),
        (["out/a/seed_0", "out/b/seed_0"], ["a/seed_0", "b/seed_0"]),
        (["out/a", "out/a", "out/a"], ["a", "a (2)", "a (3)"]),
        (["gpt2-small-res-jb/blocks.0", "mine"], ["gpt2-small-res-jb/blocks.0", "mine"]),
        (["/x/a", "b"], ["/x/a", "b"]),
        (["out/a"], ["out/a"]),
    ],
)
def test_labels(names, expected):
    assert labels(names) == expected


@pytest.fixture
def inputs(tmp_path):
    for seed, name in enumerate(("a", "b")):
        make_sae(isae_config("iSAE"), seed).save_inference_model(tmp_path / name)
    data = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
    return Inputs([str(tmp_path / "a"), str(tmp_path / "b")], data, n_samples=64)


def test_the_same_seed_gives_the_same_report(inputs, tmp_path):
    for out in ("first", "second"):
        run_pairwise(inputs, tmp_path / out)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / out).iterdir() if p.suffix == ".json"}
        for out in ("first", "second")
    )
    assert first == second
    assert set(first) == {"pairwise.json", "latents.json"}


def test_an_interrupted_write_leaves_the_old_report(inputs, tmp_path, monkeypatch):
    run_pairwise(inputs, tmp_path)
    before = (tmp_path / "pairwise.json").read_text()

    def half_written(path, *_, **__):
        with path.open("w") as file:
            file.write('{"half":')
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half_written)
    with pytest.raises(KeyboardInterrupt):
        run_pairwise(inputs, tmp_path)
    assert (tmp_path / "pairwise.json").read_text() == before
    assert json.loads(before)["n_samples"] == 64
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="use --device cpu"):
        Inputs(["a"], device="cuda").open()
