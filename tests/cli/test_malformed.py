"""Every malformed input gets one sentence that names it: no traceback, no report, no silence."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from isae_cli.app import main
from sae_lens_isae.identifiability import AuditReport
from tests.conftest import D_IN, D_SAE, K, complaint, isae_config, make_sae, run_isae
from tests.inputs.test_linear_sae import stock_sae

GOOD_DATA = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


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
    import shutil

    shutil.copytree(folder, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def said(place, monkeypatch, capsys) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        text = complaint(arguments, place, monkeypatch, capsys)
        (sentence,) = [line for line in text.splitlines() if line.startswith("error: ")]
        return sentence

    return run


def config_with(place: Path, **changes: Any) -> None:
    data = json.loads((place / "a" / CFG).read_text())
    (place / "a" / CFG).write_text(json.dumps({**data, **changes}))


def weights_with(place: Path, name: str = "a", drop: str = "", **changes: Any) -> None:
    data = load_file(place / name / WEIGHTS)
    data = {k: v for k, v in data.items() if k != drop}
    save_file({**data, **{k: v.contiguous() for k, v in changes.items()}}, place / name / WEIGHTS)


def replaced(place: Path, what: str, by: bytes | str) -> None:
    (place / what).write_bytes(by if isinstance(by, bytes) else by.encode())


def made_folder(place: Path, what: str) -> None:
    (place / what).unlink()
    (place / what).mkdir()


NAN = torch.full((D_SAE, D_IN), float("nan"))
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "config empty": (lambda p: replaced(p, f"a/{CFG}", ""), "a/cfg.json is not the config"),
    "config no JSON": (lambda p: replaced(p, f"a/{CFG}", "{k: 3"), "a/cfg.json is not the config"),
    "config list": (lambda p: replaced(p, f"a/{CFG}", "[1]"), "it holds no mapping"),
    "config null": (lambda p: replaced(p, f"a/{CFG}", "null"), "it holds no mapping"),
    "config not UTF-8": (lambda p: replaced(p, f"a/{CFG}", b"\xff\xfe{}"), "a/cfg.json"),
    "config no SAE's": (lambda p: replaced(p, f"a/{CFG}", '{"vocab": 3}'), "a cannot be loaded"),
    "config folder": (lambda p: made_folder(p, f"a/{CFG}"), "'a' is neither a folder with"),
    "architecture unknown": (lambda p: config_with(p, architecture="relu6"), "'relu6'"),
    "architecture of training": (
        lambda p: config_with(p, architecture="regularized_topk"),
        "load the exported SAE",
    ),
    "architecture null": (lambda p: config_with(p, architecture=None), "architecture None"),
    "architecture list": (lambda p: config_with(p, architecture=["topk"]), "a: SAELens has no"),
    "architecture another": (lambda p: config_with(p, architecture="gated"), "a cannot be loaded"),
    "k string": (lambda p: config_with(p, k="3"), "a cannot be loaded"),
    "k negative": (lambda p: config_with(p, k=-3), "a cannot be loaded"),
    "k null": (lambda p: config_with(p, k=None), "a cannot be loaded"),
    "k too large": (lambda p: config_with(p, k=D_SAE + 1), "a cannot be loaded"),
    "k list": (lambda p: config_with(p, k=[3]), "a cannot be loaded"),
    "d_in string": (lambda p: config_with(p, d_in="16"), "a cannot be loaded"),
    "d_in another": (lambda p: config_with(p, d_in=D_IN + 1), "a cannot be loaded"),
    "d_in negative": (lambda p: config_with(p, d_in=-1), "a cannot be loaded"),
    "d_sae another": (lambda p: config_with(p, d_sae=D_SAE + 1), "a cannot be loaded"),
    "d_sae huge": (lambda p: config_with(p, d_sae=10**15), "a cannot be loaded"),
    "dtype unknown": (lambda p: config_with(p, dtype="float7"), "a cannot be loaded"),
    "dtype number": (lambda p: config_with(p, dtype=32), "a cannot be loaded"),
    "metadata text": (lambda p: config_with(p, metadata="m"), "a/cfg.json"),
    "metadata list": (lambda p: config_with(p, metadata=[1]), "a"),
    "normalization unknown": (lambda p: config_with(p, normalize_activations="x"), "a cannot be"),
    "version garbage": (lambda p: config_with(p, sae_lens_version="new"), "a/cfg.json"),
    "weights missing": (lambda p: (p / "a" / WEIGHTS).unlink(), f"a has no {WEIGHTS}"),
    "weights empty": (lambda p: replaced(p, f"a/{WEIGHTS}", ""), f"a/{WEIGHTS} cannot be read"),
    "weights garbage": (lambda p: replaced(p, f"a/{WEIGHTS}", b"\0" * 99), f"a/{WEIGHTS}"),
    "weights cut off": (
        lambda p: replaced(p, f"a/{WEIGHTS}", (p / "a" / WEIGHTS).read_bytes()[:-9]),
        f"a/{WEIGHTS} cannot be read",
    ),
    "weights folder": (lambda p: made_folder(p, f"a/{WEIGHTS}"), f"a has no {WEIGHTS}"),
    "weights without W_dec": (lambda p: weights_with(p, drop="W_dec"), "a cannot be loaded"),
    "weights without b_dec": (lambda p: weights_with(p, drop="b_dec"), "a cannot be loaded"),
    "weights with more": (lambda p: weights_with(p, S=torch.zeros(3)), "a cannot be loaded"),
    "weights misshapen": (
        lambda p: weights_with(p, W_enc=torch.zeros(D_IN, 3)),
        "a cannot be loaded",
    ),
    "weights turned": (lambda p: weights_with(p, W_dec=NAN.T), "a cannot be loaded"),
    "weights scalar": (lambda p: weights_with(p, W_dec=torch.tensor(1.0)), "a cannot be loaded"),
    "weights integer": (lambda p: weights_with(p, W_dec=NAN.nan_to_num().long()), "a"),
    "weights NaN": (lambda p: weights_with(p, W_dec=NAN), "a: W_dec holds NaN or Inf"),
    "weights infinite": (
        lambda p: weights_with(p, W_enc=torch.full((D_IN, D_SAE), torch.inf)),
        "a: W_enc holds NaN or Inf",
    ),
    "weights beyond float32": (
        lambda p: weights_with(p, W_dec=NAN.nan_to_num().double() + 1e300),
        "a: W_dec holds NaN or Inf",
    ),
    "weights overflowing": (
        lambda p: weights_with(p, W_dec=torch.full((D_SAE, D_IN), 3e38)),
        "too long for float32",
    ),
    "weights all zero": (
        lambda p: weights_with(p, W_dec=torch.zeros(D_SAE, D_IN)),
        "no sample has an active latent",
    ),
    "bias NaN": (lambda p: weights_with(p, b_dec=NAN[0]), "a: b_dec holds NaN"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, place, said):
    damage, words = CHECKPOINTS[case]
    damage(place)
    assert words in said("audit", "a", "--activations", GOOD_DATA, "--samples", 60)
    assert not (place / "audit_report").exists()


def test_a_threshold_that_is_nan(place, said):
    weights_with(place, "jumprelu", threshold=torch.full((D_SAE,), float("nan")))
    sentence = said("audit", "jumprelu", "--activations", GOOD_DATA)
    assert "jumprelu: threshold holds NaN" in sentence


def saved_npy(place: Path, array: Any) -> str:
    np.save(place / "bad.npy", array, allow_pickle=True)
    return "bad.npy"


def saved(place: Path, **tensors: torch.Tensor) -> str:
    save_file({k: v.contiguous() for k, v in tensors.items()}, place / "bad.safetensors")
    return "bad.safetensors"


def bytes_of(place: Path, name: str, data: bytes) -> str:
    (place / name).write_bytes(data)
    return name


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


DATA = ("--activations", "x.safetensors")
OPTIONS: dict[tuple[object, ...], str] = {
    ("pairwise", "a", *DATA): "two or more SAEs, got 1",
    ("pairwise", "a", "none", *DATA): "'none' is neither a folder",
    ("pairwise", "a", "./none", *DATA): "'./none' is neither a folder",
    ("pairwise", "a", "x.safetensors", *DATA): "'x.safetensors' is neither a folder",
    ("pairwise", "a", "a/cfg.json", *DATA): "'a/cfg.json' is neither a folder",
    ("pairwise", "a", "b", *DATA, "--oracle-k", 0): "oracle_k must be >= 1, got 0",
    ("pairwise", "a", "b", *DATA, "--oracle-k", -4): "oracle_k must be >= 1, got -4",
    ("pairwise", "a", "b", *DATA, "--oracle-k", D_SAE + 1): "exceeds the latents",
    ("pairwise", "a", "b", *DATA, "--oracle-samples", -1): "oracle_samples must be >= 0, got -1",
    ("pairwise", "a", "b", *DATA, "--found", 1.5): "between 0 and 1, got 1.5",
    ("pairwise", "a", "b", *DATA, "--found", -0.5): "between 0 and 1, got -0.5",
    ("pairwise", "a", "b", *DATA, "--found", "nan"): "between 0 and 1, got nan",
    ("pairwise", "a", "b", *DATA, "--samples", 0): "samples must be >= 1, got 0",
    ("pairwise", "a", "b", *DATA, "--samples", -3): "samples must be >= 1, got -3",
    ("pairwise", "a", "b", *DATA, "--table", "xlsx"): "'xlsx' is not one of 'parquet', 'csv'",
    ("pairwise", "a", "b", *DATA, "--seed", -1): "seed must be between 0 and",
    ("pairwise", "a", "b", *DATA, "--seed", 2**40): "seed must be between 0 and",
    ("pairwise", "a", "b", *DATA, "--device", "gpu"): "device 'gpu'",
    ("pairwise", "a", "b", *DATA, "--out", "x.safetensors"): "is, or lies below, a file",
    ("pairwise", "a", "b", *DATA, "--out", "x.safetensors/y"): "is, or lies below, a file",
    ("pairwise", "a", "b", *DATA, "--out", "/proc/nothing"): "cannot be written",
    ("pairwise", "a", "b"): "does not say where its activations come from",
    ("audit", "a", *DATA, "--samples", 0): "samples must be >= 1, got 0",
    ("audit", "a", *DATA, "--out", "x.safetensors"): "--out x.safetensors is",
    ("audit", "a", *DATA, "--device", "cpu:x"): "device 'cpu:x'",
    ("audit", "a", *DATA, "--seed", -1): "seed must be between 0 and",
    ("audit", "a/"): "does not say where its activations come from",
    ("audit", "gpt2-small-res-jb/none", *DATA): "gpt2-small-res-jb/none",
    ("audit", "me/mine/sae", *DATA): "me/mine/sae is not on this machine",
    ("recode",): "no SAE was named",
    ("recode", "a", *DATA, "--prompts", "p.csv"): "not both",
    ("recode", "a", "--prompts", "none.csv"): "no file of prompts none.csv",
    ("recode", "a", "--prompts", "a"): "no file of prompts a",
    ("recode", "a"): "name the models",
    ("recode", "--release", "x"): "--release and --sae-id belong together",
    ("recode", "--sae-id", "x"): "--release and --sae-id belong together",
    ("recode", "--release", "none", "--sae-id", "x", *DATA): "none/x",
    ("recode", "a", *DATA, "--gd-samples", 0): "gd_samples must be > 0, got 0",
    ("recode", "a", *DATA, "--gd-starts", -1): "gd_starts must be > 0, got -1",
    ("recode", "a", *DATA, "--noise-samples", 0): "noise_samples must be > 0, got 0",
    ("recode", "a", *DATA, "--samples", -1): "samples must be >= 1, got -1",
    ("recode", "a", *DATA, "--table", "x"): "'x' is not one of 'parquet'",
    ("recode", "a", *DATA, "--seed", -1): "seed must be between 0 and",
    ("recode", "a", *DATA, "--out", "x.safetensors"): "--out x.safetensors is",
    ("demo", "--seeds", 1): "seeds must be >= 2",
    ("demo", "--seeds", 2, "--out", "x.safetensors"): "is, or lies below, a file",
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda some: " ".join(map(str, some)))
def test_options(arguments, place, said):
    assert OPTIONS[arguments] in said(*arguments)
    assert not list(place.glob("*_report"))
    assert not (place / "demo").exists()


PROMPTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "p.csv has no column answer and no column prompt"),
    "no rows": (b"prompt,answer\n", "p.csv holds no prompts"),
    "no answer column": (b"prompt,reply\nx,y\n", "p.csv has no column answer"),
    "semicolons": (b"prompt;answer\nx;y\n", "p.csv has no column answer"),
    "unquoted comma": (b"prompt,answer\nIn Paris, France,x\n", "p.csv, row 2: more cells"),
    "empty answer": (b"prompt,answer\nx,\n", "p.csv, row 2: prompt or answer is empty"),
    "empty prompt": (b"prompt,answer\na,b\n ,y\n", "p.csv, row 3: prompt or answer is empty"),
    "short row": (b"prompt,answer\nx\n", "p.csv, row 2: prompt or answer is empty"),
    "not UTF-8": (b"prompt,answer\n\xff\xfe,x\n", "p.csv cannot be read as CSV"),
    "open quote": (b'prompt,answer\n"x,y\n', "p.csv cannot be read as CSV"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(case, place, said):
    data, words = PROMPTS[case]
    bytes_of(place, "p.csv", data)
    assert words in said("recode", "a", "--prompts", "p.csv", "--model", "none")


def test_prompts_longer_than_the_context(tiny_model, place, said):
    model, _ = tiny_model
    bytes_of(place, "p.csv", b"prompt,answer\n" + b"abc " * 200 + b",x\n")
    for_model(place, model)
    sentence = said("recode", "a", "--prompts", "p.csv")
    assert "prompt 1 has" in sentence
    assert "64" in sentence


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    from sae_lens_isae.recoding import load_prompts

    (tmp_path / "p.csv").write_bytes("\ufeffprompt,answer\n2 + 2 =,4\n".encode())
    (prompt,) = load_prompts(tmp_path / "p.csv")
    assert (prompt.text, prompt.answer) == ("2 + 2 =", "4")


SAE = {"architecture": "isae_me", "d_in": D_IN, "d_sae": D_SAE, "k": K}
YAML: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "c.yaml: needs a mapping `sae:`"),
    "a scalar": ("isae", "c.yaml: needs a mapping `sae:`"),
    "a list": ("- sae", "c.yaml: needs a mapping `sae:`"),
    "tabs": ("sae:\n\tk: 3", "c.yaml is not a YAML file"),
    "open bracket": ("sae: {k: 3", "c.yaml is not a YAML file"),
    "open list": ("sae: [", "c.yaml is not a YAML file"),
    "several documents": ("a: 1\n---\nb: 2", "c.yaml is not a YAML file"),
    "python tag": ("sae: !!python/object/apply:os.getcwd []", "c.yaml is not a YAML file"),
    "unknown tag": ("sae: !mine 3", "c.yaml is not a YAML file"),
    "unknown anchor": ("sae: *there", "c.yaml is not a YAML file"),
    "not UTF-8": (b"sae: \xff\xfe", "c.yaml is not a YAML file"),
    "NUL": (b"sae: \0", "c.yaml is not a YAML file"),
    "sae a list": (yaml.safe_dump({"sae": [SAE]}), "c.yaml: needs a mapping `sae:`"),
    "sae null": (yaml.safe_dump({"sae": None}), "c.yaml: needs a mapping `sae:`"),
    "no architecture": (yaml.safe_dump({"sae": {"k": 3}}), "with an `architecture`"),
    "architecture unknown": (
        yaml.safe_dump({"sae": {"architecture": "isae-me"}}),
        "unknown architecture 'isae-me'",
    ),
    "architecture a list": (
        yaml.safe_dump({"sae": {"architecture": ["isae"]}}),
        "unknown architecture ['isae']",
    ),
    "field mistyped": (yaml.safe_dump({"sae": SAE, "hook_nam": 1}), "did you mean hook_name?"),
    "sae field mistyped": (yaml.safe_dump({"sae": {**SAE, "d_sea": 1}}), "did you mean sae.d_sae?"),
    "field a number": (yaml.safe_dump({"sae": SAE, 7: 1}), "unknown field 7"),
    "logger a text": (yaml.safe_dump({"sae": SAE, "logger": "off"}), "`logger:` must be a mapping"),
    "logger unknown": (yaml.safe_dump({"sae": SAE, "logger": {"x": 1}}), "unknown field logger.x"),
    "k 0": (yaml.safe_dump({"sae": {**SAE, "k": 0}}), "k must be an integer >= 1, got 0"),
    "k text": (yaml.safe_dump({"sae": {**SAE, "k": "three"}}), "c.yaml"),
    "k two numbers": (yaml.safe_dump({"sae": {**SAE, "k": [3, 4]}}), "c.yaml"),
    "k a mapping": (yaml.safe_dump({"sae": {**SAE, "k": {"a": 1}}}), "c.yaml"),
    "lists of lists": (yaml.safe_dump({"sae": SAE, "lr": [[1]]}), "a list of lists"),
    "lr text": (yaml.safe_dump({"sae": SAE, "lr": "fast"}), "c.yaml"),
    "d_in negative": (yaml.safe_dump({"sae": {**SAE, "d_in": -4}}), "d_in and d_sae must be >= 1"),
    "d_in 0": (yaml.safe_dump({"sae": {**SAE, "d_in": 0}}), "d_in and d_sae must be >= 1"),
    "streaming a number": (yaml.safe_dump({"sae": SAE, "streaming": 7}), "c.yaml"),
    "step matrix unknown": (
        yaml.safe_dump({"sae": {**SAE, "step_matrix": "diagonal"}}),
        "step_matrix: invalid choice: 'diagonal'",
    ),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml(case, place, said):
    data, words = YAML[case]
    bytes_of(place, "c.yaml", data if isinstance(data, bytes) else data.encode())
    assert words in said("train", "--config", "c.yaml")


UNREADABLE = (
    "y.gguf cannot be converted" if find_spec("gguf") else "reading y.gguf needs the package"
)
FLAGS: dict[tuple[object, ...], str] = {
    ("--config", "none.yaml"): "no config file none.yaml",
    ("--config", "a"): "no config file a",
    ("--architecture", "isea"): "isea",
    ("--architecture", "isae", "--arip_wight", 1): "arip_wight",
    ("--architecture", "isae", "--k", "three"): "the command line",
    ("--architecture", "isae", "--k"): "the command line",
    ("--architecture", "isae", "--activation", "relu"): "relu",
    ("--architecture", "isae", "--arip_weight", -1): "arip_weight must be a number >= 0",
    ("--architecture", "isae", "--model_name", "gguf:none.gguf"): "no GGUF file none.gguf",
    ("--architecture", "isae", "--model_name", "gguf:no_package"): "'no_package' is not installed",
    ("--architecture", "isae", "--model_name", "gguf:x.gguf"): "x.gguf is not a GGUF file (0 bytes",
    ("--architecture", "isae", "--model_name", "gguf:y.gguf"): UNREADABLE,
    ("--architecture", "isae", "--dataset_path", "package:novels"): "got 'novels'",
}


@pytest.mark.parametrize("flags", FLAGS, ids=lambda some: " ".join(map(str, some)))
def test_training_flags(flags, tiny_model, place, said):
    model, text = tiny_model
    bytes_of(place, "x.gguf", b"")
    bytes_of(place, "y.gguf", b"GGUF" + b"\1" * 99)
    needed = () if flags[0] == "--config" else (
        "--dataset_path", text, "--streaming", "false", "--model_name", model, "--d_in", D_IN,
        "--d_sae", D_SAE, "--hook_name", "model.layers.0", "--training_tokens", 9000,
        "--n_batches_in_buffer", 64, "--model_class_name", "AutoModelForCausalLM",
    )  # fmt: skip
    k = () if flags[0] == "--config" or "--k" in flags or "isea" in flags else ("--k", K)
    assert FLAGS[flags] in said("train", *needed, *flags, *k)


needs_bench = pytest.mark.skipif(find_spec("sae_bench") is None, reason="no SAEBench: make bench")


def for_model(place: Path, model: Path) -> None:
    """Let `a` and `b` name a hook of a model."""
    for name in "ab":
        data = json.loads((place / name / CFG).read_text())
        data["metadata"] |= {
            "hook_name": "model.layers.0",
            "model_name": str(model),
            "model_class_name": "AutoModelForCausalLM",
            "prepend_bos": True,
            "context_size": 16,
        }
        (place / name / CFG).write_text(json.dumps(data))


@pytest.fixture
def benched(tiny_model, place):
    for_model(place, tiny_model[0])
    return place


STORIES = {"story1": "a b", "story2": "c d", "subject_title": "s"}
BENCH: dict[str, tuple[tuple[object, ...], bytes, str]] = {
    "eval unknown": (("--evals", "cores"), b"", "'cores' is not one of"),
    "codes unknown": (("--codes", "x"), b"", "'x' is not one of 'auto'"),
    "data unknown": (("--data", "x"), b"", "is not one of 'auto', 'hub', 'offline'"),
    "text nowhere": (("--evals", "core", "--text", "nope/nope"), b"", "'nope/nope' is not on this"),
    "train size 0": (("--evals", "core", "--text", "a", "--train-size", 0), b"", "train_size must"),
    "test size": (("--evals", "core", "--text", "a", "--test-size", -1), b"", "test_size must be"),
    "batches": (("--evals", "core", "--text", "a", "--core-batches", 0), b"", "core_batches must"),
    "device": (("--device", "gpu"), b"", "device 'gpu'"),
    "out a file": (
        ("--out", "x.safetensors"),
        b"",
        "--out x.safetensors is, or lies below, a file",
    ),
    "seed": (("--evals", "core", "--text", "a", "--seed", -2), b"", "seed must be between 0 and"),
    "stories missing": (("--stories", "none.json"), b"", "no file of stories none.json"),
    "stories ending": (("--stories", "bad.txt"), b"x", "must be .json, .jsonl or .csv"),
    "stories no JSON": (("--stories", "bad.json"), b"{", "bad.json cannot be read"),
    "stories a number": (("--stories", "bad.json"), b"7", "bad.json cannot be read"),
    "stories empty": (("--stories", "bad.json"), b"[]", "bad.json: the pairs have no column"),
    "stories one": (
        ("--stories", "bad.json"),
        json.dumps([STORIES]).encode(),
        "independence needs two",
    ),
    "stories without": (("--stories", "bad.csv"), b"story1,subject\na,b\n", "no column story2"),
    "stories blank": (
        ("--stories", "bad.json"),
        json.dumps([STORIES, {**STORIES, "story2": " "}]).encode(),
        "pair 2 has an empty story",
    ),
    "stories not UTF-8": (("--stories", "bad.jsonl"), b"\xff\xfe", "bad.jsonl cannot be read"),
}


@needs_bench
@pytest.mark.parametrize("case", BENCH)
def test_bench(case, benched, said):
    arguments, data, words = BENCH[case]
    if arguments[0] == "--stories":
        bytes_of(benched, str(arguments[1]), data) if data else None
        arguments = ("--evals", "ce_bench", *arguments)
    assert words in said("bench", "a", *arguments)


@needs_bench
def test_a_damaged_result_under_resume_is_named(benched, monkeypatch, capsys, said):
    from sae_lens_isae import bench

    stories = json.dumps([STORIES, {**STORIES, "story2": "e f"}])
    bytes_of(benched, "s.json", stories.encode())
    monkeypatch.chdir(benched)
    bench("a", ["ce_bench"], stories="s.json")
    (result,) = benched.rglob("*_eval_results.json")
    for damaged in ("", "[]", '{"sae_cfg_dict": 3}', result.read_text()[:200]):
        result.write_text(damaged)
        sentence = said("bench", "a", "--evals", "ce_bench", "--stories", "s.json", "--resume")
        assert f"{result.name} is damaged" in sentence
        assert "--resume" in sentence


@pytest.mark.parametrize("damage", [b"[]", b"", b"{", b'[{"x": 1}]'])
def test_a_damaged_part_of_a_study_is_named(damage, place, said, monkeypatch):
    monkeypatch.chdir(place)
    quick = ("--gd-samples", 2, "--gd-starts", 1, "--noise-samples", 2)
    run_isae("recode", "a", *DATA, "--samples", 20, *quick)
    (part,) = place.rglob("agreement.json")
    part.write_bytes(damage)
    sentence = said("recode", "a", *DATA, "--samples", 20, *quick)
    assert "agreement.json is damaged" in sentence
    assert "delete it" in sentence


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("x"), OSError("odd"), TypeError()])
def test_a_bug_keeps_its_traceback(bug, place, monkeypatch):
    """Only what a user can mend is one sentence."""

    def broken(*_, **__):
        raise bug

    monkeypatch.setattr(AuditReport, "__init__", broken)
    monkeypatch.chdir(place)
    with pytest.raises(type(bug)) as raised:
        main(["audit", "a", "--activations", "x.safetensors"])
    assert raised.value is bug
    assert not (place / "audit_report").exists()


def test_a_model_of_another_width_is_named(tiny_model, place, said):
    make_sae(isae_config("AbsTopK", d_in=D_IN + 1)).save_inference_model(place / "a")
    for_model(place, tiny_model[0])
    sentence = said("audit", "a", "--text", tiny_model[1], "--samples", 20)
    assert f"has d_in {D_IN + 1}, the model has {D_IN} there" in sentence


def test_there_are_many():
    n = sum(map(len, (CHECKPOINTS, OPTIONS, PROMPTS, YAML, FLAGS, BENCH))) + 2 * len(ACTIVATIONS)
    assert n >= 150
