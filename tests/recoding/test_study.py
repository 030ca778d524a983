"""The whole study at small size."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.recoding import RecodeSettings, recode
from sae_lens_isae.recoding.algorithms import (
    ENCODER,
    GD,
    IHT,
    IHT_ENCODER,
    OMP,
    Recoder,
    algorithms,
    omp_without,
)
from sae_lens_isae.recoding.tables import more_tables, shared_picks
from tests.conftest import D_IN, D_SAE, Activations, isae_config, make_sae

METHODS = algorithms((1, 2, 3))
QUICK = RecodeSettings(
    n_components=5, noise_levels=(1e-6, 0.5), noise_samples=20, decoder_k=(2, 3, 50), gd_samples=10
)


def jumprelu(threshold=4.0):
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.W_dec.data = Activations().atoms
    sae.W_enc.data = sae.W_dec.data.T.clone()
    for name, value in (("b_enc", 0), ("b_dec", 0.3), ("threshold", threshold)):
        getattr(sae, name).data.fill_(value)
    return sae


def activations(n=60):
    return torch.cat([next(Activations()) for _ in range(1 + n // 64)])[:n]


@pytest.mark.parametrize("signed", [False, True])
def test_every_algorithm_takes_the_encoders_k_on_the_saes_own_atoms(signed):
    sae = make_sae(isae_config("iSAE")) if signed else jumprelu()
    recoder = Recoder(LinearSAE(sae))
    samples = recoder.encode(activations())
    assert torch.equal(samples.k, (sae.encode(samples.x) != 0).sum(-1))
    rebuilt = samples.codes.decode(recoder.linear.atoms) + samples.x - samples.target
    torch.testing.assert_close(rebuilt, sae(samples.x), atol=1e-4, rtol=1e-4)
    found = {method.name: recoder.recode(method, samples)[0] for method in METHODS}
    iterative = (GD.name, IHT.name, IHT_ENCODER.name)
    for method, codes in found.items():
        used = (codes.values != 0).sum(-1)
        assert (used <= samples.k).all(), method
        # OMP leaves a place unused only where atoms depend on those taken, the others where a
        # coefficient comes out as zero
        easy = samples.k <= D_IN // 2
        assert easy.sum() > 10
        assert (used == samples.k)[easy].all() or method in iterative, method
        negative = (codes.values < 0).any()
        assert signed or not negative or method.startswith("OMP"), method
    assert signed == bool((found[IHT.name].values < 0).any())
    largest = samples.codes.largest(2).indices
    without = found[omp_without(2).name].to_dense()
    assert (without.gather(1, largest)[samples.k >= 2] == 0).all()
    assert (found[OMP.name].to_dense().gather(1, largest) != 0).any()
    starts = recoder.recode(GD, samples, 2)
    assert len(starts) == 2
    torch.testing.assert_close(starts[0].to_dense(), found[GD.name].to_dense())


@pytest.fixture(scope="module")
def report():
    saes = {"jump": high_threshold(), "signed": make_sae(isae_config("iSAE-ME"))}
    return recode(saes, activations(), QUICK)


def high_threshold():
    """Seven samples have no latent."""
    hidden_pre = LinearSAE(jumprelu()).encode(activations()).hidden_pre
    assert hidden_pre is not None
    return jumprelu(float(hidden_pre.amax(-1).sort().values[6]))


def test_tables_have_every_method_and_level(report):
    for sae in report.saes:
        assert sae.agreement["method"].tolist() == [method.name for method in METHODS]
        assert sae.agreement.set_index("method").loc[GD.name, "n_samples"] == 10
        assert len(sae.noise) == 2 * 4
        assert set(sae.decoders["k"]) == {2, 3}
        assert len(sae.decoders) == 2 * 4
        assert len(sae.decoder_pairs) == 2 * 6
        assert sae.ablation is None
        assert f"GD-sparse on 10 of {sae.n_samples} samples, drawn at random" in sae.notes
        assert sae.latents["n_encoder"].sum() == round(sae.mean_k * sae.n_samples)
    # an orthogonal projection on as many atoms is no worse than the encoder's choice
    best = report.saes[1].agreement.set_index("method").loc[OMP.name]
    assert best["reconstruction"] < 1


def test_without_noise_every_method_finds_its_code_again(report):
    for sae in report.saes:
        overlap = sae.noise.pivot(index="sigma", columns="method", values="jaccard")
        assert (overlap.loc[1e-6] == 1).all(), sae.name
        assert (overlap.loc[0.5] < 1).all(), sae.name


def test_samples_without_a_latent_are_counted(report):
    codes = high_threshold().encode(activations())
    assert int(((codes != 0).sum(-1) == 0).sum()) == 7
    assert (report.saes[0].n_empty, report.saes[0].n_samples) == (7, 53)
    assert "7 samples with the zero code are left out" in report.saes[0].notes
    with pytest.raises(ValueError, match="high: the encoder gives the zero code to all 60"):
        recode({"high": jumprelu(1e6)}, activations(), QUICK)


def test_report_as_json_tables_and_page(report, tmp_path):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["schema"] == "sae-lens-isae/recode/2"
    assert [row["method"] for row in data["saes"][0]["agreement"]] == [m.name for m in METHODS]
    tables = {
        table.title: table
        for table in [*report.tables(), *more_tables(report.saes, report.settings)]
    }
    assert [row[0] for row in tables["Codes against the encoder's"].rows] == ["jump", "signed"]
    for table in tables.values():
        assert all(len(row) == len(table.headers) for row in table.rows)
    report.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("Plotly.newPlot") >= 3
    assert "The most robust features of signed" in text


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    whole = recode({"a": jumprelu()}, activations(), QUICK)
    original, calls = Recoder.recode, []

    def interrupted(self, method, *args, **kwargs):
        calls.append(method)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(self, method, *args, **kwargs)

    monkeypatch.setattr(Recoder, "recode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recode({"a": jumprelu()}, activations(), QUICK, cache=tmp_path)
    resumed = recode({"a": jumprelu()}, activations(), QUICK, cache=tmp_path)
    assert OMP.name not in resumed.saes[0].seconds
    for name in ("agreement", "noise", "decoders", "decoder_pairs", "latents"):
        pd.testing.assert_frame_equal(
            getattr(resumed.saes[0], name), getattr(whole.saes[0], name), check_dtype=False
        )
    # another seed or other activations are another study
    other = recode({"a": jumprelu()}, activations() * 1.1, QUICK, cache=tmp_path)
    assert OMP.name in other.saes[0].seconds


def test_few_samples_warn():
    with pytest.warns(UserWarning, match="60 samples are few for 50 principal components"):
        report = recode({"a": jumprelu()}, activations(), RecodeSettings(noise_levels=(0.1,)))
    row = report.saes[0].agreement.set_index("method").loc[OMP.name]
    assert row["chance_r2"] > 0.5
    # a linear map explains unrelated codes as well
    assert row[["r2", "r2_weighted", "cca"]].isna().all()
    assert not row[["jaccard", "cosine", "procrustes"]].isna().any()
    (table, *_) = report.tables()
    cells = dict(zip(table.headers, table.rows[0], strict=True))
    assert cells["R2"] == cells["CCA"] == "-"
    assert "R2 and CCA of OMP" in " ".join(report.notes())
    assert "are left out: 60 samples are few for 50" in " ".join(report.notes())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((4, D_IN), torch.nan), "the activations hold NaN or Inf"),
        (torch.zeros(4, D_IN + 1), "tensor: d_in is 17, the SAE a has 16"),
    ],
)
def test_bad_activations(x, message):
    with pytest.raises(ValueError, match=message):
        recode({"a": jumprelu()}, x, QUICK)


@pytest.mark.parametrize(
    "settings", [{"gd_samples": 0}, {"noise_levels": (-1.0,)}, {"ridge": float("nan")}]
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be > 0"):
        RecodeSettings(**settings)


def test_a_bug_in_an_encoder_is_not_blamed_on_the_activations(monkeypatch):
    bug = ValueError("a bug")

    def broken(*_):
        raise bug

    monkeypatch.setattr(LinearSAE, "encode", broken)
    with pytest.raises(ValueError, match="a bug") as raised:
        recode(jumprelu(), next(Activations()), QUICK, progress=False)
    assert raised.value is bug


def test_the_encoder_agrees_with_itself():
    samples = Recoder(LinearSAE(jumprelu())).encode(activations())
    (codes,) = Recoder(LinearSAE(jumprelu())).recode(ENCODER, samples)
    assert codes is samples.codes


def test_few_samples_of_one_method_are_said(recwarn):
    """GD-sparse has its own number of samples: R2 at chance level without a word misleads."""
    settings = RecodeSettings(
        n_components=5, noise_levels=(0.5,), noise_samples=4, decoder_k=(2,), gd_samples=10
    )
    (found,) = recode({"a": jumprelu()}, activations(), settings).saes
    (note,) = [note for note in found.notes if "R2" in note]
    assert note.startswith("R2 and CCA of GD-sparse are left out: 10 samples are few for 5")
    table = found.agreement.set_index("method")
    assert f"about {table.loc[GD.name, 'chance_r2']:.2f}" in note
    assert "R2 and CCA of GD-sparse" in str(recwarn.pop(UserWarning).message)


def test_all_zero_activations_are_left_out_of_the_study():
    x = activations()
    settings = RecodeSettings(
        n_components=2, noise_levels=(0.5,), noise_samples=4, decoder_k=(2,), gd_samples=20
    )
    padded = torch.cat([x, torch.zeros(30, D_IN)])
    (found,) = recode({"a": jumprelu()}, padded, settings).saes
    (alone,) = recode({"a": jumprelu()}, x, settings).saes
    assert found.n_samples == alone.n_samples
    assert found.n_zero_rows == 30
    assert "30 all-zero activations are left out" in found.notes


def test_what_is_shared_by_chance_is_shared_with_another_sample():
    (found,) = recode({"a": jumprelu()}, activations(), QUICK, progress=False).saes
    sae = jumprelu()
    samples = Recoder(LinearSAE(sae)).encode(activations())
    used = (samples.k > 0).nonzero()[:, 0]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(QUICK.seed))
    samples = samples.pick(order[torch.isin(order, used)])
    recoder = Recoder(LinearSAE(sae), QUICK.seed)
    codes = {m.name: recoder.recode(m, samples)[0] for m in (OMP, IHT, IHT_ENCODER)}
    supports = {
        name: [set(i[v != 0].tolist()) for i, v in zip(c.indices, c.values, strict=True)]
        for name, c in {**codes, "encoder": samples.codes}.items()
    }
    own = supports.pop("encoder")
    for table, shift in ((found.latents, 0), (found.latents_by_chance, 1)):
        others = [
            set.intersection(*(s[i - shift] for s in supports.values())) for i in range(len(own))
        ]
        shared = sum(len(a & b) for a, b in zip(own, others, strict=True))
        expected = shared / sum(map(len, own))
        assert shared_picks(table) == pytest.approx(expected)
