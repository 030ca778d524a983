"""Hungarian matching with signs."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from sae_lens_isae.identifiability import match_dictionaries


def test_signed_permutation_is_found():
    torch.manual_seed(0)
    a = torch.randn(20, 7)
    order, sign = torch.randperm(20), torch.randint(0, 2, (20, 1)) * 2 - 1
    match = match_dictionaries(a, 3 * (sign * a)[order])
    assert match.dcs == pytest.approx(1, abs=1e-6)
    assert torch.equal(order[match.index_b], match.index_a)
    assert torch.equal(match.sign, sign[:, 0].float()[match.index_a])


def test_total_is_the_best_of_all_permutations():
    torch.manual_seed(1)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    cosine = torch.cosine_similarity(a[:, None], b[None], dim=-1).abs()
    best = max(cosine[range(5), p].mean().item() for p in permutations(range(5)))
    assert match_dictionaries(a, b).dcs == pytest.approx(best)


def test_smaller_dictionary_decides_the_number_of_pairs():
    a = torch.randn(9, 4)
    match = match_dictionaries(a[[2, 5]], a)
    assert match.index_b.tolist() == [2, 5]
    assert match_dictionaries(a, a[[2, 5]]).index_a.tolist() == [2, 5]


def test_zero_atoms_match_with_cosine_zero():
    a = torch.eye(3)
    b = a.clone()
    b[1] = 0
    match = match_dictionaries(a, b)
    assert match.abs_cosine.tolist() == [1, 0, 1]


def test_bad_input():
    with pytest.raises(ValueError, match="same d_in"):
        match_dictionaries(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="NaN"):
        match_dictionaries(torch.full((3, 4), float("nan")), torch.randn(3, 4))
