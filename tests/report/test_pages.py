"""Pages and terminal tables say what must not be missed."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae


@pytest.fixture
def report():
    small, large = stock_sae("topk"), stock_sae("standard", seed=1)
    with torch.no_grad():
        small.W_dec[3] = 0
        small.b_enc[5] = -1e6
    larger = type(large)(type(large.cfg)(d_in=D_IN, d_sae=60))
    saes = {"small": small, "same": small, "larger": larger}
    with pytest.warns(UserWarning, match="no partner"):
        return pairwise_identifiability(saes, torch.randn(200, D_IN), n_oracle_samples=50)


def test_nothing_is_dropped_silently(report):
    notes = " ".join(report.notes())
    assert "small and same are the same SAE" in notes
    assert "21 latents of the larger have no partner" in notes
    assert "small: 1 latents have an all-zero atom" in notes
    assert "of 40 latents never fire" in notes


def test_means_over_pairs_are_the_last_rows(report):
    saes, pairs, *_ = report.tables()
    rows = pairs.rows
    assert len(rows) == 3 * 2 + 2
    assert all(len(row) == len(pairs.headers) for row in rows)
    mean = sum(p.dcs for p in report.pairs) / 3
    assert rows[-2][:3] == ["mean", "SAE", f"{mean:.4f}"]
    assert len(saes.rows) == 3


def test_page_shows_every_pair(report, tmp_path):
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for pair in report.pairs:
        assert f"<td>{pair.a} | {pair.b}</td>" in page
    assert "have no partner" in page
