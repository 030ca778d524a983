"""Theorem 3.6's constants: limits, and consistency with the lemmas on real subspaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from sae_lens_isae.identifiability.theory import Theorem, separation


@given(delta=st.floats(0, 0.999))
def test_separation(delta):
    alpha = separation(delta)
    assert 0 <= alpha <= 1
    assert alpha**2 + (2 * delta / (1 + delta)) ** 2 == pytest.approx(1)
    assert separation(1.0) == separation(5.0) == 0


def test_lemma_a1_on_random_disjoint_supports():
    """sin(theta_min) between the spans is at least alpha(delta) of the union."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        atoms = rng.normal(size=(40, 6))
        atoms /= np.linalg.norm(atoms, axis=0)
        delta = abs(np.linalg.eigvalsh(atoms.T @ atoms) - 1).max()
        smallest = subspace_angles(atoms[:, :3], atoms[:, 3:]).min()
        assert math.sin(smallest) >= separation(float(delta)) - 1e-9


def test_limits():
    perfect = Theorem(epsilon=0.0, delta=0.2, zeta=0.5, k=4)
    assert perfect.holds
    assert perfect.proof_holds
    assert perfect.dictionary_bound == perfect.code_bound == 0
    broken = Theorem(epsilon=0.1, delta=1.2, zeta=0.5, k=4)
    assert not broken.holds
    assert not broken.proof_holds
    assert math.isinf(broken.dictionary_bound)
    assert math.isinf(broken.code_bound)


def test_by_hand():
    theorem = Theorem(epsilon=0.01, delta=0.5, zeta=0.4, k=9)
    alpha = math.sqrt(1 - (1 / 1.5) ** 2)
    eta = 2 * 3 * 0.01 / (0.4 * math.sqrt(0.5))
    c1 = 1 + 2 / alpha
    assert theorem.largest_epsilon == pytest.approx(0.4 * math.sqrt(0.5) * alpha / 12)
    assert theorem.eta == pytest.approx(eta)
    assert theorem.dictionary_bound == pytest.approx(2 * c1 * eta)
    expected = 2 * 0.01 / math.sqrt(0.5) + 6 * c1 * eta * 1.01 / 0.5
    assert theorem.code_bound == pytest.approx(expected)


@given(
    epsilon=st.floats(1e-6, 0.5), delta=st.floats(0, 0.99), zeta=st.floats(0.01, 2), k=st.just(3)
)
def test_the_proof_needs_more_than_the_condition(epsilon, delta, zeta, k):
    """C1 eta < sqrt((1 - delta) / 8) implies A3, not the other way round."""
    theorem = Theorem(epsilon, delta, zeta, k)
    if theorem.proof_holds:
        assert theorem.holds
