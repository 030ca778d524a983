"""What README says: its table, its length, its links, its lines of Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from readme import table_lines

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_its_figures_are_those_of_the_result_files():
    for line in table_lines():
        assert line in README


def test_its_links_work_where_it_is_shown():
    """On PyPI, too: nothing is relative, and what points into the repository is there."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith("https://") for link in links)
    for link in links:
        inside = re.search(r"sae-lens-isae/(?:blob/|tree/)?main/(.+)$", link)
        if inside:
            assert (ROOT / inside[1]).exists(), link


@pytest.mark.slow
@pytest.mark.real
def test_its_lines_of_python_run_as_they_stand(tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines, {"__name__": "readme"})
    assert (tmp_path / "pairwise_report" / "pairwise.html").exists()
