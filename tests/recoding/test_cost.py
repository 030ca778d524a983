"""How long a study will be, and what it took."""

from __future__ import annotations

import pytest

from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.recoding import RecodeSettings, recode
from sae_lens_isae.recoding.algorithms import Recoder
from sae_lens_isae.recoding.cost import PARTS, cost_table, estimate, in_words, part_of
from tests.recoding.test_study import QUICK, activations, jumprelu


def test_an_estimate_grows_with_what_is_asked():
    recoder = Recoder(LinearSAE(jumprelu()))
    samples = recoder.encode(activations())
    samples = samples.pick(samples.k.nonzero()[:, 0])
    nothing = RecodeSettings(noise_levels=(0.1,), noise_samples=1, decoder_k=(99,))
    few = estimate(recoder, samples, nothing, n_gd=1, n_model_runs=0, seconds_per_run=0.1)
    many = estimate(recoder, samples, RecodeSettings(), 50, n_model_runs=30, seconds_per_run=0.1)
    assert list(few) == list(many) == list(PARTS)
    assert few["ablation"] == 0
    assert many["ablation"] == pytest.approx(3)
    assert all(many[part] > few[part] for part in PARTS)


def test_in_words():
    assert in_words({"codes": 0.2, "noise": 0.1}) == "about 0 s"
    said = in_words({"codes": 300.0, "noise": 20.0, "decoders": 0.5, "ablation": 40.0})
    assert said == "about 6 min: codes 5 min, stability under noise 20 s, ablation 40 s"


def test_every_part_of_a_study_is_accounted_for():
    said = []
    report = recode({"a": jumprelu()}, activations(), QUICK, announce=said.append)
    assert said[0].startswith("about ")
    (sae,) = report.saes
    parts = {part_of(name) for name in sae.seconds}
    assert parts == {"codes", "noise", "decoders"}
    (row,) = cost_table(report.saes).rows
    assert len(row) == 1 + len(PARTS)


def test_what_goes_on_is_not_estimated(tmp_path):
    recode({"a": jumprelu()}, activations(), QUICK, cache=tmp_path)
    said = []
    recode({"a": jumprelu()}, activations(), QUICK, cache=tmp_path, announce=said.append)
    assert said == ["going on from the parts that are finished"]
