"""Pages in a real browser, without a network: the table of latents is sorted, filtered, searched,
opened and downloaded, on a screen and on a phone."""

from __future__ import annotations

import csv

import pytest
import torch

from sae_lens_isae import audit, pairwise_identifiability
from sae_lens_isae.identifiability.latents import TRUST
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.model_activations import from_model
from sae_lens_isae.inputs.token_text import TokenText
from sae_lens_isae.report.page import whole_page, write_script
from tests.conftest import D_IN, D_SAE, isae_config, make_sae

N = 96
HOSTILE = "<script>window.hurt = 1</script>"


@pytest.fixture(scope="module")
def saes():
    made = {name: make_sae(isae_config("iSAE"), seed) for seed, name in enumerate(("a", "<b>"))}
    with torch.no_grad():
        # the same dictionary in another order, with some noise on half of it
        order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
        made["<b>"].load_state_dict(made["a"].state_dict())
        noise = torch.randn(D_SAE // 2, D_IN, generator=torch.Generator().manual_seed(1))
        atoms = made["<b>"].W_dec.clone()
        atoms[: D_SAE // 2] += noise
        made["<b>"].W_dec.copy_(torch.nn.functional.normalize(atoms, dim=-1)[order])
        made["<b>"].W_enc.copy_(made["<b>"].W_enc[:, order])
    return made


@pytest.fixture(scope="module")
def report(saes):
    saes["a"].cfg.metadata.neuronpedia_id = "gpt2-small/9-mine"
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(2))
    strings = {i: f" w{i}" for i in range(N)} | {5: HOSTILE}
    text = TokenText(torch.arange(N).reshape(-1, 16), torch.arange(N), strings)
    source = ActivationSource(N, D_IN, "activations", lambda: iter([x]), lambda: text)
    return pairwise_identifiability(saes, source, n_oracle_samples=8, progress=False)


def rows(page):
    lines = page.locator("table.latents tbody tr:not(:has(.details))")
    return [line.locator("td").all_inner_texts() for line in lines.all()]


def test_latents_are_sorted_filtered_searched_and_opened(report, opened, tmp_path):
    report.save(tmp_path)
    page = opened(tmp_path / "pairwise.html", viewport={"width": 1280, "height": 900})
    assert report.verdict() in page.locator(".answer").inner_text()
    assert len(rows(page)) == 25
    page.get_by_role("button", name="next page").click()
    assert len(rows(page)) == D_SAE - 25
    latents = report.latents.query("sae == 'a'")

    page.get_by_role("button", name="cosine").click()
    shown = [float(row[5]) for row in rows(page)]
    assert shown == pytest.approx(latents.mean_cosine.nlargest(25).tolist(), abs=6e-4)
    page.get_by_role("button", name="cosine").click()
    shown = [float(row[5]) for row in rows(page)]
    assert shown == pytest.approx(latents.mean_cosine.nsmallest(25).tolist(), abs=6e-4)

    trusted = latents[latents.trust == "trusted"]
    assert 0 < len(trusted) < D_SAE
    page.get_by_label("show").select_option("trusted")
    assert f"{len(trusted)} latents" in page.locator(".controls").last.inner_text()
    assert f"{len(trusted)} trusted" in page.locator(".browser").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(int(row["latent"]) for row in table) == sorted(trusted.latent)
    assert {row["trust"] for row in table} == {"trusted"}

    page.get_by_label("show").select_option("all")
    latent = int(trusted.latent.iloc[0])
    page.get_by_label("search").fill(f"#{latent}")
    assert [row[0] for row in rows(page)] == [f"▸ {latent}"]
    page.get_by_role("button", name=f"▸ {latent}", exact=True).click()
    examples = report.contexts("a", latent)
    panels = page.locator(".side > div")
    assert panels.nth(0).locator("mark").all_text_contents() == examples.token.tolist()
    partner = report.partners.query("sae == 'a' and latent == @latent").iloc[0]
    assert f"<b>, latent {partner.partner}: cosine" in panels.nth(1).inner_text()
    links = [link.get_attribute("href") for link in panels.get_by_role("link").all()]
    assert links == [f"https://www.neuronpedia.org/gpt2-small/9-mine/{latent}"]
    page.screenshot(path=tmp_path / "screen.png")


def test_what_is_searched_is_the_tokens(report, opened, tmp_path):
    report.to_html(tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    page.get_by_label("search").fill("W7")
    found = rows(page)
    assert found
    wanted = [
        latent
        for latent in range(D_SAE)
        if report.contexts("a", latent).token.str.contains("w7").any()
    ]
    order = report.latents.query("sae == 'a'").set_index("latent").trust.map(TRUST.index)
    assert [int(row[0][2:]) for row in found] == sorted(wanted, key=lambda i: (order[i], i))[:25]
    # tokens are text, whatever they look like
    page.get_by_label("search").fill("window.hurt")
    assert rows(page)
    page.locator("table.latents tbody button").first.click()
    assert HOSTILE in page.locator(".side").inner_text()
    assert page.evaluate("window.hurt") is None


def test_a_phone_at_night(report, opened, tmp_path):
    report.to_html(tmp_path / "page.html")
    page = opened(
        tmp_path / "page.html", viewport={"width": 390, "height": 800}, color_scheme="dark"
    )
    # tables scroll by themselves, the page does not
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark, light = (
        page.evaluate("getComputedStyle(document.body)." + name)
        for name in ("backgroundColor", "color")
    )
    assert sum(map(int, dark[4:-1].split(", "))) < 150 < sum(map(int, light[4:-1].split(", ")))
    page.screenshot(path=tmp_path / "phone.png")


def test_without_tokens_samples_have_numbers(saes, opened, tmp_path):
    report = pairwise_identifiability(saes, torch.randn(50, D_IN), n_oracle_samples=0,
                                      chance=False, progress=False)  # fmt: skip
    report.to_html(tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    page.locator("table.latents tbody button").first.click()
    assert "sample " in page.locator(".side").inner_text()
    assert "come without tokens" in page.locator("body").inner_text()


def test_the_audit_has_its_answer_on_top(saes, opened, tmp_path):
    report = audit(saes, torch.randn(80, D_IN), progress=False)
    report.to_html(tmp_path / "audit.html")
    page = opened(tmp_path / "audit.html", viewport={"width": 390, "height": 800})
    assert page.locator(".answer").inner_text() == report.summary()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_page_that_lost_its_script_says_so(saes, opened, tmp_path):
    script = write_script(tmp_path)
    report = audit(saes, torch.randn(80, D_IN), progress=False)
    (tmp_path / "audit").mkdir()
    report.to_html(tmp_path / "audit" / "audit.html")
    assert (tmp_path / "audit" / "audit.html").stat().st_size < 1e6
    page = opened(tmp_path / "audit" / "audit.html", script)
    assert page.locator(".main-svg").count() > 0
    assert not page.locator("#no-plots").is_visible()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "page.html").write_text(whole_page(tmp_path / "audit" / "audit.html"))
    assert opened(tmp_path / "alone" / "page.html").locator(".main-svg").count() > 0


def test_latents_of_an_audit_and_what_they_promote(saes, tiny_model, opened, tmp_path):
    saes["a"].cfg.metadata.neuronpedia_id = "gpt2-small/9-mine"
    for sae in saes.values():
        sae.cfg.metadata.hook_name = "model.layers.1"
        sae.cfg.metadata.model_name = str(tiny_model[0])
        sae.cfg.metadata.model_class_name = "AutoModelForCausalLM"
        sae.cfg.metadata.dataset_path = str(tiny_model[1])
        sae.cfg.metadata.context_size = 16
        sae.cfg.metadata.prepend_bos = True
    source = from_model(saes["a"], 200)
    report = audit({"a": saes["a"]}, source, progress=False)
    report.to_html(tmp_path / "audit.html")
    page = opened(tmp_path / "audit.html")
    page.get_by_text("Latents", exact=True).click()
    page.get_by_role("button", name="cosine").click()
    shown = [float(row[3]) for row in rows(page)]
    nearest = report.shown.latents["a"]["nearest_cosine"]
    assert shown == pytest.approx(nearest.nlargest(25).tolist(), abs=6e-4)
    page.locator("table.latents tbody button").first.click()
    latent = int(page.locator("table.latents tbody button").first.inner_text()[2:])
    ((raised, lowered),) = report.shown.promoted["a"].of([latent])
    said = page.locator(".promoted").inner_text()
    assert said.splitlines() == [
        "promotes " + " · ".join(raised),
        "suppresses " + " · ".join(lowered),
    ]
    assert page.locator(".side mark").count() > 0
    link = page.locator(".side").get_by_role("link").get_attribute("href")
    assert link == f"https://www.neuronpedia.org/gpt2-small/9-mine/{latent}"
