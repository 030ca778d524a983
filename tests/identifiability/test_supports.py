"""Conditioning, richness, diversity and least squares, against NumPy and constructed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_isae.identifiability.supports import (
    Supports,
    conditioning,
    diversity,
    least_squares_gap,
    n_affordable,
    richness,
)
from sae_lens_isae.solvers import SparseCodes, omp


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def of_sets(*sets):
    width = max(map(len, sets))
    indices = torch.zeros(len(sets), width, dtype=torch.long)
    used = torch.zeros(len(sets), width, dtype=torch.bool)
    for row, members in enumerate(sets):
        indices[row, : len(members)] = torch.tensor(sorted(members), dtype=torch.long)
        used[row, : len(members)] = True
    return Supports(indices, used)


def to_sets(supports):
    return [set(i[u].tolist()) for i, u in zip(supports.indices, supports.used, strict=True)]


@given(
    sets=st.lists(
        st.tuples(st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8))), min_size=1, max_size=6
    )
)
@settings(max_examples=40, deadline=None)
def test_union(sets):
    first, second = of_sets(*(a for a, _ in sets)), of_sets(*(b for _, b in sets))
    union = first.union(second)
    assert to_sets(union) == [a | b for a, b in sets]
    assert union.sizes.tolist() == [len(a | b) for a, b in sets]


@pytest.mark.parametrize("d_in", [30, 6, 3])
def test_conditioning_equals_numpy(d_in):
    """Also where supports are larger than the space, and where some are and some are not."""
    torch.manual_seed(0)
    atoms = unit(torch.randn(25, d_in, dtype=torch.float64))
    sets = [{0, 1, 2}, {3}, set(range(8)), set(range(5, 20)), {4, 9}]
    delta, r_arip = conditioning(atoms, of_sets(*sets))
    for members, found_delta, found_mean in zip(sets, delta, r_arip, strict=True):
        chosen = atoms[sorted(members)].numpy()
        eigenvalues = np.linalg.eigvalsh(chosen @ chosen.T)
        assert found_delta.item() == pytest.approx(abs(eigenvalues - 1).max(), abs=1e-9)
        assert found_mean.item() == pytest.approx(((eigenvalues - 1) ** 2).mean(), abs=1e-9)


def test_large_supports_get_fewer_eigenvalues():
    assert n_affordable(80, 768, 1024) == 1024
    assert 16 <= n_affordable(4000, 2304, 1024) < 100


def test_richness_finds_exactly_what_is_there():
    # 0 is isolated by the first two; 3 and 4 only ever occur together; 5 once; 6 never
    found = richness(of_sets({0, 1}, {0, 2}, {1, 3, 4}, {2, 3, 4}, {1, 2, 5}), 7, 100, seed=0)
    assert found.n_examined == 5
    assert found.n_isolated == 3
    assert found.n_rarely_seen == 2
    together = richness(of_sets({3, 4}, {3, 4}), 5, 100, seed=0)
    assert (together.n_isolated, together.n_pairs_separated) == (0, 0)


def test_diversity_of_repeated_supports():
    values = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [5.0, 1.0], [1.0, 1.0]])
    values[:2] += 1e-30  # both latents active in all three
    indices = torch.tensor([[1, 4], [1, 4], [4, 1], [2, 3], [0, 1]])
    found = diversity(SparseCodes(indices, values, 5))
    assert (found.n_supports, found.n_estimable) == (3, 1)
    # the best two of (3, 0), (0, 2), (1, 1) are the first
    assert found.zeta == pytest.approx(2, rel=1e-6)
    once = diversity(SparseCodes(indices[2:], values[2:], 5))
    assert once.zeta is None
    assert once.n_estimable == 0


def test_least_squares_gap():
    torch.manual_seed(0)
    atoms, target = unit(torch.randn(20, 8)), torch.randn(30, 8)
    fitted = omp(target, atoms, 4)
    gap, gain = least_squares_gap(atoms, fitted, target)
    assert gap.max() < 1e-5
    assert gain.abs().max() < 1e-5
    shrunk = SparseCodes(fitted.indices, 0.8 * fitted.values, 20)
    gap, gain = least_squares_gap(atoms, shrunk, target)
    torch.testing.assert_close(gap, torch.full((30,), 0.25), atol=1e-4, rtol=0)
    fit = fitted.decode(atoms)
    before = (target - 0.8 * fit).square().sum(-1)
    torch.testing.assert_close(
        gain, 1 - (target - fit).square().sum(-1) / before, atol=1e-4, rtol=1e-4
    )
