"""The auction beside scipy's dense solver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sae_lens_isae.identifiability.auction import Auction

STEP = 1e-5
NEVER = -1e3


def best_total(score, there, floor):
    """Every row has an entry of its own column, or is alone for `floor`."""
    n_rows = len(score)
    alone = np.full((n_rows, n_rows), NEVER)
    np.fill_diagonal(alone, floor)
    dense = np.hstack([np.where(there, score, NEVER), alone])
    return dense[linear_sum_assignment(dense, maximize=True)].sum()


def problem(seed, n_rows, n_more, kind):
    rng = np.random.default_rng(seed)
    shape = (n_rows, n_rows + n_more)
    score = rng.uniform(size=shape)
    if kind == "ties":
        score = score.round(1)
    elif kind == "same rows":
        score = score[rng.integers(max(1, n_rows // 4), size=n_rows)]
    elif kind == "wanted columns":
        score *= np.linspace(0, 1, shape[1]) ** 4
    there = rng.uniform(size=shape) < 0.4
    # each row has an entry
    there[np.arange(n_rows), rng.integers(shape[1], size=n_rows)] = True
    return score, there


@given(
    seed=st.integers(0, 2**31),
    n_rows=st.integers(1, 40),
    n_more=st.sampled_from([0, 1, 25]),
    kind=st.sampled_from(["random", "ties", "same rows", "wanted columns"]),
    floor=st.sampled_from([0.0, 0.5, -1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_total_is_within_a_step_a_row_of_the_best(seed, n_rows, n_more, kind, floor):
    score, there = problem(seed, n_rows, n_more, kind)
    auction = Auction(*score.shape, floor)
    # what joins later starts from what was settled before
    first = there & (np.random.default_rng(seed).uniform(size=there.shape) < 0.5)
    first[np.arange(n_rows), there.argmax(1)] = True
    for entries in (first, there):
        rows, columns = entries.nonzero()
        auction.settle(rows, columns, score[entries], STEP)
        pairs, prices = auction.pairs.numpy(), auction.prices.numpy()
        paired = pairs >= 0
        assert entries[paired.nonzero()[0], pairs[paired]].all()
        assert len(set(pairs[paired])) == paired.sum()
        total = score[paired.nonzero()[0], pairs[paired]].sum() + floor * (~paired).sum()
        best = best_total(score, entries, floor)
        assert best - 1.1 * STEP * n_rows <= total <= best + 1e-9
        # the prices prove it
        assert prices.min() >= 0
        assert not prices[np.setdiff1d(np.arange(len(prices)), pairs)].any()
        value = np.where(entries, score - prices, floor).max(1).clip(min=floor)
        assert value.sum() + prices.sum() == pytest.approx(total, abs=1.1 * STEP * n_rows)
