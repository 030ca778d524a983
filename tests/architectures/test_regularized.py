"""Stock architectures with loss terms train as stock and export as stock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_training_class

from sae_lens_isae.losses.arip import gram_eigenvalues, r_arip
from sae_lens_isae.ops.selection import select_largest
from tests.architectures.test_recipe import step_input
from tests.conftest import (
    D_IN,
    D_SAE,
    VARIANTS,
    Activations,
    K,
    isae_config,
    make_sae,
    run_python,
    train_sae,
)

STOCK = {
    "standard": "standard",
    "topk": "topk",
    "abstopk": "abstopk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "matching_pursuit": "matching_pursuit",
}
TERMS = {
    "arip_loss": {"arip_weight": 0.1},
    "self_consistency_loss": {
        "self_consistency_weight": 0.5,
        "self_consistency_warm_up_start": 2,
        "self_consistency_warm_up_end": 4,
    },
    "wsae_loss": {"wsae_alpha": 0.5},
}
TERMS["all"] = {key: value for settings in TERMS.values() for key, value in settings.items()}


def config(architecture, **settings):
    if "topk" in architecture:
        settings.setdefault("k", K)
    if "matryoshka" in architecture:
        settings["matryoshka_widths"] = [D_SAE // 2, D_SAE]
    if "matching" in architecture:
        settings.update(max_iterations=K, decoder_init_norm=1.0)
    return get_sae_training_class(architecture)[1](d_in=D_IN, d_sae=D_SAE, **settings)


def settings_of(architecture, term):
    """Of matching pursuit all but aRIP, which it cannot have."""
    settings = dict(TERMS[term])
    if "matching" in architecture:
        settings.pop("arip_weight", None)
    return settings


PAIRS = [(stock, term) for stock in STOCK for term in TERMS if settings_of(stock, term)]


@pytest.mark.parametrize("stock", STOCK)
def test_regularized_without_terms_trains_like_stock(stock):
    ours = train_sae(config(f"regularized_{stock}"))
    original = train_sae(config(stock))
    for name, value in original.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("stock", "term"), PAIRS)
def test_regularized_adds_the_terms_to_the_stock_loss(stock, term):
    cfg = config(f"regularized_{stock}", **settings_of(stock, term))
    step = step_input(next(Activations(0.5)))
    step.coefficients = {"l1": 1.0, "l0": 1.0}
    stock_out = make_sae(config(stock)).training_forward_pass(step)
    out = make_sae(cfg).training_forward_pass(step)
    names = set(out.losses) - set(stock_out.losses)
    expected = set(TERMS) - {"all"} if term == "all" else {term}
    assert names == (expected - {"arip_loss"} if "matching" in stock else expected)
    torch.testing.assert_close(out.loss, stock_out.loss + sum(out.losses[name] for name in names))
    torch.testing.assert_close(out.losses["mse_loss"], stock_out.losses["mse_loss"])


def test_every_architecture_with_every_term_exports_a_stock_sae(tmp_path):
    """Trained here, loaded and used where this package was never imported."""
    x = next(Activations(0.5, start=5000))
    torch.save(x, tmp_path / "x.pt")
    expected = {}
    for stock, term in PAIRS:
        name = f"{stock}-{term}"
        sae = train_sae(config(f"regularized_{stock}", **settings_of(stock, term)), n_steps=8)
        assert sae.n_steps == 8
        sae.save_inference_model(tmp_path / name)
        sae.save_model(tmp_path / f"{name}-checkpoint")
        again = TrainingSAE.load_from_disk(tmp_path / f"{name}-checkpoint")
        for key, value in sae.state_dict().items():
            # SAELens itself casts batchtopk's threshold to the SAE's precision when it loads
            torch.testing.assert_close(again.state_dict()[key], value, check_dtype=False)
        expected[name] = STOCK[stock]
    code = """
import json, sys, torch
from pathlib import Path
from sae_lens import SAE
folder = Path(sys.argv[1])
x = torch.load(folder / "x.pt")
found = {}
for name in json.loads(sys.argv[2]):
    sae = SAE.load_from_disk(folder / name)
    assert sae(x).isfinite().all() and sae(x).shape == x.shape
    found[name] = sae.cfg.architecture()
assert "sae_lens_isae" not in sys.modules
print(json.dumps(found))
"""
    assert json.loads(run_python(code, tmp_path, json.dumps(list(expected)))) == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("term", ["self_consistency_loss", "wsae_loss", "all"])
def test_the_papers_variants_with_every_term(variant, term, tmp_path):
    settings = {"arip_weight": 0.0, **TERMS[term]}
    sae = train_sae(replace(isae_config(variant), **settings), n_steps=8)
    assert set(sae.loss_terms) == (set(TERMS) - {"all"} if term == "all" else {term})
    sae.save_inference_model(tmp_path)
    x = next(Activations(0.5, start=5000))
    torch.testing.assert_close(SAE.load_from_disk(tmp_path)(x), sae(x))


@pytest.mark.parametrize(
    "make_config",
    [
        lambda weight: isae_config("iSAE", arip_weight=weight),
        # stock losses are not on the unit-norm scale: the data's squared norm is about 200
        lambda weight: config("regularized_abstopk", arip_weight=200 * weight),
    ],
)
def test_the_regulariser_lowers_arip(make_config):
    """More weight, better conditioned dictionary, on the supports that the SAE looks at."""
    x = next(Activations(0.5, start=5000))
    measured = []
    for weight in (0.0, 1.0):
        sae = train_sae(make_config(weight), n_steps=150)
        _, pre = sae.encode_with_hidden_pre(x)
        supports = select_largest(pre, 2 * K, signed=True).indices
        measured.append(r_arip(gram_eigenvalues(sae.W_dec, supports)).mean())
    assert measured[1] < 0.8 * measured[0]


def test_matching_pursuit_has_no_arip():
    with pytest.raises(ValueError, match="arip_weight: matching pursuit"):
        config("regularized_matching_pursuit", arip_weight=0.1)
