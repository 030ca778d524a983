"""Malformed options and stories of `isae bench` get one sentence."""

from __future__ import annotations

import json

import pytest

from tests.cli.malformed.damage import STORIES, bytes_of
from tests.saebench.conftest import needs_saebench

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


@needs_saebench
@pytest.mark.parametrize("case", BENCH)
def test_bench(case, benched, said):
    arguments, data, words = BENCH[case]
    if arguments[0] == "--stories":
        bytes_of(benched, str(arguments[1]), data) if data else None
        arguments = ("--evals", "ce_bench", *arguments)
    assert words in said("bench", "a", *arguments)


@needs_saebench
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
