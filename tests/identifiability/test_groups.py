"""Seeds of one variant are compared with each other, not with those of another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.groups import groups_of
from sae_lens_isae.identifiability.latents import cosine_by_activity, cosine_by_firing_rate
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae

FOUR = ["isae/seed_0", "isae/seed_1", "topk/seed_0", "topk/seed_1"]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (FOUR, None, ["isae", "isae", "topk", "topk"]),
        (["a_seed42", "a_seed43", "b_seed42", "b_seed43"], None, ["a", "a", "b", "b"]),
        (["seed_0", "seed_1"], None, ["", ""]),
        # somebody alone: everything is compared with everything
        (FOUR[:3], None, ["", "", ""]),
        (["x", "y"], None, ["", ""]),
        (FOUR, r"seed_\d", ["seed_0", "seed_1", "seed_0", "seed_1"]),
        (FOUR, r"/seed_(\d)", ["0", "1", "0", "1"]),
        (FOUR, dict(zip(FOUR, "abba", strict=True)), list("abba")),
    ],
)
def test_groups_by_name(names, pattern, expected):
    assert list(groups_of(names, pattern).values()) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("isae|topk/seed_0", "topk/seed_1|matches nothing"),
        ("seed_1|isae/seed_0", "matches nothing in 'topk/seed_0'"),
        (".*", "isae/seed_0 is alone in its group"),
        ("(", "is no regular expression"),
        ({"isae/seed_0": "a"}, "do not say which one isae/seed_1"),
    ],
)
def test_groups_that_are_none(pattern, message):
    with pytest.raises(InputError, match=message):
        groups_of(FOUR, pattern)


@pytest.fixture(scope="module")
def saes():
    # each variant's seeds are the same SAE: all is found within, nothing across
    return {name: stock_sae("topk", seed=number // 2) for number, name in enumerate(FOUR)}


def test_two_perfect_seeds_stay_perfect_beside_another_variant(saes):
    x = torch.randn(300, D_IN)
    report = pairwise_identifiability(saes, x, n_oracle_samples=20, progress=False)
    assert [(pair.a, pair.b) for pair in report.pairs] == [(FOUR[0], FOUR[1]), (FOUR[2], FOUR[3])]
    by_group, of_saes = report.tables()[:2]
    assert [row[0] for row in by_group.rows] == ["isae", "topk"]
    assert {row[-1] for row in (*by_group.rows, *of_saes.rows)} == {"100.0%"}
    assert report.latents.groupby("sae", sort=False)["group"].first().tolist() == [
        "isae", "isae", "topk", "topk"]  # fmt: skip
    assert (report.latents["n_others"] == 1).all()
    assert "isae: of 40 latents 100.0% were found in the other SAE" in report.summary()

    across = pairwise_identifiability(saes, x, across=True, n_oracle_samples=0, chance=False,
                                      progress=False)  # fmt: skip
    assert len(across.pairs) == 6
    assert len(across.partners) == 4 * 3 * 40
    columns = ["n_found", "mean_cosine", "mean_code_iou", "trust"]
    pd.testing.assert_frame_equal(across.latents[columns], report.latents[columns])
    assert across.tables()[0].rows[0][1] == by_group.rows[0][1]

    mixed = pairwise_identifiability(saes, x, groups=dict.fromkeys(FOUR, "all"), chance=False,
                                     n_oracle_samples=0, progress=False)  # fmt: skip
    assert mixed.latents["n_found"].max() <= 3
    assert mixed.latents["n_found"].mean() < 2


def test_cosine_by_firing_rate_is_that_of_pandas():
    rng = np.random.default_rng(0)
    latents = pd.DataFrame(
        {
            "sae": "a",
            "firing_rate": (1 + rng.permutation(400)) / 400,
            "mean_cosine": rng.random(400),
            "mean_magnitude": rng.random(400),
        }
    )
    active = latents[latents["firing_rate"] > 0]
    fifth = pd.qcut(active["firing_rate"].rank(method="first"), 5, labels=False)
    expected = active.groupby(fifth)["mean_cosine"].mean().tolist()
    assert cosine_by_firing_rate(latents) == pytest.approx(expected)
    weights = latents.firing_rate * latents.mean_magnitude
    assert cosine_by_activity(latents) == pytest.approx(
        sum(weights * latents.mean_cosine) / sum(weights)
    )
    dead = latents.assign(firing_rate=0.0)
    assert np.isnan(cosine_by_firing_rate(dead)).all()
    assert np.isnan(cosine_by_activity(dead))
