"""Any SAELens SAE as x = D z + b: equal to SAELens where SAELens is right, safe where it is not."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.registry import (
    SAE_TRAINING_CLASS_REGISTRY,
    get_sae_class,
    get_sae_training_class,
)

from sae_lens_isae import audit, pairwise_identifiability
from sae_lens_isae.inputs.linear_sae import LinearSAE
from tests.conftest import D_IN, D_SAE, K, isae_config, make_sae

ARCHITECTURES = ["standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit", "isae_me"]
NORMALIZATIONS = ["none", "constant_norm_rescale", "layer_norm"]


def stock_sae(architecture, normalization="none", seed=0):
    torch.manual_seed(seed)
    sae_class, config_class = get_sae_class(architecture)
    k = {"k": K} if architecture in ("topk", "abstopk", "isae_me") else {}
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, normalize_activations=normalization, **k))
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1).abs_()
    return sae


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_rebuilds_what_sae_lens_rebuilds(architecture, normalization):
    sae, x = stock_sae(architecture, normalization), 3 * torch.randn(20, D_IN)
    model = LinearSAE(sae)
    code = model.encode(x)
    expected = sae(x)
    torch.testing.assert_close(
        model.decode(code.codes, code.offset), expected, atol=2e-4, rtol=1e-4
    )
    # the SAE was only borrowed
    torch.testing.assert_close(sae(x), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_keeps_no_state(normalization):
    """The orders of calls that break SAELens' run-time normalisation."""
    model = LinearSAE(stock_sae("topk", normalization))
    a, b = torch.randn(5, D_IN), 9 * torch.randn(7, D_IN)
    of_a = model.encode(a)
    model.encode(b)
    first = model.decode(of_a.codes, of_a.offset)
    assert torch.equal(first, model.decode(of_a.codes, of_a.offset))
    assert model.encode(torch.zeros(2, D_IN)).codes.isfinite().all()


@pytest.mark.parametrize("variant", ["iSAE", "iSAE-ME", "iSAE-ME full"])
def test_pre_activations_of_training_and_exported_sae_agree(variant, tmp_path, activations):
    from sae_lens import SAE

    sae = make_sae(isae_config(variant)).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sae.save_inference_model(tmp_path)
    trained, exported = LinearSAE(sae), LinearSAE(SAE.load_from_disk(tmp_path))
    ours, theirs = trained.encode(activations), exported.encode(activations)
    torch.testing.assert_close(ours.codes, theirs.codes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.hidden_pre, theirs.hidden_pre, atol=1e-4, rtol=1e-4)


def test_codes_and_atoms_are_in_the_units_of_the_activations():
    """Run-time normalisation scales the input, so the code must scale back."""
    plain, x = stock_sae("topk"), torch.randn(6, D_IN)
    with torch.no_grad():
        plain.b_dec.zero_()
        plain.b_enc.zero_()
    normalised = TopKSAE(
        TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, normalize_activations="constant_norm_rescale")
    )
    normalised.load_state_dict(plain.state_dict())
    # without biases the encoder is homogeneous: both have the same codes in the original space
    torch.testing.assert_close(
        LinearSAE(plain).encode(x).codes, LinearSAE(normalised).encode(x).codes
    )
    scaled = copy.deepcopy(plain)
    with torch.no_grad():
        scaled.W_dec.mul_(4)
        scaled.W_enc.div_(4)
    torch.testing.assert_close(LinearSAE(plain).encode(x).codes, LinearSAE(scaled).encode(x).codes)


def test_what_is_not_a_linear_model_of_its_input():
    for name in ("W_dec", "W_enc", "b_dec"):
        sae = stock_sae("topk")
        with torch.no_grad():
            getattr(sae, name).view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            LinearSAE(sae)
    sae = stock_sae("standard")
    sae.cfg.d_out = D_IN + 1
    with pytest.raises(ValueError, match="does not rebuild its input"):
        LinearSAE(sae)
    with pytest.warns(UserWarning, match="was not folded"):
        LinearSAE(stock_sae("standard", "expected_average_only_in"))


