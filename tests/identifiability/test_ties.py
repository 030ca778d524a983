"""An SAE agrees with any signed permutation of itself, whatever repeats in its dictionary."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig, StandardSAE, StandardSAEConfig

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.identifiability.ties import directions

D_IN, D_SAE, K = 8, 30, 3


def with_repeats(seed, share, cls=AbsTopKSAE):
    """An SAE whose first latents have the atoms of a few others, some of them with the other sign,
    and encoders of their own."""
    torch.manual_seed(seed)
    if cls is AbsTopKSAE:
        sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    else:
        sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    n = int(share * D_SAE)
    with torch.no_grad():
        sae.b_dec.normal_(std=0.1)
        of = torch.randint(n, D_SAE, (n,)) if n < D_SAE else torch.zeros(n, dtype=torch.long)
        scale = torch.rand(n, 1) + 0.5
        if cls is AbsTopKSAE:
            scale = scale * (torch.randint(0, 2, (n, 1)) * 2 - 1)
        sae.W_dec[:n] = scale * sae.W_dec[of]
    return sae


def permuted(sae, seed, flip=True):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(D_SAE, generator=generator)
    sign = torch.randint(0, 2, (D_SAE,), generator=generator) * 2.0 - 1
    sign = sign if flip else torch.ones(D_SAE)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec.copy_((sign[:, None] * sae.W_dec)[order])
        other.W_enc.copy_((sign * sae.W_enc)[:, order])
        if hasattr(sae, "b_enc"):
            other.b_enc.copy_(sae.b_enc[order])
    return other


@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.1, 0.3, 0.7]))
@settings(max_examples=30, deadline=None)
def test_signed_permutation_of_an_sae_with_repeated_atoms(seed, share):
    sae = with_repeats(seed, share)
    x = torch.randn(80, D_IN)
    pair = pairwise_identifiability([sae, permuted(sae, seed)], x).pairs[0]
    assert (pair.dcs, pair.sae.iou.value, pair.sae.l2.value) == pytest.approx((1, 1, 0), abs=1e-5)
    assert pair.oracle is not None
    assert (pair.oracle.iou.value, pair.oracle.l2.value) == pytest.approx((1, 0), abs=1e-4)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_permutation_of_an_sae_without_signs(seed):
    sae = with_repeats(seed, 0.5, StandardSAE)
    x = torch.randn(80, D_IN)
    pair = pairwise_identifiability([sae, permuted(sae, seed, flip=False)], x).pairs[0]
    assert pair.sae.iou.value == pytest.approx(1)
    assert pair.sae.l2.value == pytest.approx(0, abs=1e-6)


def test_the_table_of_latents_does_not_depend_on_their_order_either():
    sae = with_repeats(3, 0.5)
    other = permuted(sae, 4)
    report = pairwise_identifiability({"a": sae, "b": other}, torch.randn(500, D_IN))
    seen = report.latents[report.latents["firing_rate"] > 0]
    assert seen["mean_code_iou"].min() == pytest.approx(1)
    assert report.saes[0].n_repeated == report.saes[1].n_repeated == D_SAE // 2


def test_the_same_sae_agrees_by_construction_also_where_atoms_repeat():
    sae = with_repeats(5, 0.9)
    pair = pairwise_identifiability([sae, copy.deepcopy(sae)], torch.randn(50, D_IN)).pairs[0]
    assert pair.same_sae
    assert (pair.dcs, pair.signed_mcc) == pytest.approx((1, 1))
    assert (pair.sae.iou.value, pair.sae.l2.value) == (1, 0)


def test_another_k_is_another_sae():
    """Equal weights do not make the same SAE."""
    sae = with_repeats(6, 0.0)
    other = copy.deepcopy(sae)
    other.activation_fn.k = other.cfg.k = 2 * K
    pair = pairwise_identifiability([sae, other], torch.randn(50, D_IN)).pairs[0]
    assert not pair.same_sae
    assert pair.sae.iou.value == pytest.approx(0.5)


def test_zero_atoms_do_not_lower_dcs():
    sae = with_repeats(7, 0.0)
    with torch.no_grad():
        sae.W_dec[:10] = 0
    report = pairwise_identifiability([sae, permuted(sae, 1)], torch.randn(60, D_IN))
    assert report.pairs[0].dcs == pytest.approx(1, abs=1e-6)
    assert report.saes[0].n_zero_atoms == 10
    assert report.latents["zero_atom"].sum() == 20
    alive = report.latents[~report.latents["zero_atom"]]
    assert (alive["n_found"] == 1).all()


def test_directions():
    atoms = torch.nn.functional.normalize(torch.randn(50, 5), dim=-1)
    repeated = torch.cat([atoms, atoms[:7], -atoms[:3], torch.zeros(2, 5), atoms[:1] + 1e-7])
    for up_to_sign, expected in ((True, 7 + 3 + 1), (False, 7 + 1)):
        found = directions(repeated, up_to_sign=up_to_sign)
        assert found.n_repeated == expected
        assert found.group[50] == found.group[0] == found.group[-1]
        assert (found.group[57] == found.group[0]) == up_to_sign
        assert found.group[60] != found.group[61]


def test_thousands_of_copies_of_one_atom():
    atoms = torch.nn.functional.normalize(torch.randn(20_000, 16), dim=-1)
    atoms[::2] = atoms[0]
    assert directions(atoms, up_to_sign=True).n_repeated == 9_999
