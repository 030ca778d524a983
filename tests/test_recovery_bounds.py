"""Bounds hold where they must, and the terms of the gap add up to the loss."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recovery_bounds import lemma_1, reweighting_gap, theorem_2

SEEDS = st.integers(0, 2**31)


def problem(seed, n=12, d=7, n_samples=40, k=3):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latents = normal(n_samples, n)
    latents = latents * (torch.rand(n_samples, n, generator=generator).argsort(-1) < k)
    return latents, normal(n, d), normal


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, k=st.integers(1, 6))
def test_lemma_1_holds_for_any_concepts_and_signs(seed, k):
    x, concepts, _ = problem(seed, k=k)
    codes = torch.relu(x @ concepts @ concepts.T)
    error, bound = lemma_1(x, codes, concepts)
    assert (error <= bound * (1 + 1e-12) + 1e-12).all()


def test_lemma_1_by_hand():
    """Two unit concepts with cosine 0.6, both active: codes are off by 0.6 times the other."""
    concepts = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    error, bound = lemma_1(x, x @ concepts @ concepts.T, concepts)
    torch.testing.assert_close(error[0].item(), (0.3**2 + 0.6**2) ** 0.5)
    torch.testing.assert_close(bound[0].item(), 0.6 * 1.25**0.5)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_theorem_2_holds_for_any_encoder(seed):
    x, concepts, normal = problem(seed)
    encoder = normal(7, 12)
    codes = torch.relu(x @ concepts @ encoder)
    again = torch.relu(codes @ concepts @ encoder)
    bound = theorem_2(codes, again, encoder, concepts)
    assert (bound <= (codes - x).norm(dim=-1) * (1 + 1e-12)).all()


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_terms_of_the_gap_add_up_to_the_weighted_loss(seed):
    x, concepts, normal = problem(seed)
    codes, decoder, weights = normal(40, 12), normal(12, 7), normal(7).square()
    gap = reweighting_gap(x, codes, concepts, decoder, weights)
    loss = (weights * (x @ concepts - codes @ decoder) ** 2).sum(-1).mean()
    torch.testing.assert_close(gap.total, loss)
    form = concepts @ torch.diag(weights) @ concepts.T - torch.eye(12, dtype=torch.float64)
    error = x - codes
    torch.testing.assert_close(
        gap.interference, torch.einsum("si,ij,sj->s", error, form, error).mean()
    )


def test_models_are_batched():
    problems = [problem(seed) for seed in range(3)]
    x, concepts = (torch.stack([p[i] for p in problems]) for i in range(2))
    codes = torch.relu(x @ concepts @ concepts.mT)
    error, bound = lemma_1(x, codes, concepts)
    for i in range(3):
        one_error, one_bound = lemma_1(x[i], codes[i], concepts[i])
        torch.testing.assert_close(error[i], one_error)
        torch.testing.assert_close(bound[i], one_bound)
