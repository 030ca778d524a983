"""DCS, IoU and l2 of two SAEs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import (
    AbsTopKSAE,
    AbsTopKSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

from sae_lens_isae.identifiability import pairwise_identifiability
from tests.inputs.test_linear_sae import ARCHITECTURES, stock_sae

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


@pytest.mark.parametrize("signed", [False, True])
def test_latents_for_both_signs_of_a_concept_are_not_swapped(signed):
    """Each atom has its exact opposite in the other SAE, and an atom near itself."""
    concepts = torch.eye(D_IN)
    tilted = torch.nn.functional.normalize(concepts + 0.1 * concepts.roll(1, 0), dim=-1)
    config, kind = (AbsTopKSAEConfig, AbsTopKSAE) if signed else (TopKSAEConfig, TopKSAE)
    saes = [kind(config(D_IN, 2 * D_IN, k=1)) for _ in range(2)]
    atoms = torch.cat([concepts, -tilted]), torch.cat([tilted, -concepts])
    for sae, dictionary in zip(saes, atoms, strict=True):
        with torch.no_grad():
            sae.W_dec.copy_(dictionary)
            sae.W_enc.copy_(dictionary.T)
    found = compare(*saes, torch.cat([concepts, -concepts]))
    assert found.dcs == pytest.approx(1)
    assert found.signed_mcc == pytest.approx(1 / 1.01**0.5)
    assert found.sae.iou.value == pytest.approx(1)


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
    assert found.same_sae


def test_oracle_ignores_the_encoder():
    a, x = random_sae(0), torch.randn(20, D_IN)
    other = copy.deepcopy(a)
    with torch.no_grad():
        other.W_enc.normal_()
    found = pairwise_identifiability([a, other], x).pairs[0]
    assert found.sae.iou.value < 1
    assert found.oracle is not None
    assert (found.oracle.iou.value, found.oracle.l2.value) == pytest.approx((1, 0), abs=1e-6)
    assert not found.same_sae


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


def test_all_pairs_of_several_saes_and_where_each_latent_was_found():
    base, x = random_sae(0), torch.randn(300, D_IN)
    saes = {"a": base, "copy": signed_permutation(base, 1), "other": random_sae(7)}
    report = pairwise_identifiability(saes, x, n_oracle_samples=50)
    assert [(p.a, p.b) for p in report.pairs] == [("a", "copy"), ("a", "other"), ("copy", "other")]
    same, different, again = report.pairs
    assert numbers(same) == pytest.approx((1, 1, 0), abs=1e-5)
    assert numbers(different) == pytest.approx(numbers(again), abs=1e-5)
    # the copy flips signs, which |cosine| forgives and Song et al.'s coefficient does not
    assert same.signed_mcc < 0.95

    latents = report.latents
    assert len(latents) == 3 * D_SAE
    of_a = latents[latents["sae"] == "a"].set_index("latent")
    codes = base.encode(x)
    firing = (codes != 0).float().mean(0).tolist()
    assert of_a["firing_rate"].tolist() == pytest.approx(firing)
    partners = report.partners.set_index(["sae", "other", "latent"])
    assert len(partners) == 3 * 2 * D_SAE
    assert str(partners["partner"].dtype) == str(partners["sign"].dtype) == "Int64"
    in_copy, in_other = partners.loc["a", "copy"], partners.loc["a", "other"]
    assert in_copy["cosine"].tolist() == pytest.approx([1.0] * D_SAE, abs=1e-5)
    active = of_a["firing_rate"] > 0
    assert in_copy["code_iou"][active].tolist() == pytest.approx([1.0] * active.sum())
    assert in_copy["code_cosine"][active].tolist() == pytest.approx([1.0] * active.sum())
    assert in_copy["code_iou"][~active].isna().all()
    assert (of_a["n_found"] == 1 + (in_other["cosine"] >= 0.9)).all()
    both = (in_copy["cosine"] + in_other["cosine"]) / 2
    assert of_a["mean_cosine"].tolist() == pytest.approx(both.tolist())
    # the partner and its sign say which latent of the copy it is
    order = in_copy["partner"].tolist()
    aligned = saes["copy"].encode(x)[:, order] * torch.tensor(in_copy["sign"].tolist())
    scale = base.W_dec.norm(dim=-1)
    torch.testing.assert_close(aligned * scale, codes * scale, atol=1e-4, rtol=1e-4)
    # each side sees the same pair
    back = partners.loc["copy", "a"]["partner"]
    assert [back[j] for j in order] == list(range(D_SAE))


def test_saes_that_normalise_differently_are_compared_in_the_original_space():
    plain = random_sae(0)
    with torch.no_grad():
        plain.b_dec.zero_()
    normalised = random_sae(0, normalize_activations="constant_norm_rescale")
    with torch.no_grad():
        normalised.b_dec.zero_()
    found = compare(plain, normalised, 10 * torch.randn(100, D_IN))
    # without biases AbsTopK is homogeneous, so run-time normalisation changes nothing
    assert numbers(found) == pytest.approx((1, 1, 0), abs=1e-4)


def test_confidence_intervals_cover_and_shrink():
    a, b = random_sae(0), random_sae(1)
    torch.manual_seed(0)
    truth = numbers(compare(a, b, torch.randn(40_000, D_IN)))
    covered = 0
    for seed in range(20):
        torch.manual_seed(seed + 1)
        pair = compare(a, b, torch.randn(200, D_IN))
        covered += pair.sae.iou.low <= truth[1] <= pair.sae.iou.high
        covered += pair.sae.l2.low <= truth[2] <= pair.sae.l2.high
    assert covered >= 33  # 38 of 40 expected
    wide, narrow = (compare(a, b, torch.randn(n, D_IN)).sae.iou for n in (100, 1600))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.4)
    single = compare(a, b, torch.randn(1, D_IN)).sae.iou
    assert (single.low, single.high) == (None, None)


def test_batches_do_not_matter(monkeypatch):
    a, b, x = random_sae(0), random_sae(1), torch.randn(57, D_IN)
    whole = pairwise_identifiability([a, b], x, n_oracle_samples=20).to_dict()
    monkeypatch.setattr("sae_lens_isae.identifiability.pairwise._CODE_BYTES", 7 * 4 * 2 * D_SAE)
    parts = pairwise_identifiability([a, b], x, n_oracle_samples=20).to_dict()
    for key in ("sae", "oracle"):
        for name in ("iou", "l2"):
            first, second = (r["pairs"][0][key][name]["value"] for r in (whole, parts))
            assert first == pytest.approx(second, rel=1e-5)
        assert whole["pairs"][0][key]["n_samples"] == parts["pairs"][0][key]["n_samples"]
    assert whole["saes"][0]["mse"] == pytest.approx(parts["saes"][0]["mse"], rel=1e-5)


def test_oracle_takes_as_many_atoms_as_the_encoder_where_there_is_no_k():
    torch.manual_seed(0)
    relu = [StandardSAE(StandardSAEConfig(D_IN, 9)) for _ in range(2)]
    report = pairwise_identifiability(relu, torch.randn(20, D_IN))
    assert report.pairs[0].oracle is not None
    assert report.saes[0].oracle_k == "as many as its encoder"
    large = [StandardSAE(StandardSAEConfig(D_IN, 900)) for _ in range(2)]
    with pytest.warns(UserWarning, match="give oracle_k"):
        report = pairwise_identifiability(large, torch.randn(20, D_IN))
    assert report.pairs[0].oracle is None
    assert report.saes[0].oracle_k.startswith("none: ")
    asked = pairwise_identifiability(large, torch.randn(20, D_IN), oracle_k=3)
    assert asked.pairs[0].oracle is not None
    with pytest.raises(ValueError, match="oracle_k = 1000 exceeds"):
        pairwise_identifiability(large, torch.randn(20, D_IN), oracle_k=1000)


def test_the_oracle_codes_what_the_decoder_does_not_add():
    """x_hat = D z + b whatever is subtracted from the encoder's input."""
    a = random_sae(0)
    b = copy.deepcopy(a)
    b.cfg.apply_b_dec_to_input = False
    oracle = pairwise_identifiability([a, b], torch.randn(30, D_IN)).pairs[0].oracle
    assert (oracle.iou.value, oracle.l2.value) == pytest.approx((1, 0), abs=1e-6)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    a, b, x = random_sae(0), random_sae(1), torch.randn(300, D_IN)
    on_cpu = pairwise_identifiability([a, b], x).pairs[0]
    on_gpu = pairwise_identifiability([a.to("cuda"), b.to("cuda")], x).pairs[0]
    assert numbers(on_gpu) == pytest.approx(numbers(on_cpu), rel=1e-4)
    assert on_gpu.oracle.l2.value == pytest.approx(on_cpu.oracle.l2.value, rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_goes_through(architecture):
    sae, other = stock_sae(architecture), stock_sae(architecture, seed=1)
    x = torch.randn(60, sae.cfg.d_in)
    report = pairwise_identifiability({"a": sae, "again": sae, "other": other}, x)
    same, other, _ = report.pairs
    assert numbers(same) == pytest.approx((1, 1, 0), abs=1e-5)
    assert same.same_sae
    assert 0 <= other.sae.iou.value < 1
    assert other.oracle is not None
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_sae_is_no_pair():
    with pytest.raises(ValueError, match="two or more SAEs, got 1"):
        pairwise_identifiability([random_sae(0)], torch.randn(5, D_IN))
