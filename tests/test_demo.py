"""The demo at a size of seconds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_isae.demo import SyntheticDemo, run_demo
from sae_lens_isae.identifiability import pairwise_identifiability
from sae_lens_isae.identifiability.table1 import TABLE1_HEADERS

TINY = SyntheticDemo(d_in=12, n_concepts=24, k=2, batch_size=64, n_steps=40)


def test_table_page_and_checkpoints(tmp_path):
    report = run_demo(tmp_path, n_seeds=2, settings=TINY)
    rows = report.rows
    assert [row.variant for row in rows] == ["TopK", "AbsTopK", "iSAE", "iSAE-ME"]
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == [r.to_dict() for r in rows]
    page = (tmp_path / "index.html").read_text()
    assert all(f"<th>{header}</th>" in page for header in TABLE1_HEADERS)
    assert all(f"<td>{row.dcs:.3f}</td>" in page for row in rows)
    assert "Plotly.newPlot" in page

    # the saved SAEs reproduce the table
    activations = load_file(tmp_path / "activations.safetensors")["activations"]
    for row in rows:
        saes = [SAE.load_from_disk(tmp_path / row.variant / f"seed_{seed}") for seed in (0, 1)]
        again = pairwise_identifiability(saes, activations).table1_row(row.variant).to_dict()
        for column, value in row.to_dict().items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
            assert again[column] == expected, column
        errors = [
            ((activations - sae(activations)).pow(2).sum(-1) / activations.pow(2).sum(-1)).mean()
            for sae in saes
        ]
        assert sum(errors).item() / 2 == pytest.approx(row.mse, rel=1e-4)


def test_one_seed_has_no_pairs(tmp_path):
    with pytest.raises(ValueError, match="seeds must be >= 2"):
        run_demo(tmp_path, n_seeds=1, settings=TINY)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the usual limit is for what hangs, and this takes minutes
def test_the_papers_order_comes_out(tmp_path, request):
    """Signs help the dictionary, the multistep encoder the codes (Nelson et al. 2026, Table 1)."""
    folder = request.config.getoption("--demo")
    if folder is None:
        run_demo(folder := tmp_path)
    rows = json.loads((folder / "table.json").read_text())["rows"]
    topk, abstopk, isae, isae_me = (SimpleNamespace(**row) for row in rows)
    assert topk.mse > 2 * abstopk.mse
    assert topk.dcs < 0.9
    assert min(abstopk.dcs, isae.dcs, isae_me.dcs) > 0.99
    assert isae_me.mse < 0.2 * min(abstopk.mse, isae.mse)
    assert isae_me.sae_iou > 0.99
