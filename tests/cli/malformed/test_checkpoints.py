"""Damaged configs and weights get one sentence that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.malformed.damage import (
    CFG,
    GOOD_DATA,
    WEIGHTS,
    config_with,
    for_model,
    made_folder,
    replaced,
    weights_with,
)
from tests.conftest import D_IN, D_SAE, isae_config, make_sae

NAN = torch.full((D_SAE, D_IN), float("nan"))
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "config empty": (lambda p: replaced(p, f"a/{CFG}", ""), "a/cfg.json is not the config"),
    "config no JSON": (lambda p: replaced(p, f"a/{CFG}", "{k: 3"), "a/cfg.json is not the config"),
    "config list": (lambda p: replaced(p, f"a/{CFG}", "[1]"), "it holds no mapping"),
    "config null": (lambda p: replaced(p, f"a/{CFG}", "null"), "it holds no mapping"),
    "config not UTF-8": (lambda p: replaced(p, f"a/{CFG}", b"\xff\xfe{}"), "a/cfg.json"),
    "config no SAE's": (lambda p: replaced(p, f"a/{CFG}", '{"vocab": 3}'), "a cannot be loaded"),
    "config folder": (lambda p: made_folder(p, f"a/{CFG}"), "'a' is neither a folder with"),
    "architecture unknown": (lambda p: config_with(p, architecture="relu6"), "'relu6'"),
    "architecture of training": (
        lambda p: config_with(p, architecture="regularized_topk"),
        "load the exported SAE",
    ),
    "architecture null": (lambda p: config_with(p, architecture=None), "architecture None"),
    "architecture list": (lambda p: config_with(p, architecture=["topk"]), "a: SAELens has no"),
    "architecture another": (lambda p: config_with(p, architecture="gated"), "a cannot be loaded"),
    "k string": (lambda p: config_with(p, k="3"), "a cannot be loaded"),
    "k negative": (lambda p: config_with(p, k=-3), "a cannot be loaded"),
    "k null": (lambda p: config_with(p, k=None), "a cannot be loaded"),
    "k too large": (lambda p: config_with(p, k=D_SAE + 1), "a cannot be loaded"),
    "k list": (lambda p: config_with(p, k=[3]), "a cannot be loaded"),
    "d_in string": (lambda p: config_with(p, d_in="16"), "a cannot be loaded"),
    "d_in another": (lambda p: config_with(p, d_in=D_IN + 1), "a cannot be loaded"),
    "d_in negative": (lambda p: config_with(p, d_in=-1), "a cannot be loaded"),
    "d_sae another": (lambda p: config_with(p, d_sae=D_SAE + 1), "a cannot be loaded"),
    "d_sae huge": (lambda p: config_with(p, d_sae=10**15), "a cannot be loaded"),
    "dtype unknown": (lambda p: config_with(p, dtype="float7"), "a cannot be loaded"),
    "dtype number": (lambda p: config_with(p, dtype=32), "a cannot be loaded"),
    "metadata text": (lambda p: config_with(p, metadata="m"), "a/cfg.json"),
    "metadata list": (lambda p: config_with(p, metadata=[1]), "a"),
    "normalization unknown": (lambda p: config_with(p, normalize_activations="x"), "a cannot be"),
    "version garbage": (lambda p: config_with(p, sae_lens_version="new"), "a/cfg.json"),
    "weights missing": (lambda p: (p / "a" / WEIGHTS).unlink(), f"a has no {WEIGHTS}"),
    "weights empty": (lambda p: replaced(p, f"a/{WEIGHTS}", ""), f"a/{WEIGHTS} cannot be read"),
    "weights garbage": (lambda p: replaced(p, f"a/{WEIGHTS}", b"\0" * 99), f"a/{WEIGHTS}"),
    "weights cut off": (
        lambda p: replaced(p, f"a/{WEIGHTS}", (p / "a" / WEIGHTS).read_bytes()[:-9]),
        f"a/{WEIGHTS} cannot be read",
    ),
    "weights folder": (lambda p: made_folder(p, f"a/{WEIGHTS}"), f"a has no {WEIGHTS}"),
    "weights without W_dec": (lambda p: weights_with(p, drop="W_dec"), "a cannot be loaded"),
    "weights without b_dec": (lambda p: weights_with(p, drop="b_dec"), "a cannot be loaded"),
    "weights with more": (lambda p: weights_with(p, S=torch.zeros(3)), "a cannot be loaded"),
    "weights misshapen": (
        lambda p: weights_with(p, W_enc=torch.zeros(D_IN, 3)),
        "a cannot be loaded",
    ),
    "weights turned": (lambda p: weights_with(p, W_dec=NAN.T), "a cannot be loaded"),
    "weights scalar": (lambda p: weights_with(p, W_dec=torch.tensor(1.0)), "a cannot be loaded"),
    "weights integer": (lambda p: weights_with(p, W_dec=NAN.nan_to_num().long()), "a"),
    "weights NaN": (lambda p: weights_with(p, W_dec=NAN), "a: W_dec holds NaN or Inf"),
    "weights infinite": (
        lambda p: weights_with(p, W_enc=torch.full((D_IN, D_SAE), torch.inf)),
        "a: W_enc holds NaN or Inf",
    ),
    "weights beyond float32": (
        lambda p: weights_with(p, W_dec=NAN.nan_to_num().double() + 1e300),
        "a: W_dec holds NaN or Inf",
    ),
    "weights overflowing": (
        lambda p: weights_with(p, W_dec=torch.full((D_SAE, D_IN), 3e38)),
        "too long for float32",
    ),
    "weights all zero": (
        lambda p: weights_with(p, W_dec=torch.zeros(D_SAE, D_IN)),
        "no sample has an active latent",
    ),
    "bias NaN": (lambda p: weights_with(p, b_dec=NAN[0]), "a: b_dec holds NaN"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case, place, said):
    damage, words = CHECKPOINTS[case]
    damage(place)
    assert words in said("audit", "a", "--activations", GOOD_DATA, "--samples", 60)
    assert not (place / "audit_report").exists()


def test_a_threshold_that_is_nan(place, said):
    weights_with(place, "jumprelu", threshold=torch.full((D_SAE,), float("nan")))
    sentence = said("audit", "jumprelu", "--activations", GOOD_DATA)
    assert "jumprelu: threshold holds NaN" in sentence


def test_a_model_of_another_width_is_named(tiny_model, place, said):
    make_sae(isae_config("AbsTopK", d_in=D_IN + 1)).save_inference_model(place / "a")
    for_model(place, tiny_model[0])
    sentence = said("audit", "a", "--text", tiny_model[1], "--samples", 20)
    assert f"has d_in {D_IN + 1}, the model has {D_IN} there" in sentence
