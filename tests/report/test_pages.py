"""Pages and terminal tables say what must not be missed."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.report.pairwise_page import write_pairwise_page
from sae_lens_isae.report.tables import PAIR_HEADERS, pair_notes, pair_rows, sae_rows
from tests.conftest import D_IN
from tests.identifiability.test_linear_model import stock_sae


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
    notes = " ".join(pair_notes(report))
    assert "small and same are the same SAE" in notes
    assert "21 latents of the larger have no partner" in notes
    assert "small: 1 latents have an all-zero atom" in notes
    assert "of 40 latents never fire" in notes


def test_means_over_pairs_are_the_last_rows(report):
    rows = pair_rows(report)
    assert len(rows) == 3 * 2 + 2
    assert all(len(row) == len(PAIR_HEADERS) for row in rows)
    mean = sum(p.dcs for p in report.pairs) / 3
    assert rows[-2][:3] == ["mean", "SAE", f"{mean:.4f}"]
    assert len(sae_rows(report)) == 3


def test_page_shows_every_pair(report, tmp_path):
    write_pairwise_page(tmp_path / "page.html", report)
    page = (tmp_path / "page.html").read_text()
    for pair in report.pairs:
        assert f"<td>{pair.a} | {pair.b}</td>" in page
    assert "have no partner" in page
