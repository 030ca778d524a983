"""The README explains each number with the words of the reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_lens_isae.report.glossary import AUDIT, BENCH, PAIRWISE, RECODE

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "line"), [*PAIRWISE.items(), *AUDIT.items(), *RECODE.items(), *BENCH.items()]
)
def test_every_number_is_explained(name, line):
    escaped = line.replace("|", "\\|")
    assert f"| {name} | {escaped} |" in README
