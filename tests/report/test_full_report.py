"""`isae report`: one command from a recipe to pages, which goes on where it was stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
import yaml

from sae_lens_isae.files import file_digest
from tests.conftest import D_IN, D_SAE, K, complaint, isae

PAGES = ("index.html", "pairwise/pairwise.html", "audit/audit.html", "recode/recode.html")


@pytest.fixture(scope="module")
def recipe(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    settings = {
        "model_name": str(tiny_model[0]),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.1",
        "dataset_path": str(tiny_model[1]),
        "streaming": False,
        "context_size": 16,
        "training_tokens": 64 * 300,
        "train_batch_size_tokens": 64,
        "n_batches_in_buffer": 12,
        "store_batch_size_prompts": 8,
        "lr": 0.01,
        "seed": 0,
        "sae": {
            "architecture": "isae",
            "d_in": D_IN,
            "d_sae": D_SAE,
            "k": K,
            "arip_weight": 0.01,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def run(recipe):
    result = isae("report", "recipe.yaml", "--no-bench", cwd=recipe)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.mark.slow
def test_every_page_opens_and_leads_on(recipe, run, opened):
    state = json.loads((recipe / "report" / "report.json").read_text())
    assert list(state["parts"]) == ["train", "pairwise", "audit", "recode"]
    script = recipe / "report" / "plotly.min.js"
    index = recipe / "report" / "index.html"
    page = opened(index, script, viewport={"width": 390, "height": 800})
    assert page.locator(".answer").inner_text() == state["parts"]["pairwise"]["verdict"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    links = [link.get_attribute("href") for link in page.locator(".card a").all()]
    assert links == list(PAGES[1:])
    text = page.locator("body").inner_text()
    assert "saes/seed_0" in text
    assert "sae-lens-isae" in text
    for link, name in zip(PAGES[1:], ("pairwise", "audit", "recode"), strict=True):
        other = opened(recipe / "report" / link, script, viewport={"width": 1200, "height": 900})
        assert other.locator(".answer").inner_text() == state["parts"][name]["answer"]
        assert other.locator(".main-svg").count() > 0
        for fold in other.locator("details > summary").all():
            fold.click()
        assert other.locator("table.latents tbody tr").count() > 0
        other.locator("table.latents th button").nth(2).click()
        other.locator("table.latents tbody button").first.click()
        assert other.locator(".side mark").count() > 0
        assert "promotes" in other.locator(".side").inner_text()
        other.screenshot(path=recipe / f"{name}.png", full_page=True)
    assert script.stat().st_size > 1e6
    assert all((recipe / "report" / page).stat().st_size < 2e6 for page in PAGES)


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(recipe, run):
    out = recipe / "report"
    before = {path: file_digest(path) for path in out.rglob("*.safetensors")}
    pages = {page: (out / page).stat().st_mtime_ns for page in PAGES[1:]}
    state = json.loads((out / "report.json").read_text())
    again = isae("report", "recipe.yaml", "--no-bench", cwd=recipe)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {path: file_digest(path) for path in out.rglob("*.safetensors")} == before
    assert {page: (out / page).stat().st_mtime_ns for page in PAGES[1:]} == pages
    assert json.loads((out / "report.json").read_text()) == state
    # and what is not is
    (out / "audit" / "audit.html").unlink()
    assert isae("report", "recipe.yaml", "--no-bench", cwd=recipe).returncode == 0
    assert (out / "audit" / "audit.html").exists()
    assert (out / "pairwise" / "pairwise.html").stat().st_mtime_ns == pages[PAGES[1]]


@pytest.mark.slow
def test_training_that_was_stopped_goes_on(recipe, tmp_path):
    arguments = [sys.executable, "-m", "sae_lens_isae", "report", "recipe.yaml", "--no-bench"]
    arguments += ["--recode", "none", "--training_tokens", "320000", "--out", str(tmp_path / "out")]
    first = subprocess.Popen(
        arguments, cwd=recipe, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in first.stderr:
        if "of 320,000 tokens" in line and " 0%" not in line:
            break
    first.send_signal(signal.SIGTERM)
    rest = first.stderr.read()
    assert first.wait() == 1
    assert "training was stopped; the same command goes on" in rest
    assert list((tmp_path / "out" / "checkpoints").glob("*/*"))
    again = subprocess.run(arguments, cwd=recipe, capture_output=True, text=True, check=True)
    assert "index.html" in again.stdout
    # it goes on where it was, and not from the start
    begun = re.search(r"(\d+)%, [\d,]+ of 320,000 tokens", again.stderr)
    assert begun is not None
    assert int(begun[1]) > 0
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_another_recipe_wants_another_folder(recipe, run, monkeypatch, capsys):
    other = ("report", "recipe.yaml", "--no-bench", "--lr", "0.001")
    said = complaint(other, recipe, monkeypatch, capsys)
    assert "holds the report of another recipe" in said


@pytest.mark.slow
def test_the_pages_are_an_artifact(recipe, run):
    result = isae(
        "report", "recipe.yaml", "--no-bench", "--wandb", "mine", cwd=recipe, WANDB_MODE="offline"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "logged isae-report-" in result.stdout
    assert list((recipe / "wandb").glob("offline-run-*"))


def test_a_single_seed_is_no_comparison(recipe, monkeypatch, capsys):
    said = complaint(("report", "recipe.yaml", "--seeds", "1"), recipe, monkeypatch, capsys)
    assert "a report compares two or more seeds" in said