def test_encoder_weights_only_for_one_linear_map():
    for architecture in ARCHITECTURES:
        weights = LinearSAE(stock_sae(architecture)).encoder_weights()
        linear = architecture in ("standard", "jumprelu", "topk", "abstopk")
        assert (weights is not None) == linear


def training_sae(architecture):
    settings = {"k": K} if "topk" in architecture or architecture.startswith("isae") else {}
    if "matryoshka" in architecture:
        settings["matryoshka_widths"] = [D_SAE // 2, D_SAE]
    if "matching" in architecture:
        settings |= {"max_iterations": K, "decoder_init_norm": 1.0}
    config_class = get_sae_training_class(architecture)[1]
    return make_sae(config_class(d_in=D_IN, d_sae=D_SAE, **settings)).eval()


TRAINED = sorted(
    name for name in SAE_TRAINING_CLASS_REGISTRY if "transcoder" not in name and name != "temporal"
)


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_training_class_is_measured_or_refused(architecture):
    sae, x = training_sae(architecture), torch.randn(40, D_IN)
    if "batchtopk" in architecture:
        with pytest.raises(ValueError, match="depend on the other activations of the batch"):
            LinearSAE(sae)
        return
    model = LinearSAE(sae)
    code = model.encode(x)
    torch.testing.assert_close(
        model.decode(code.codes, code.offset), sae(x).detach(), atol=2e-4, rtol=1e-4
    )
    # one activation at a time gives the same codes
    alone = torch.cat([model.encode(row[None]).codes for row in x])
    torch.testing.assert_close(alone, code.codes, atol=1e-4, rtol=1e-4)
    stock = LinearSAE(training_sae(architecture.removeprefix("regularized_")))
    assert (model.encoder_weights() is None) == (stock.encoder_weights() is None)
    assert (model.encoder_weights() is None) == any(
        kind in architecture for kind in ("gated", "matching", "isae_me")
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float64_saes_are_measured(architecture):
    sae = stock_sae(architecture).to(dtype=torch.float64)
    single, x = LinearSAE(stock_sae(architecture)), torch.randn(30, D_IN)
    model = LinearSAE(sae)
    torch.testing.assert_close(model.encode(x).codes, single.encode(x).codes, atol=1e-4, rtol=1e-4)
    report = pairwise_identifiability([sae, stock_sae(architecture, seed=1)], x)
    json.dumps(report.to_dict(), allow_nan=False)
    json.dumps(audit(sae, x).to_dict(), allow_nan=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_thresholds_may_be_infinite_and_not_nan(bad):
    sae = stock_sae("jumprelu")
    with torch.no_grad():
        sae.threshold[3] = bad
    if math.isnan(bad):
        with pytest.raises(ValueError, match="mine: threshold holds NaN"):
            LinearSAE(sae, "mine")
    else:
        assert (LinearSAE(sae).encode(torch.randn(9, D_IN)).codes[:, 3] == 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_zero_atom_does_nothing_anywhere(architecture):
    settings = {"rescale_acts_by_decoder_norm": True} if architecture == "isae_me" else {}
    sae, other = stock_sae(architecture), stock_sae(architecture, seed=1)
    for name, value in settings.items():
        setattr(sae.cfg, name, value)
    with torch.no_grad():
        sae.W_dec[3] = 0
    x = torch.randn(60, D_IN)
    code = LinearSAE(sae).encode(x)
    assert code.codes.isfinite().all()
    assert (code.codes[:, 3] == 0).all()
    report = pairwise_identifiability([sae, other], x)
    json.dumps(report.to_dict(), allow_nan=False)
    json.dumps(audit(sae, x).to_dict(), allow_nan=False)
    assert report.saes[0].n_zero_atoms == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e20])
def test_tiny_and_large_atoms_have_unit_norm(scale):
    """Squares that leave float32's range."""
    sae = stock_sae("abstopk")
    with torch.no_grad():
        sae.W_dec[:3] *= scale
    model = LinearSAE(sae)
    torch.testing.assert_close(model.atoms.norm(dim=-1), torch.ones(D_SAE))
    assert not model.is_zero.any()
    assert model.encode(torch.randn(5, D_IN)).codes.isfinite().all()
