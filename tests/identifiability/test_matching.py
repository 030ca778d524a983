"""Hungarian matching with signs."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sae_lens_isae.identifiability import match_dictionaries
from sae_lens_isae.identifiability.assignment import assign


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def dense_mean(a, b, signed=False):
    """scipy's dense solver on the whole matrix of cosines; zero atoms have none."""
    a, b = (x[(x != 0).any(-1)] for x in (a, b))
    cosine = (unit(a) @ unit(b).T).numpy()
    rows, columns = linear_sum_assignment(cosine if signed else abs(cosine), maximize=True)
    matched = cosine[rows, columns]
    return (matched if signed else abs(matched)).mean()


def is_one_to_one(match, n_a, n_b):
    return len(match.index_a.unique()) == len(match.index_b.unique()) == min(n_a, n_b)


@pytest.fixture
def candidates_only(monkeypatch):
    """Send every size through the certified sparse path."""
    monkeypatch.setattr("sae_lens_isae.identifiability.matching._DENSE_UP_TO", 0)


def dictionaries(kind, n, d_in=24, seed=0):
    """Two dictionaries that share most atoms, with what makes matching hard."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d_in, generator=g)
    b = a + 0.3 * torch.randn(n, d_in, generator=g)
    b[: n // 3] = torch.randn(n // 3, d_in, generator=g)
    if kind == "dead":
        a[torch.randperm(n, generator=g)[: n // 4]] = 0
        b[torch.randperm(n, generator=g)[: n // 5]] = 0
    elif kind == "duplicated":
        a[: n // 4] = a[0]
        b[n // 2 : n // 2 + n // 5] = b[n // 2]
    elif kind == "split":
        parts = torch.randint(n // 20, (n // 2,), generator=g)
        b[: n // 2] = a[parts] + 0.05 * torch.randn(n // 2, d_in, generator=g)
    elif kind == "unrelated":
        b = torch.randn(n, d_in, generator=g)
    sign = torch.randint(0, 2, (n, 1), generator=g) * 2 - 1
    return a, (sign * b)[torch.randperm(n, generator=g)]


@pytest.mark.parametrize("kind", ["shared", "dead", "duplicated", "split", "unrelated"])
@pytest.mark.parametrize("n", [50, 700])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("n_b", ["same", "more", "fewer"])
def test_candidates_reach_the_dense_optimum(kind, n, signed, n_b, candidates_only):
    a, b = dictionaries(kind, n)
    if n_b == "more":
        a = a[: 2 * n // 3]
    elif n_b == "fewer":
        b = b[: 2 * n // 3]
    match = match_dictionaries(a, b, signed=signed)
    best = dense_mean(a, b, signed)
    assert is_one_to_one(match, *(int((x != 0).any(-1).sum()) for x in (a, b)))
    assert (a[match.index_a] != 0).any(-1).all()
    assert (b[match.index_b] != 0).any(-1).all()
    assert match.dcs == pytest.approx(best, abs=2e-6)
    assert best <= match.dcs + match.gap + 1e-6
    assert match.gap < 1e-5


@given(seed=st.integers(0, 2**31), rounds=st.integers(1, 3), tolerance=st.floats(0, 0.1))
@settings(max_examples=25, deadline=None)
def test_certificate_holds_even_where_the_search_stops_early(seed, rounds, tolerance):
    """With too few candidates the result falls short, and the gap must admit it."""
    a, b = (unit(x) for x in dictionaries("duplicated", 90, d_in=8, seed=seed))
    cosine = (a @ b.T).abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_lens_isae.identifiability.assignment._N_CANDIDATES", 2)
        patch.setattr("sae_lens_isae.identifiability.assignment._MAX_ROUNDS", rounds)
        found = assign(
            lambda rows, columns: cosine[rows][:, columns], 90, 90, floor=0.0, tolerance=tolerance
        )
    best = 90 * dense_mean(a, b)
    assert found.total == pytest.approx(cosine[range(90), found.columns].sum().item(), rel=1e-5)
    assert found.total <= best + 1e-4 <= found.bound + 2e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atoms_that_must_stay_alone_do_not_use_up_all_turns(seed, candidates_only):
    """More atoms than they have candidates: prices rise until one is alone, step by step."""
    a, b = dictionaries("split", 300, seed=seed)
    match = match_dictionaries(a, b, signed=True)
    assert match.dcs == pytest.approx(dense_mean(a, b, signed=True), abs=2e-6)
    assert match.gap < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shared", "dead", "duplicated", "split", "unrelated"])
def test_candidates_reach_the_dense_optimum_at_8192(kind, candidates_only):
    a, b = dictionaries(kind, 8192, d_in=256)
    match = match_dictionaries(a, b)
    assert match.dcs == pytest.approx(dense_mean(a, b), abs=2e-6)
    assert match.gap < 1e-5


def test_signed_matching_differs_on_flipped_atoms():
    """Song et al.'s coefficient is 1 for |cosine| only: a flipped copy tells the two apart."""
    torch.manual_seed(0)
    a = torch.randn(20, 7)
    flipped = a * (torch.arange(20) % 2 * 2 - 1)[:, None]
    assert match_dictionaries(a, flipped).dcs == pytest.approx(1, abs=1e-6)
    signed = match_dictionaries(a, flipped, signed=True)
    assert signed.dcs == pytest.approx(dense_mean(a, flipped, signed=True), abs=1e-6)
    assert signed.dcs < 0.9
    assert (signed.sign == 1).all()


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


def test_zero_atoms_are_left_out():
    a = torch.eye(3)
    b = a.clone()
    b[1] = 0
    match = match_dictionaries(a, b)
    assert match.dcs == 1
    assert match.index_b.tolist() == match.index_a.tolist() == [0, 2]
    with pytest.raises(ValueError, match="all atoms of a dictionary are zero"):
        match_dictionaries(a, torch.zeros(3, 3))


def test_bad_input():
    with pytest.raises(ValueError, match="same d_in"):
        match_dictionaries(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="NaN"):
        match_dictionaries(torch.full((3, 4), float("nan")), torch.randn(3, 4))
