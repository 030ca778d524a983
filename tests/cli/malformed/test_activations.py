"""Malformed activations get one sentence that names them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.malformed.damage import bytes_of
from tests.conftest import D_IN


def saved_npy(place: Path, array: Any) -> str:
    np.save(place / "bad.npy", array, allow_pickle=True)
    return "bad.npy"


def saved(place: Path, **tensors: torch.Tensor) -> str:
    save_file({k: v.contiguous() for k, v in tensors.items()}, place / "bad.safetensors")
    return "bad.safetensors"


def zipped(place: Path) -> str:
    with zipfile.ZipFile(place / "bad.npy", "w") as file:
        file.writestr("x.npy", "nothing")
    return "bad.npy"


def cut_off(place: Path, name: str) -> str:
    path = place / (
        saved(place, x=torch.randn(80, D_IN))
        if name == "safetensors"
        else saved_npy(place, np.zeros((80, D_IN), dtype="f4"))
    )
    path.write_bytes(path.read_bytes()[:-99])
    return path.name


def data_set(place: Path, column: str, *columns: str) -> str:
    from datasets import Dataset

    row = {name: [[[0.5] * D_IN] * 4] * 3 for name in (column, *columns)}
    Dataset.from_dict(row).save_to_disk(place / "cached")
    return "cached"


X = torch.randn(30, D_IN)
SIZES = f"num_features=30,hidden_dim={D_IN},k=2"
ACTIVATIONS: dict[str, tuple[Callable[[Path], str], str]] = {
    "no such file": (lambda p: "none.npy", "no activations file or folder none.npy"),
    "npy empty": (lambda p: bytes_of(p, "bad.npy", b""), "bad.npy"),
    "npy text": (lambda p: bytes_of(p, "bad.npy", b"1, 2, 3"), "bad.npy cannot be read"),
    "npy cut off": (lambda p: cut_off(p, "npy"), "bad.npy cannot be read"),
    "npy a zip": (zipped, "bad.npy"),
    "npy objects": (lambda p: saved_npy(p, np.array([{}, {}])), "bad.npy"),
    "npy integers": (lambda p: saved_npy(p, np.zeros((9, D_IN), dtype=int)), "int64 of shape"),
    "npy truth values": (lambda p: saved_npy(p, np.zeros((9, D_IN), dtype=bool)), "bool"),
    "npy complex": (lambda p: saved_npy(p, np.zeros((9, D_IN), dtype=complex)), "complex"),
    "npy long double": (lambda p: saved_npy(p, np.zeros((9, D_IN), dtype="g")), "float128"),
    "npy flat": (lambda p: saved_npy(p, np.zeros(9)), "shape (9,)"),
    "npy scalar": (lambda p: saved_npy(p, np.float32(1)), "shape ()"),
    "npy no rows": (lambda p: saved_npy(p, np.zeros((0, D_IN))), "there are no activations"),
    "npy wide": (lambda p: saved_npy(p, np.zeros((9, D_IN + 1))), f"d_in is {D_IN + 1}"),
    "npy NaN": (lambda p: saved_npy(p, np.full((9, D_IN), np.nan)), "bad.npy: the activations"),
    "npy beyond float32": (lambda p: saved_npy(p, np.full((9, D_IN), 1e300)), "NaN or Inf"),
    "safetensors empty": (lambda p: bytes_of(p, "bad.safetensors", b""), "bad.safetensors"),
    "safetensors garbage": (
        lambda p: bytes_of(p, "bad.safetensors", b"\1" * 200),
        "bad.safetensors cannot be read",
    ),
    "safetensors cut off": (lambda p: cut_off(p, "safetensors"), "bad.safetensors cannot be read"),
    "safetensors nothing": (saved, "holds tensors []"),
    "safetensors two": (lambda p: saved(p, a=X, b=X + 1), "holds tensors ['a', 'b']"),
    "safetensors integers": (lambda p: saved(p, x=X.long()), "I64 of shape"),
    "safetensors float8": (lambda p: saved(p, x=X.to(torch.float8_e4m3fn)), "F8_E4M3"),
    "safetensors flat": (lambda p: saved(p, x=X[0]), f"shape ({D_IN},)"),
    "safetensors infinite": (lambda p: saved(p, x=X / 0), "bad.safetensors: the activations hold"),
    "safetensors all zero": (lambda p: saved(p, x=0 * X), "all 30 activations are zero"),
    "safetensors no rows": (lambda p: saved(p, x=X[:0]), "there are no activations"),
    "safetensors narrow": (lambda p: saved(p, x=X[:, 1:]), f"d_in is {D_IN - 1}"),
    "safetensors no columns": (lambda p: saved(p, x=X[:, :0]), "d_in is 0"),
    "unknown ending": (lambda p: bytes_of(p, "bad.csv", b"1"), "must be .safetensors, .npy"),
    "any folder": (lambda p: "b", "b is not a data set of cached activations"),
    "cached elsewhere": (lambda p: data_set(p, "h1", "h2"), "cached holds ['h1', 'h2']"),
    "generator unknown": (lambda p: "synthetic:uniform", "unknown generator 'uniform'"),
    "generator unnamed": (lambda p: "synthetic:", "unknown generator ''"),
    "generator incomplete": (lambda p: "synthetic:iid,k=2", "num_features"),
    "generator unknown option": (lambda p: f"synthetic:iid,{SIZES},x=1", "'x'"),
    "generator no value": (lambda p: "synthetic:iid,k", "expected e.g."),
    "generator two values": (lambda p: "synthetic:iid,k=2=3", "expected e.g."),
    "generator text": (lambda p: "synthetic:iid,k=two", "expected e.g."),
    "generator repeated": (lambda p: f"synthetic:iid,{SIZES},k=3", "k is given twice"),
    "generator fraction": (lambda p: f"synthetic:iid,{SIZES.replace('k=2', 'k=3.5')}", "k must be"),
    "generator k 0": (lambda p: f"synthetic:iid,{SIZES.replace('k=2', 'k=0')}", "k must be"),
    "generator k large": (lambda p: f"synthetic:iid,{SIZES.replace('k=2', 'k=99')}", "k must be"),
    "generator negative": (
        lambda p: f"synthetic:iid,num_features=-3,hidden_dim={D_IN},k=2",
        "must",
    ),
    "generator huge": (
        lambda p: f"synthetic:iid,num_features={10**12},hidden_dim={D_IN},k=2",
        "num_features",
    ),
    "generator another d_in": (
        lambda p: f"synthetic:iid,num_features=30,hidden_dim={D_IN + 1},k=2",
        f"d_in is {D_IN + 1}",
    ),
}


@pytest.mark.parametrize("command", ["audit", "recode"])
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations(case, command, place, said):
    make, words = ACTIVATIONS[case]
    name = make(place)
    sentence = said(command, "a", "--activations", name, "--samples", 60)
    if command == "recode":
        # it codes zero activations as it codes others
        words = {"all 30 activations are zero": "zero code to all 30"}.get(words, words)
    assert words in sentence
    assert not list(place.glob("*_report"))
