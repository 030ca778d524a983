"""The command lines, ours and SAELens', each in a process of its own."""

from __future__ import annotations

import json
import os
import re

import pandas as pd
import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from isae_cli.app import main
from sae_lens_isae import ISAEMESAE
from tests.conftest import D_IN, D_SAE, K, complaint, isae, isae_config, make_sae, run_python

RUNNER = {
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "model.layers.0",
    "context_size": 16,
    "training_tokens": 1600,
    "train_batch_size_tokens": 64,
    "n_batches_in_buffer": 8,
    "store_batch_size_prompts": 4,
    "n_batches_for_norm_estimate": 2,
    "exclude_special_tokens": True,
    "streaming": False,
    "lr": 0.003,
    "checkpoint_path": None,
}


@pytest.fixture
def config(tiny_model, tmp_path):
    model, text = tiny_model
    settings = {
        **RUNNER,
        "model_name": str(model),
        "dataset_path": str(text),
        "output_path": str(tmp_path / "out"),
        "sae": {"architecture": "isae_me", "d_in": D_IN, "d_sae": D_SAE, "k": K},
        "logger": {"log_to_wandb": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
def test_sae_lens_own_command_line_trains_isae_me(tiny_model, tmp_path):
    code = """
import runpy, sae_lens_isae
runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__", alter_sys=True)
"""
    model, text = tiny_model
    flags = {
        **{k: v for k, v in RUNNER.items() if v is not None},
        "architecture": "isae_me",
        "model_name": model,
        "dataset_path": text,
        "output_path": tmp_path / "out",
        "checkpoint_path": tmp_path / "checkpoints",
        "n_checkpoints": 1,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "k": K,
        "encoder_steps": 3,
        "step_matrix": "tied",
        "normalize_activations": "expected_average_only_in",
        "log_to_wandb": True,
        "wandb_log_frequency": 5,
        "eval_every_n_wandb_logs": 2,
    }
    os.environ["WANDB_MODE"] = "offline"
    try:
        run_python(code, *(part for k, v in flags.items() for part in (f"--{k}", v)), cwd=tmp_path)
    finally:
        del os.environ["WANDB_MODE"]
    sae = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(sae, ISAEMESAE)
    assert (sae.cfg.encoder_steps, sae.cfg.step_matrix, sae.cfg.k) == (3, "tied", K)
    assert sae.cfg.normalize_activations == "none"
    assert len(list((tmp_path / "checkpoints").glob("*/*/sae_weights.safetensors"))) == 1


def test_train_two_seeds_then_pairwise(config, tmp_path):
    trained = isae("train", "--config", config, "--seeds", 2, "--eval-batches", 1, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "CE-loss score" in trained.stdout
    out = tmp_path / "out"
    saes = [SAE.load_from_disk(out / f"seed_{seed}") for seed in (42, 43)]
    assert not torch.allclose(saes[0].W_dec, saes[1].W_dec)
    activations = load_file(out / "activations.safetensors")["activations"]
    assert activations.shape == (4096, D_IN)

    # the command that training suggests
    command = trained.stdout.split("next: isae ")[1].split("\n")[0].split()
    compared = isae(*command, cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr[-3000:]
    assert "DCS" in compared.stdout
    assert "seed_42 | seed_43" in compared.stdout
    report = json.loads((tmp_path / "pairwise_report" / "pairwise.json").read_text())
    assert report["n_samples"] == 4096

    # without activations the model runs that the checkpoint names
    audited = isae("audit", out / "seed_42", "--samples", 100, "--out", "a", cwd=tmp_path)
    assert audited.returncode == 0, audited.stderr[-3000:]
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert "model.layers.0" in found["saes"][0]["activations"]
    assert found["saes"][0]["n_samples"] == 100
    # special tokens are left out as they were in training, and text is not random noise
    assert found["saes"][0]["error"]["median"] < 1


def test_flags_win_over_the_file_and_the_seed_decides(config, tmp_path):
    def weights(name, *flags):
        out = tmp_path / name
        arguments = [
            "train", "--config", config, "--output_path", out, "--training_tokens", 320,
            "--eval-batches", 0, "--keep-activations", 0, *flags,
        ]  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        assert stop.value.code == 0
        assert not (out / "activations.safetensors").exists()
        return load_file(out / "sae_weights.safetensors")

    first, again = weights("a", "--seed", 7, "-k", 2), weights("b", "--seed", 7, "-k", 2)
    other = weights("c", "--seed", 8, "-k", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_dec"], other["W_dec"])
    assert json.loads((tmp_path / "a" / "cfg.json").read_text())["k"] == 2


@pytest.mark.slow
def test_a_cache_is_written_and_trained_from(config, tmp_path):
    out = tmp_path / "activations"
    made = isae("cache", "--config", config, "--out", out, cwd=tmp_path)
    assert made.returncode == 0, made.stderr[-3000:]
    assert re.search(r"wrote \S+: [\d,]+ activations in 1 files, 0 MB", made.stdout)
    (command,) = re.findall(r"isae (train .*)", made.stdout)
    trained = isae(
        *command.split(), "--seeds", 2, "--vary", "data", "--from-disk", "--eval-batches", 1,
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "SAELens run_evals" in trained.stdout
    first, second = (
        SAE.load_from_disk(tmp_path / "out" / f"seed_{seed}").cfg.metadata for seed in (42, 43)
    )
    assert (first.seed, first.data_seed, first.seeds_vary) == (42, 42, "data")
    assert (second.seed, second.data_seed) == (42, 43)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache"], "name a folder (--out) and a config"),
        (["cache", "--config", "CONFIG"], "name a folder (--out) and a config"),
        (["cache", "--config", "CONFIG", "--out", "CONFIG"], "is, or lies below, a file"),
        (["cache", "--config", "CONFIG", "--out", "x", "--lrr", "1"], "did you mean --lr"),
        (["cache", "--config", "CONFIG", "--out", "x", "--stored-as", "int8"], "int8"),
        (["train", "--config", "CONFIG", "--activations", "none"], "make a cache with `isae cache"),
        (["train", "--config", "CONFIG", "--vary", "seeds"], "'seeds' is not one of"),
        (["train", "--config", "CONFIG", "--parallel", "both"], "'both' is not one of"),
        (
            ["train", "--config", "CONFIG", "--resume_from_checkpoint", "latest"],
            "looks for checkpoints in checkpoint_path, which is empty",
        ),
    ],
)
def test_what_is_wrong_with_a_cache_or_seeds(
    config, tmp_path, arguments, message, monkeypatch, capsys
):
    given = [argument.replace("CONFIG", str(config)) for argument in arguments]
    assert message in complaint(given, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lrr": 1}, "unknown field lrr"),
        ({"sae": {"architecture": "isae", "d_inn": 3}}, "unknown field sae.d_inn"),
        ({"sae": {"architecture": "isea"}}, "unknown architecture 'isea'"),
        ({"sae": {"d_in": 3}}, "`architecture`"),
        ({"sae": {"architecture": "isae", "d_in": 8, "d_sae": 16, "k": 0}}, "k must be"),
        ({"model_name": "gguf:no_such_package"}, "make real"),
        ({"dataset_path": "package:novels"}, "got 'novels'"),
    ],
)
def test_bad_config_is_one_sentence(config, tmp_path, change, message, monkeypatch, capsys):
    settings = {**yaml.safe_load(config.read_text()), **change}
    config.write_text(yaml.safe_dump(settings))
    assert message in complaint(("train", "--config", config), tmp_path, monkeypatch, capsys)


def test_bad_pairwise_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    make_sae(isae_config("iSAE")).save_inference_model(tmp_path / "a")
    make_sae(isae_config("iSAE", d_in=D_IN + 1)).save_inference_model(tmp_path / "b")
    save_file({"x": torch.randn(4, D_IN)}, tmp_path / "x.safetensors")
    for names, message in {("a",): "two or more", ("a", "b"): "different d_in"}.items():
        arguments = ("pairwise", *names, "--activations", "x.safetensors")
        assert message in complaint(arguments, tmp_path, monkeypatch, capsys)


def test_bad_measuring_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    make_sae(isae_config("iSAE")).save_inference_model(tmp_path / "a")
    save_file({"x": torch.full((4, D_IN), float("nan"))}, tmp_path / "nan.safetensors")
    save_file({"x": torch.zeros(0, D_IN)}, tmp_path / "empty.safetensors")
    for arguments, message in {
        ("pairwise", "a", "a", "--activations", "nan.safetensors"): "NaN or Inf",
        ("audit", "a", "--activations", "empty.safetensors"): "no activations",
        ("audit", "a", "--activations", "none.npy"): "no activations file",
        ("audit", "a"): "--activations",
        ("audit", "a", "--samples", "0"): "samples must be >= 1",
        ("pairwise", "a", "a", "--table", "xlsx", "--activations", "x"): "'parquet', 'csv'",
        ("pairwise", "a", "a", "--oracle-k", str(D_SAE + 1), "--activations",
         f"synthetic:iid,num_features=9,hidden_dim={D_IN},k=2"): "oracle_k",
    }.items():  # fmt: skip
        assert message in complaint(arguments, tmp_path, monkeypatch, capsys), arguments
        assert not list(tmp_path.glob("*_report"))


@pytest.mark.slow
def test_pairwise_and_audit_write_their_reports(tmp_path):
    for seed, name in enumerate(("a", "b")):
        make_sae(isae_config("iSAE-ME"), seed).save_inference_model(tmp_path / name)
    data = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
    for arguments in (
        ("pairwise", "a", "b", "a", "--activations", data, "--samples", 300, "--table", "csv"),
        ("audit", "a", "b", "--activations", data, "--samples", 300),
    ):
        result = isae(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
        printed = " ".join(result.stdout.split())
        if arguments[0] == "pairwise":
            assert "note: a and a (2) are the same SAE" in printed
        else:
            assert "A3 small error" in printed
            assert "Theorem 3.6" in printed
    pairwise = tmp_path / "pairwise_report"
    report = json.loads((pairwise / "pairwise.json").read_text())
    assert report["schema"] == "sae-lens-isae/pairwise/3"
    assert [p["same_sae"] for p in report["pairs"]] == [False, True, False]
    table = pd.read_csv(pairwise / "latents.csv")
    columns = json.loads((pairwise / "latents.json").read_text())
    assert table.columns.tolist() == columns["latents"]["columns"]
    assert len(table) == len(columns["latents"]["data"]) == 3 * D_SAE
    assert len(pd.read_csv(pairwise / "partners.csv")) == 3 * 2 * D_SAE
    for page in (pairwise / "pairwise.html", tmp_path / "audit_report" / "audit.html"):
        text = page.read_text()
        assert text.count("Plotly.newPlot") >= (4 if "pairwise" in page.name else 1)
        # nothing is fetched: no script, style sheet or picture has an address
        assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", text)
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.slow
def test_help_teaches(tmp_path):
    assert "pairwise" in isae("--help", cwd=tmp_path).stdout
    result = isae("train", "--architecture", "isae_me", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--seeds" in result.stdout
    assert "--step_matrix" in result.stdout
