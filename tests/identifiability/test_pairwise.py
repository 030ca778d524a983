"""DCS, IoU and l2 of two SAEs."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig, StandardSAE, StandardSAEConfig

from sae_lens_isae.identifiability import pairwise_identifiability

D_IN, D_SAE, K = 6, 14, 3


def random_sae(seed, d_sae=D_SAE, **settings):
    torch.manual_seed(seed)
    sae = AbsTopKSAE(AbsTopKSAEConfig(D_IN, d_sae, k=K, **settings))
    with torch.no_grad():
        sae.W_dec.normal_()
        sae.W_enc.normal_()
        sae.b_dec.normal_()
    return sae


def signed_permutation(sae, seed):
    other = copy.deepcopy(sae)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(D_SAE, generator=generator)
    sign = torch.randint(0, 2, (D_SAE,), generator=generator) * 2.0 - 1
    with torch.no_grad():
        other.W_dec.copy_((sign[:, None] * sae.W_dec)[order])
        other.W_enc.copy_((sign * sae.W_enc)[:, order])
    return other


def compare(a, b, x, **settings):
    return pairwise_identifiability([a, b], x, n_oracle_samples=0, **settings).pairs[0]


def numbers(pair):
    return (pair.dcs, pair.sae.iou.value, pair.sae.l2.value)


def by_hand(a, b, x, match):
    """The paper's definitions, sample by sample."""
    order = {
        int(i): (int(j), float(s))
        for i, j, s in zip(match.index_a, match.index_b, match.sign, strict=True)
    }
    za = (a.encode(x) * a.W_dec.norm(dim=-1)).tolist()
    zb = (b.encode(x) * b.W_dec.norm(dim=-1)).tolist()
    ious, distances, norms = [], [], []
    for row_a, row_b in zip(za, zb, strict=True):
        aligned = [order[i][1] * row_b[order[i][0]] for i in range(D_SAE)]
        s, t = {i for i, v in enumerate(row_a) if v}, {i for i, v in enumerate(aligned) if v}
        ious.append(len(s & t) / len(s | t))
        distances.append(sum((u - v) ** 2 for u, v in zip(row_a, aligned, strict=True)) ** 0.5)
        norms += [sum(v * v for v in row) ** 0.5 for row in (row_a, row_b)]
    return sum(ious) / len(x), (sum(distances) / len(x)) / (sum(norms) / len(norms))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_invariant_to_signed_permutations(seed):
    a, b, x = random_sae(seed), random_sae(seed + 1), torch.randn(30, D_IN)
    same = compare(a, signed_permutation(a, seed), x)
    assert numbers(same) == pytest.approx((1, 1, 0), abs=1e-5)
    base = compare(a, b, x)
    for first, second in (
        (a, signed_permutation(b, seed)),
        (signed_permutation(a, seed), b),
        (b, a),
    ):
        assert numbers(compare(first, second, x)) == pytest.approx(numbers(base), abs=1e-5)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_equals_the_definitions(seed):
    a, b, x = random_sae(seed), random_sae(seed + 1), torch.randn(20, D_IN)
    found = compare(a, b, x)
    assert numbers(found)[1:] == pytest.approx(by_hand(a, b, x, found.match), rel=1e-4)


def test_scale_of_atoms_does_not_matter():
    a, b, x = random_sae(0), random_sae(1), torch.randn(30, D_IN)
    scaled = copy.deepcopy(b)
    with torch.no_grad():
        scaled.W_dec.mul_(5)
        scaled.W_enc.div_(5)
    assert numbers(compare(a, scaled, x)) == pytest.approx(numbers(compare(a, b, x)), rel=1e-5)
    rescaling = copy.deepcopy(b)
    rescaling.cfg.rescale_acts_by_decoder_norm = True  # its codes are in unit-norm units already
    with torch.no_grad():
        norm = b.W_dec.norm(dim=-1)
        rescaling.W_enc.copy_(b.W_enc * 1)
    unit = copy.deepcopy(b)
    with torch.no_grad():
        unit.W_dec.div_(norm[:, None])
        unit.W_enc.mul_(norm)
    assert compare(rescaling, unit, x).sae.l2.value == pytest.approx(0, abs=1e-6)


def test_any_sae_lens_sae_and_different_sizes():
    torch.manual_seed(0)
    relu, x = StandardSAE(StandardSAEConfig(D_IN, 9)), torch.randn(10, D_IN)
    with pytest.warns(UserWarning, match="5 latents of the larger have no partner"):
        found = compare(random_sae(0), relu, x)
    assert found.n_unmatched == 5
    assert 0 <= found.sae.iou.value <= 1


def test_unmatched_latents_count_as_disagreement():
    a = random_sae(0)
    larger = random_sae(0, d_sae=D_SAE + 4)
    with torch.no_grad():
        larger.b_dec.copy_(a.b_dec)
        larger.W_dec[:D_SAE], larger.W_enc[:, :D_SAE] = a.W_dec, a.W_enc
        larger.W_enc[:, D_SAE:] *= 100  # they take the whole code
    with pytest.warns(UserWarning, match="4 latents of the larger"):
        found = compare(a, larger, torch.randn(20, D_IN))
    assert found.sae.iou.value == 0
    assert found.sae.l2.value > 1


def test_dead_codes_agree_on_nothing_to_say():
    a = random_sae(0)
    with torch.no_grad():
        a.W_enc.zero_()
    found = compare(a, a, torch.randn(5, D_IN))
    assert numbers(found)[1:] == (1, 0)
    assert found.same_weights


def test_oracle_ignores_the_encoder():
    a, x = random_sae(0), torch.randn(20, D_IN)
    other = copy.deepcopy(a)
    with torch.no_grad():
        other.W_enc.normal_()
    found = pairwise_identifiability([a, other], x).pairs[0]
    assert found.sae.iou.value < 1
    assert found.oracle is not None
    assert (found.oracle.iou.value, found.oracle.l2.value) == pytest.approx((1, 0), abs=1e-6)
    assert not found.same_weights


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(0, D_IN), "no activations"),
        (torch.randn(5, D_IN + 1), "d_in"),
        (torch.full((5, D_IN), float("nan")), "NaN or Inf"),
    ],
)
def test_bad_activations(x, message):
    with pytest.raises(ValueError, match=message):
        compare(random_sae(0), random_sae(1), x)


def test_different_d_in():
    other = AbsTopKSAE(AbsTopKSAEConfig(D_IN + 1, D_SAE, k=K))
    with pytest.raises(ValueError, match=r"different d_in: \[6, 7\]"):
        compare(random_sae(0), other, torch.randn(5, D_IN))
