"""README and manual: figures, length, links, lines of Python, commands and their options."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from readme import RESULTS, chance, claims, table_lines
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

from isae_cli.app import app
from sae_lens_isae.losses import StepContext

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "REFERENCES.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMANDS = typer.main.get_group(app).commands


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_its_figures_are_those_of_the_result_files():
    for line in table_lines():
        assert line in README
    assert chance() in README
    said = " ".join(README.split())
    for claim in claims():
        assert claim in said


def test_its_speed_is_that_of_the_result_file():
    found = json.loads((RESULTS / "throughput_20m.json").read_text(encoding="utf-8"))
    (rate,) = found["pythia"]["tokens_per_second"]["isae_me"]
    said = " ".join(README.split())
    assert f"sees {round(rate, -3):,.0f} tokens a second" in said
    assert f"take {512e6 / rate / 60:.0f} minutes" in said


def test_its_links_work_where_it_is_shown():
    """On PyPI, too: nothing is relative, and what points into the repository is there."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith("https://") for link in links)
    for link in links:
        inside = re.search(r"sae-lens-isae/(?:blob/|tree/)?main/(.+)$", link)
        if inside:
            assert (ROOT / inside[1]).exists(), link


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes on two cores; the usual limit is for what hangs
@pytest.mark.real
def test_its_lines_of_python_run_as_they_stand(tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines, {"__name__": "readme"})
    assert (tmp_path / "pairwise_report" / "pairwise.html").exists()


def blocks(language: str) -> list[str]:
    """All blocks of code in one language."""
    return [
        block
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]


def test_what_its_python_imports_is_there():
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sae_lens"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_functions_it_names_are_there():
    for page in PAGES:
        for path in re.findall(r"`sae_lens_isae\.([\w.]+)\(", page.read_text("utf-8")):
            found = pkgutil.resolve_name(f"sae_lens_isae.{path}")
            assert callable(found), f"{page.name}: {path}"


def test_the_files_it_names_are_there():
    folders = (
        "architectures|losses|ops|inputs|solvers|identifiability|recoding|saebench|cebench|evals|"
        "report|benchmarks|configs|docs|tests"
    )
    for page in PAGES:
        for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", page.read_text("utf-8")):
            places = [ROOT / name, ROOT / "sae_lens_isae" / name]
            assert any(place.exists() for place in places), f"{page.name}: {name}"


def test_its_commands_have_the_options_it_gives_them():
    found = 0
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.search(r"\bisae (\w+) (.*)", line.partition("#")[0])
            # what these two do not know themselves is SAELens' flag
            if not command or command[1] in ("train", "cache"):
                continue
            options = {o for p in COMMANDS[command[1]].params for o in p.opts + p.secondary_opts}
            for option in re.findall(r"--[\w-]+", command[2]):
                found += 1
                assert option in options, line
    assert found >= 8


def test_its_loss_term_penalises_the_largest_cosine_of_each_support():
    (block,) = [block for block in blocks("python") if "class CoherenceLoss" in block]
    names: dict = {"__name__": __name__}
    exec(block, names)
    atoms = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    codes = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])

    @dataclass
    class Config(TopKTrainingSAEConfig, names["CoherenceConfig"]):
        @classmethod
        def architecture(cls):
            return "topk"

    cfg = Config(d_in=2, d_sae=3, k=2, coherence_weight=0.5)
    term = names["CoherenceLoss"].from_config(cfg)
    sae = TopKTrainingSAE(cfg)
    x = torch.zeros(2, 2)
    loss = term(StepContext(sae, x, codes, codes, x, atoms))
    torch.testing.assert_close(loss, torch.tensor(0.5 * (0.6 + 0.8) / 2))
