"""Options that make no sense, and malformed prompts, get one sentence."""

from __future__ import annotations

import pytest

from tests.cli.malformed.damage import bytes_of, for_model
from tests.conftest import D_SAE

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
