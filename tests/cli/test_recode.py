"""`isae recode` as a user calls it, on folders and on a hub cache laid out by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name
from safetensors.torch import save_file

from tests.conftest import D_IN, complaint, isae, isae_config, make_sae

RELEASE, SAE_ID = "gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical"
D_IN_GEMMA, D_SAE_GEMMA = 2304, 16_384
QUICK = ["--gd-samples", "4", "--gd-starts", "1", "--noise-samples", "5"]


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Two SAEs of the tiny model, and prompts that it may or may not answer."""
    for name, hook in (("a", "model.layers.0"), ("b", "model.layers.1")):
        sae = make_sae(isae_config("iSAE"))
        sae.cfg.metadata.model_name = str(tiny_model[0])
        sae.cfg.metadata.model_class_name = "AutoModelForCausalLM"
        sae.cfg.metadata.hook_name = hook
        sae.save_inference_model(tmp_path / name)
    vocabulary = json.loads((tiny_model[0] / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    rows = [f"{a} {b},{answer}" for a in words[:2] for b in words[4:6] for answer in words]
    (tmp_path / "all.csv").write_text("\n".join(["prompt,answer", *rows]))
    wrong = [f"{word} {word},nothinglikeit" for word in words[:20]]
    (tmp_path / "wrong.csv").write_text("\n".join(["prompt,answer", *wrong]))
    return tmp_path


@pytest.mark.slow
def test_prompts_in_the_running_model(folder):
    # every answer is tried on every prompt, so that each is answered correctly once
    result = isae("recode", "a", "b", "--prompts", "all.csv", "--table", "csv", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Without the 5 largest features" in result.stdout
    out = folder / "recode_report"
    report = json.loads((out / "recode.json").read_text())
    # but where the model says a special token
    assert 1 < report["n_correct"] <= 4
    assert [sae["name"] for sae in report["saes"]] == ["a", "b"]
    for sae in report["saes"]:
        sizes = {row["method"]: row["n_prompts"] for row in sae["ablation"]}
        assert sizes["encoder"] == sizes["OMP"] == report["n_correct"]
        assert {row["features"] for row in sae["ablation"]} == {1, 3, 5, 10, 20}
    assert set(pd.read_csv(out / "latents.csv")["sae"]) == {"a", "b"}
    assert (out / "recode.html").stat().st_size > 10_000
    again = isae("recode", "a", "b", "--prompts", "all.csv", "--table", "csv", *QUICK, cwd=folder)
    assert again.returncode == 0
    second = json.loads((out / "recode.json").read_text())
    assert all(not sae["seconds"] for sae in second["saes"])
    for sae in (*report["saes"], *second["saes"]):
        del sae["seconds"]
    assert second == report


@pytest.mark.slow
def test_no_correct_prompt_leaves_the_ablation_out(folder):
    result = isae("recode", "a", "--prompts", "wrong.csv", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "answers none of the 20 prompts correctly" in " ".join(result.stdout.split())
    assert "Without the 5 largest" not in result.stdout


def test_bad_input_is_one_sentence(folder, tiny_model, monkeypatch, capsys):
    sae = make_sae(isae_config("iSAE"))
    sae.cfg.metadata.model_name = str(tiny_model[0])
    sae.cfg.metadata.model_class_name = "AutoModelForCausalLM"
    sae.cfg.metadata.hook_name = "model.layers.9"
    sae.save_inference_model(folder / "deep")
    sae.cfg.metadata.model_name = None
    sae.save_inference_model(folder / "unknown")
    wide = make_sae(isae_config("iSAE", d_in=D_IN + 1))
    wide.cfg.metadata.model_name = str(tiny_model[0])
    wide.cfg.metadata.model_class_name = "AutoModelForCausalLM"
    wide.cfg.metadata.hook_name = "model.layers.0"
    wide.save_inference_model(folder / "wide")
    save_file({"x": torch.full((4, D_IN), torch.nan)}, folder / "nan.safetensors")
    for arguments, message in {
        (): "no SAE was named",
        ("--release", "no-such-release", "--sae-id", "x"): "no-such-release not found",
        ("--release", RELEASE, "--sae-id", "layer_99"): "ID layer_99 not found in release",
        ("--release", RELEASE): "--release and --sae-id belong together",
        ("a", "--prompts", "none.csv"): "there is no file of prompts none.csv",
        ("a", "--prompts", "all.csv", "--activations", "x.npy"): "not both",
        ("a", "--activations", "nan.safetensors"): "NaN or Inf",
        ("a", "--samples", "0"): "samples must be >= 1",
        ("a", "--gd-samples", "0"): "gd_samples must be > 0",
        ("a", "--table", "xlsx"): "'parquet', 'csv'",
        ("a", "--model", str(folder / "nowhere"), "--prompts", "all.csv"): "cannot be loaded",
        ("unknown", "--prompts", "all.csv"): "(--model)",
        ("deep", "--prompts", "all.csv"): "model.layers.9",
        ("wide", "--prompts", "all.csv"): "has d_in 17, the model has 16 there",
    }.items():
        said = complaint(("recode", *arguments), folder, monkeypatch, capsys)
        assert message in said, (arguments, said)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The cache of the hub as GemmaScope lies in it, with random weights of its size."""
    root = tmp_path_factory.mktemp("hub")
    repository, path = get_repo_id_and_folder_name(RELEASE, SAE_ID)
    cache = root / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    weights = cache / "snapshots" / commit / path
    weights.mkdir(parents=True)
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((D_SAE_GEMMA, D_IN_GEMMA), dtype=np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    np.savez(
        weights / "params.npz",
        W_dec=atoms.astype(np.float16),
        W_enc=atoms.T.astype(np.float16),
        b_enc=np.zeros(D_SAE_GEMMA, np.float32),
        b_dec=np.full(D_IN_GEMMA, 0.05, np.float32),
        threshold=np.full(D_SAE_GEMMA, 6.0, np.float32),
    )
    codes = np.zeros((12, D_SAE_GEMMA), np.float32)
    for row in codes:
        row[rng.choice(D_SAE_GEMMA, 20, replace=False)] = rng.uniform(11, 15, 20)
    np.save(root / "x.npy", codes @ atoms + 0.05)
    yield root
    # a third of a gigabyte
    (weights / "params.npz").unlink()


@pytest.mark.slow
def test_gemma_scope_from_the_hubs_cache(hub, tmp_path):
    result = isae(
        *("recode", "--release", RELEASE, "--sae-id", SAE_ID, "--activations", hub / "x.npy"),
        *("--gd-samples", "1", "--gd-starts", "1", "--noise-samples", "2"),
        cwd=tmp_path,
        HF_HUB_CACHE=str(hub),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (sae,) = json.loads((tmp_path / "recode_report" / "recode.json").read_text())["saes"]
    assert (sae["architecture"], sae["d_sae"]) == ("jumprelu", D_SAE_GEMMA)
    assert sae["hook_name"] == "blocks.12.hook_resid_post"
    omp = next(row for row in sae["agreement"] if row["method"] == "OMP")
    assert omp["n_samples"] == 12
    # far above the interference of the others, so that any algorithm finds them
    assert omp["jaccard"] > 0.8


@pytest.mark.slow
def test_offline_without_the_sae_says_what_to_download(tmp_path):
    result = isae(
        *("recode", "--release", RELEASE, "--sae-id", SAE_ID, "--activations", "x.npy"),
        cwd=tmp_path,
        HF_HUB_CACHE=str(tmp_path),
    )
    assert result.returncode == 1
    repository, path = get_repo_id_and_folder_name(RELEASE, SAE_ID)
    assert f"hf download {repository} --include '{path}/*'" in result.stderr
    assert "Traceback" not in result.stderr
