"""Stock architectures with loss terms train as stock and export as stock."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class

from sae_lens_isae.losses.arip import gram_eigenvalues, r_arip
from sae_lens_isae.ops.selection import select_largest
from tests.architectures.test_recipe import step_input
from tests.conftest import D_IN, D_SAE, Activations, K, isae_config, make_sae, train_sae

TWINS = {
    "topk": "topk",
    "abstopk": "abstopk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}


def config(architecture, **settings):
    if "matryoshka" in architecture:
        settings["matryoshka_widths"] = [D_SAE // 2, D_SAE]
    return get_sae_training_class(architecture)[1](d_in=D_IN, d_sae=D_SAE, k=K, **settings)


@pytest.mark.parametrize("stock", TWINS)
def test_twin_without_terms_trains_like_stock(stock):
    twin = train_sae(config(f"regularized_{stock}"))
    original = train_sae(config(stock))
    for name, value in original.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("stock", TWINS)
def test_twin_adds_the_term_and_exports_stock(stock, tmp_path):
    cfg = config(f"regularized_{stock}", arip_weight=0.1)
    x = next(Activations(0.5))
    stock_out = make_sae(config(stock)).training_forward_pass(step_input(x))
    out = make_sae(cfg).training_forward_pass(step_input(x))
    assert set(out.losses) == {*stock_out.losses, "arip_loss"}
    torch.testing.assert_close(out.loss, stock_out.loss + out.losses["arip_loss"])
    train_sae(cfg).save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == TWINS[stock]
    assert type(loaded).__module__.startswith("sae_lens.")


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
