"""Latents that fire on the template of a prompt are told from those that fire on what it says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sae_lens_isae.recoding.prompts import (
    DEFAULT_PROMPTS,
    Prompt,
    drawn,
    load_prompts,
    templates_of,
)
from sae_lens_isae.recoding.robustness import template_shares
from sae_lens_isae.solvers import SparseCodes

LAND = [f"The capital of {land} is" for land in ("Peru", "Chile", "South Korea", "France")]
SPOKEN = [f"In {land}, most people speak" for land in ("Peru", "Chile", "France")]
OTHER = ["B, C, D,", "The day after Monday is", "Counting: 1, 2, 3,", "Counting: 14, 15, 16,"]


def test_templates_are_what_prompts_share():
    texts = [*LAND, *SPOKEN, *OTHER]
    assert templates_of([Prompt(t, "x") for t in texts]) == [0, 0, 0, 0, 4, 4, 4, 7, 8, 9, 9]


def test_the_facts_have_large_templates():
    sizes = Counter(templates_of(load_prompts(DEFAULT_PROMPTS)))
    assert sum(size for size in sizes.values() if size > 10) > 300
    assert len(sizes) > 10


@pytest.mark.parametrize("n", [20, 100, 400])
def test_every_template_has_its_share_of_a_draw(n):
    prompts = load_prompts(DEFAULT_PROMPTS)
    templates = dict(zip(prompts, templates_of(prompts), strict=True))
    all_sizes = Counter(templates.values())
    some = drawn(prompts, n, seed=1)
    assert len(some) == len(set(some)) == n
    assert some == [p for p in prompts if p in set(some)]
    sizes = Counter(templates[prompt] for prompt in some)
    for template, size in all_sizes.items():
        assert abs(sizes[template] - size * n / len(prompts)) <= 2
    alone = [template for template, size in all_sizes.items() if size == 1]
    expected = len(alone) * n / len(prompts)
    assert abs(sum(sizes[template] for template in alone) - expected) <= 4 * expected**0.5
    assert some != drawn(prompts, n, seed=2)
    assert drawn(prompts, None) == drawn(prompts, 10**6) == prompts


def test_a_latent_on_a_template_is_told_from_one_on_what_it_says():
    texts = [*LAND, *SPOKEN, *OTHER]
    templates = templates_of([Prompt(t, "x") for t in texts])
    codes = torch.zeros(len(texts), 4)
    codes[:4, 0] = torch.tensor([1.0, 3.0, -4.0, 2.0])  # the template of capitals
    codes[[0, 4], 1] = 5.0  # Peru, whatever is asked
    codes[6, 2] = 2.0  # one of three in its template: France there
    found = template_shares(SparseCodes.from_dense(codes), templates, texts).set_index("latent")
    assert found.index.tolist() == [0, 1, 2]
    assert found.template_share.tolist() == [1, 0.5, 1]
    assert found.template_coverage.tolist() == pytest.approx([1, 0.25, 1 / 3])
    assert found.on_template.tolist() == [True, False, False]
    assert found.prompts[0] == [LAND[2], LAND[1], LAND[3]]
