"""What agreement is by chance, against closed forms and SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.identifiability.chance import (
    CodesByChance,
    PairSizes,
    codes_by_chance,
    dictionaries_by_chance,
)
from sae_lens_isae.identifiability.matching import DictionaryMatch
from tests.conftest import D_IN, Activations, isae_config, make_sae

CPU = torch.device("cpu")


def matched_in_numpy(atoms_a, atoms_b, signed=False):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (atoms_a, atoms_b))
    cosine = a @ b.T if signed else np.abs(a @ b.T)
    return cosine[linear_sum_assignment(cosine, maximize=True)]


def by_null(rows):
    return {row.null: row for row in rows}


@pytest.mark.parametrize("signed_codes", [True, False])
def test_dictionaries_agree_as_numpys_do(signed_codes):
    rng = np.random.default_rng(5)
    scale = np.array([9.0, 5, 3, *np.ones(9)])
    shift = rng.normal(size=12)

    def activations(n):
        return shift + rng.normal(size=(n, 12)) * scale

    x = torch.from_numpy(activations(2000)).float()
    pairs = [PairSizes(150, 120, signed_codes)]
    found = by_null(dictionaries_by_chance(x, pairs, 0.9, 0, CPU))
    expected = {
        "isotropic": [matched_in_numpy(*(rng.normal(size=(n, 12)) for n in (150, 120)))],
        "covariance": [
            matched_in_numpy(*(rng.normal(size=(n, 12)) * scale for n in (150, 120)))
            for _ in range(5)
        ],
        "activations": [
            matched_in_numpy(*(activations(n) - shift for n in (150, 120))) for _ in range(5)
        ],
    }
    for null, cosines in expected.items():
        assert found[null].dcs == pytest.approx(np.mean(cosines), abs=0.03), null
        if signed_codes:
            share = np.mean([(cosine >= 0.9).mean() for cosine in cosines])
            assert found[null].found == pytest.approx(share, abs=0.08), null
    assert found["covariance"].dcs > found["isotropic"].dcs + 0.05
    by_cosine = matched_in_numpy(*(rng.normal(size=(n, 12)) for n in (150, 120)), signed=True)
    assert found["isotropic"].mcc == pytest.approx(by_cosine.mean(), abs=0.03)
    if not signed_codes:
        # atoms whose codes have no signs are found with their own sign alone
        up_to_sign = by_null(
            dictionaries_by_chance(x, [pairs[0]._replace(signed_codes=True)], 0.9, 0, CPU)
        )
        assert found["covariance"].found < up_to_sign["covariance"].found


def test_too_few_activations_are_said():
    x = torch.randn(50, 8)
    rows = by_null(dictionaries_by_chance(x, [PairSizes(30, 30, True)], 0.9, 0, CPU))
    assert rows["activations"].dcs is None
    assert "needs 60 activations, there are 50" in rows["activations"].why_not
    assert rows["covariance"].dcs is not None


def test_independent_codes_overlap_by_their_rates_alone():
    """Latents that fire with probability p: an IoU of about p / (2 - p), also for equal SAEs."""
    p, d_sae = 0.1, 2000
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(600, d_sae, generator=generator)
    codes *= torch.rand(600, d_sae, generator=generator) < p
    index, ones = torch.arange(d_sae), torch.ones(d_sae)
    by_chance = CodesByChance(DictionaryMatch(index, index, ones, ones, 0.0), seed=0)
    for batch in codes.split(200):
        by_chance.add(batch, batch)
    rows = by_null(codes_by_chance([by_chance]))
    for null in ("other samples", "other latents"):
        assert rows[null].iou == pytest.approx(p / (2 - p), abs=0.004)
        assert rows[null].l2 == pytest.approx(2**0.5, abs=0.03)


@pytest.fixture(scope="module")
def saes():
    return {str(seed): make_sae(isae_config("iSAE"), seed) for seed in (0, 1)}


def test_a_report_has_it_beside_its_numbers(saes):
    x = torch.cat([next(Activations(start=i)) for i in range(2)])
    report = pairwise_identifiability(saes, x, n_oracle_samples=0, progress=False)
    nulls = [row.null for row in report.chance]
    assert nulls == ["isotropic", "covariance", "activations", "other samples", "other latents"]
    rows = by_null(report.chance)
    # nothing was learned: these two are no better than random directions
    assert report.pairs[0].dcs == pytest.approx(rows["isotropic"].dcs, abs=0.03)
    assert f"By chance: DCS {rows['covariance'].dcs:.3f}" in report.summary()
    assert report.tables()[-1].title == "What these numbers are by chance"
    assert json.loads(json.dumps(report.to_dict()))["chance"][0]["dcs"] == rows["isotropic"].dcs
    again = pairwise_identifiability(saes, x, n_oracle_samples=0, progress=False)
    assert again.chance == report.chance


def test_it_can_be_left_out(saes):
    x = torch.randn(64, D_IN)
    report = pairwise_identifiability(saes, x, n_oracle_samples=0, chance=False, progress=False)
    assert report.chance == []
    assert "chance" not in report.summary()
    assert "by chance" not in " ".join(table.title for table in report.tables())


def test_a_single_activation_has_no_other_sample(saes):
    report = pairwise_identifiability(saes, torch.randn(1, D_IN), progress=False)
    rows = by_null(report.chance)
    assert rows.keys() == {"isotropic", "covariance", "activations"}
    assert rows["isotropic"].dcs is not None
    for null in ("covariance", "activations"):
        assert rows[null].why_not == "needs activations that differ"
    assert any("needs activations that differ" in note for note in report.notes())
