"""IoU and l2 on codes whose overlap is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.identifiability.code_agreement import CodeComparison
from sae_lens_isae.identifiability.matching import DictionaryMatch
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae

K, D_SAE = 8, 40


def identity():
    index, ones = torch.arange(D_SAE), torch.ones(D_SAE)
    return DictionaryMatch(index, index, ones, ones, 0.0)


@pytest.mark.parametrize("shared", range(K + 1))
def test_codes_of_equal_entries_that_share_some(shared):
    """k entries of size 1 each, of which m are shared: |z - z'|^2 = 2 (k - m) and |z|^2 = k."""
    a, b = torch.zeros(5, D_SAE), torch.zeros(5, D_SAE)
    a[:, :K] = 1
    b[:, K - shared : 2 * K - shared] = 1
    comparison = CodeComparison(identity())
    comparison.add(3 * a, 3 * b)
    found = comparison.agreement(np.random.default_rng(0))
    assert found.iou.value == pytest.approx(shared / (2 * K - shared))
    assert found.l2.value == pytest.approx(math.sqrt(2 * (K - shared) / K))
    # the scale on which the tables of the paper are consistent: 1 - l2^2 is the overlap
    assert 1 - found.l2_paper.value**2 == pytest.approx(shared / K, abs=1e-6)
    assert found.to_dict()["l2_paper"]["value"] == pytest.approx(found.l2.value / math.sqrt(2))
    low, high = found.l2_paper.low, found.l2_paper.high
    assert low == pytest.approx(found.l2_paper.value) == high


@pytest.mark.parametrize(
    ("iou", "l2"), [(0.113, 0.882), (0.149, 0.840), (0.487, 0.557), (0.873, 0.219)]
)
def test_the_papers_values_cannot_be_on_our_scale(iou, l2):
    """TopK, TopK, AbsTopK and iSAE-ME of Table 1: supports that overlap so little leave more."""
    overlap = 2 * iou / (1 + iou)
    assert l2 < math.sqrt(2 * (1 - overlap))
    assert l2 == pytest.approx(math.sqrt(1 - overlap), abs=0.12)


def test_all_zero_activations_are_left_out():
    a, b = stock_sae("abstopk"), stock_sae("abstopk", seed=1)
    x = torch.randn(100, D_IN)
    padded = torch.cat([torch.zeros(900, D_IN), x])[torch.randperm(1000)]
    found, expected = (pairwise_identifiability([a, b], some) for some in (padded, x))
    assert found.n_samples == expected.n_samples == 100
    assert found.n_zero_rows == 900
    assert found.saes[0].mse == pytest.approx(expected.saes[0].mse, rel=1e-5)
    assert found.pairs[0].sae.iou.value == pytest.approx(expected.pairs[0].sae.iou.value)
    assert found.pairs[0].oracle.n_samples == 100
    assert "900 all-zero activations are left out." in found.notes()
