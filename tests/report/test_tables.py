"""Terminal tables keep their numbers on narrow terminals."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.report.tables import Table, print_table
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae


def printed(width, *table):
    console = Console(width=width, file=io.StringIO())
    print_table(console, Table(*table))
    return console.file.getvalue()


def test_long_names_give_way_and_numbers_do_not():
    rows = [["a/very/long/folder/name/" * 10, "0.1234", "0.5678"]]
    text = printed(60, "t", ["pair", "DCS", "IoU"], rows)
    assert "0.1234" in text
    assert "0.5678" in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_no_number_is_lost_at_any_width(width):
    """Percentages among them, of which a terminal of 80 columns showed the first digit."""
    saes = {f"runs/variant/seed_{i}": stock_sae("matching_pursuit", seed=i) for i in range(2)}
    report = pairwise_identifiability(saes, torch.randn(60, D_IN), n_oracle_samples=20)
    many = ["SAE", *(f"number {i}" for i in range(20))]
    wide = Table("Many", many, [["a", *(f"{i}.{i}%" for i in range(20))]])
    for title, headers, rows, _ in (*report.tables(), wide):
        words = printed(width, title, headers, rows).replace(",", " ").split()
        for row in rows:
            for cell in row[1:]:
                assert set(cell.split()) <= set(words), cell
        assert set(" ".join(headers[1:]).split()) <= set(words)


def test_names_with_brackets_are_text():
    assert "[red]a" in printed(80, "[bold]t", ["SAE", "x"], [["[red]a", "[1]"]])
    assert "[red]a" in printed(10, "[bold]t", ["SAE", "x"], [["[red]a", "[1]"]])
