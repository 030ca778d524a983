"""Every report prints, shows in a notebook, plots, and writes a page and files."""

from __future__ import annotations

import re

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from sae_lens_isae import RecodeSettings, audit, pairwise_identifiability, recode
from sae_lens_isae.demo_report import DemoReport
from sae_lens_isae.evals.report import BenchReport
from sae_lens_isae.evals.results import BenchResult
from sae_lens_isae.report.page import Section, write_page
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table
from tests.conftest import D_IN, D_SAE, Activations, isae_config, make_sae

QUICK = RecodeSettings(
    n_components=5, noise_levels=(0.5,), noise_samples=20, decoder_k=(2,), gd_samples=10
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Report]:
    saes = {name: make_sae(isae_config("iSAE"), seed) for seed, name in enumerate(("a", "<b>"))}
    x = torch.cat([next(Activations(start=i)) for i in range(2)])
    pairwise = pairwise_identifiability(saes, x, n_oracle_samples=20, progress=False)
    folder = tmp_path_factory.mktemp("bench")
    result = BenchResult(
        sae="<b>/seed_0",
        eval="tpp",
        form="non_negative",
        path=folder / "tpp" / "x.json",
        metrics={"tpp_threshold_20_total_metric": 0.25},
    )
    return {
        "pairwise": pairwise,
        "audit": audit(saes, x, progress=False),
        "recode": recode(saes, x, QUICK, progress=False),
        "bench": BenchReport(results=[result], folder=folder),
        "demo": DemoReport(
            heading="demo", setting=["small"], settings={}, variants={"<iSAE>": pairwise}
        ),
    }


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


KINDS = ["pairwise", "audit", "recode", "bench", "demo"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_prints_and_shows(kind, reports):
    report = reports[kind]
    summary = report.summary()
    assert len(summary) > 10
    printed = str(report)
    assert " ".join(summary.split()) in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 100
    assert repr(report) == f"<{type(report).__name__}: {summary}>"
    shown = report._repr_html_()
    assert shown.count("<table") == len(report.tables())
    assert "<b>" not in shown
    assert isinstance(report.plot(), go.Figure)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written(kind, reports, tmp_path):
    report = reports[kind]
    files = report.save(tmp_path / "a" / "new folder")
    assert all(file.stat().st_size > 0 for file in files)
    page = files[0].read_text()
    assert page.startswith("<!doctype html>")
    assert "Plotly.newPlot" in page
    # names that look like markup are text
    text = without_scripts(page)
    assert "&lt;" in text
    assert "<b>" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_its_page_opens(kind, reports, opened, tmp_path):
    reports[kind].to_html(tmp_path / "page.html")
    page = opened(tmp_path / "page.html", viewport={"width": 390, "height": 800})
    assert page.locator(".answer").inner_text() == " ".join(reports[kind].summary().split())
    assert page.locator(".main-svg").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "page.png")


def test_tables_of_latents_are_long_and_ids_are_integers(reports):
    pairwise, recoded = reports["pairwise"], reports["recode"]
    assert len(pairwise.latents) == 2 * D_SAE
    assert len(pairwise.partners) == 2 * D_SAE
    assert pd.api.types.is_integer_dtype(pairwise.partners["partner"])
    assert pd.api.types.is_integer_dtype(pairwise.latents["n_found"])
    assert recoded.picks.columns.tolist() == ["sae", "latent", "method", "picked"]
    assert set(recoded.latents["sae"]) == {"a", "<b>"}
    assert not recoded.picks.duplicated(["sae", "latent", "method"]).any()
    bench = reports["bench"].table
    assert bench.loc[0, "value"] == 0.25


def test_an_audit_is_had_by_name_and_by_place(reports):
    report = reports["audit"]
    assert [found.name for found in report] == ["a", "<b>"]
    assert report["a"] is report[0]
    assert len(report) == 2


def test_progress_is_silent_on_request(capsys):
    saes = [make_sae(isae_config("iSAE"), seed) for seed in range(3)]
    x = torch.randn(50, D_IN)
    pairwise_identifiability(saes, x, n_oracle_samples=10, progress=False)
    audit(saes, x, progress=False)
    recode(saes[0], x, QUICK, progress=False)
    assert capsys.readouterr().err == ""
    audit(saes, x)
    assert "Auditing" in capsys.readouterr().err


def test_text_of_a_page_is_escaped(tmp_path):
    table = Table("<i>t</i>", ["<h>"], [["<c>"]])
    parts = ["<p1>", ["<l>"], table]
    write_page(tmp_path / "p.html", "<t>", "<a>", [Section("<s>", parts)])
    text = without_scripts((tmp_path / "p.html").read_text())
    for raw in ("<a>", "<p1>", "<l>", "<i>t", "<h>", "<c>", "<t>", "<s>"):
        assert raw not in text
        assert raw.replace("<", "&lt;").replace(">", "&gt;") in text
