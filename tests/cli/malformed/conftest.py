"""Good SAEs and activations to damage, and what the command line says of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.malformed.damage import for_model
from tests.conftest import D_IN, complaint, isae_config, make_sae
from tests.inputs.test_linear_sae import stock_sae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SAEs `a` and `b`, and activations `x.safetensors`."""
    folder = tmp_path_factory.mktemp("good")
    for seed, name in enumerate("ab"):
        make_sae(isae_config("AbsTopK"), seed).save_inference_model(folder / name)
    stock_sae("jumprelu").save_model(folder / "jumprelu")
    save_file({"activations": torch.randn(80, D_IN)}, folder / "x.safetensors")
    return folder


@pytest.fixture
def place(folder, tmp_path):
    """A copy, for damaging."""
    shutil.copytree(folder, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def said(place, monkeypatch, capsys) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        text = complaint(arguments, place, monkeypatch, capsys)
        (sentence,) = [line for line in text.splitlines() if line.startswith("error: ")]
        return sentence

    return run


@pytest.fixture
def benched(tiny_model, place):
    for_model(place, tiny_model[0])
    return place
