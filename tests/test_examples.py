"""Every example runs as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NEED_MODEL = {"language_model.py"}
SLOW = {path.name for path in EXAMPLES.glob("*.py")} - {"load_in_stock_sae_lens.py"}
"""The one that is left runs two of them."""


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


def check_loading(cwd):
    run("train.py", cwd=cwd)
    printed = run("load_in_stock_sae_lens.py", cwd=cwd)
    assert "AbsTopKSAE: [3, 3, 3, 3]" in printed
    assert "'isae'" in printed
    assert "import sae_lens_isae" not in (EXAMPLES / "load_in_stock_sae_lens.py").read_text()


def check_training(cwd):
    assert "exported to output/example" in run("train.py", cwd=cwd)


def check_seeds(cwd):
    dcs = float(run("compare_seeds.py", cwd=cwd).split("DCS ")[1].split(" ")[0])
    assert 0.9 < dcs <= 1


def check_two_codes(cwd):
    printed = run("same_dictionary_two_codes.py", cwd=cwd)
    assert "DCS 1.000" in printed
    assert float(printed.split("IoU ")[1].split(",")[0]) < 0.5
    assert "Plotly.newPlot" in (cwd / "same_dictionary_two_codes.html").read_text()


def check_loss_term(cwd):
    lines = run("add_a_loss_term.py", cwd=cwd).strip().splitlines()
    assert all("TopKSAE" in line for line in lines)
    without, with_term = (float(line.rpartition(" ")[2]) for line in lines)
    assert with_term < without


def check_language_model(cwd):
    run("language_model.py", "9000", cwd=cwd)
    assert (cwd / "output/language_model/sae_weights.safetensors").exists()


CHECKS = {
    "train.py": check_training,
    "load_in_stock_sae_lens.py": check_loading,
    "compare_seeds.py": check_seeds,
    "same_dictionary_two_codes.py": check_two_codes,
    "add_a_loss_term.py": check_loss_term,
    "language_model.py": check_language_model,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            path.name,
            marks=[
                *([pytest.mark.real] if path.name in NEED_MODEL else ()),
                *([pytest.mark.slow] if path.name in SLOW else ()),
            ],
        )
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
def test_example(name, tmp_path):
    CHECKS[name](tmp_path)
