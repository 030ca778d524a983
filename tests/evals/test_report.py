"""Tables and page of `isae bench`, from numbers that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_lens_isae.evals.report import BenchReport
from sae_lens_isae.evals.results import BenchResult, group_of
from sae_lens_isae.evals.tables import detail_tables, form_notes, groups, summary_table


def result(sae, kind, form="as_is", **metrics):
    path = Path(f"{kind}/{sae}.json")
    return BenchResult(sae=sae, eval=kind, form=form, path=path, metrics=metrics)


RESULTS = [
    result("topk/seed_0", "core", ce_loss_with_sae=3.0, l0=32.0),
    result("topk/seed_1", "core", ce_loss_with_sae=3.2, l0=32.0),
    result("isae/seed_0", "core", "non_negative", ce_loss_with_sae=2.5, l0=31.0),
    result(
        "topk/seed_0", "tpp", tpp_threshold_2_total_metric=0.1, tpp_threshold_20_total_metric=0.2
    ),
    result("isae/seed_0", "tpp", "non_negative", tpp_threshold_20_total_metric=0.4),
]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("topk/seed_0", "topk"),
        ("topk_seed12", "topk"),
        ("run/seed-3/layer_9", "run/layer_9"),
        ("seed_42", ""),
        ("gemma-scope-2b-pt-res/layer_12/width_16k", "gemma-scope-2b-pt-res/layer_12/width_16k"),
        ("birdseed_mix", "birdseed_mix"),
        ("topk/seed_0+as_is", "topk+as_is"),
    ],
)
def test_seeds_are_told_from_names(name, group):
    assert group_of(name) == group


def test_one_row_for_seeds_with_mean_and_deviation():
    table = summary_table(RESULTS)
    assert table.headers == ["SAE", "seeds", "CE loss", "L0", "TPP 20"]
    assert table.rows == [
        ["topk", "2", "3.100 ±0.141", "32.0 ±0.0", "0.200"],
        ["isae", "1", "2.500", "31.0", "0.400"],
    ]
    assert groups([result("seed_0", "core"), result("seed_1", "core")]) == {
        "all seeds": ["seed_0", "seed_1"]
    }


def test_every_number_of_latents_that_was_tried():
    (table,) = detail_tables(RESULTS)
    assert table.headers == ["SAE", "seeds", "2", "20"]
    assert table.rows == [["topk", "2", "0.100", "0.200"], ["isae", "1", "-", "0.400"]]
    (scores,) = detail_tables([result("a", "ce_bench", ce_total=1.5)])
    assert "1.5000" in scores.rows[0]


def test_page_says_which_form_an_eval_saw(tmp_path):
    assert form_notes(RESULTS) == [
        "core saw the non-negative form of isae/seed_0",
        "tpp saw the non-negative form of isae/seed_0",
    ]
    BenchReport(results=RESULTS, folder=Path()).to_html(tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    for text in ("3.100 ±0.141", "non-negative form of isae/seed_0", "TPP by number", "plotly"):
        assert text in page
