"""WSAE reweighting against its definition; semantic consistency against counting by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_lens_isae import RegularizedTopKTrainingSAEConfig
from sae_lens_isae.losses import semantic_consistency
from tests.architectures.test_recipe import step_input
from tests.conftest import (
    BATCH,
    D_IN,
    D_SAE,
    Activations,
    K,
    isae_config,
    make_sae,
    make_trainer,
)


def config(**changes):
    return RegularizedTopKTrainingSAEConfig(D_IN, D_SAE, k=K, **changes)


def scaled(n_batches):
    """Batches whose dimensions have different variances and means."""
    data = Activations(3.0)
    scale = torch.linspace(0.2, 3, D_IN)
    return [next(data) * scale for _ in range(n_batches)]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_total_is_the_weighted_loss_and_mse_stays_unweighted(alpha):
    sae = make_sae(config(wsae_alpha=alpha))
    batches = scaled(4)
    for x in batches:
        out = sae.training_forward_pass(step_input(x))
    weights = torch.cat(batches).double().var(dim=0, correction=0) ** (2 * alpha)
    weights = weights / weights.mean()
    squared = (out.sae_out - batches[-1]).double() ** 2
    weighted = (weights * squared).sum(1).mean()
    total = out.losses["mse_loss"] + out.losses["wsae_loss"]
    assert total.item() == pytest.approx(weighted.item(), rel=1e-5)
    assert out.losses["mse_loss"].item() == pytest.approx(squared.sum(1).mean().item(), rel=1e-5)
    assert out.metrics == {}
    logged = sae.training_forward_pass(replace(step_input(batches[-1]), is_logging_step=True))
    assert logged.metrics["wsae_weighted_mse"].item() == pytest.approx(
        (logged.losses["mse_loss"] + logged.losses["wsae_loss"]).item(), rel=1e-5
    )


def test_on_the_recipe_the_loss_is_on_unit_norm_inputs():
    sae = make_sae(replace(isae_config("iSAE"), wsae_alpha=1.0))
    (x,) = scaled(1)
    out = sae.training_forward_pass(step_input(x))
    weights = x.double().var(dim=0, correction=0) ** 2
    weights = weights / weights.mean()
    squared = (out.sae_out - x).double() ** 2 / x.double().pow(2).sum(1, keepdim=True)
    total = out.losses["mse_loss"] + out.losses["wsae_loss"]
    assert total.item() == pytest.approx((weights * squared).sum(1).mean().item(), rel=1e-5)


def test_statistics_go_through_checkpoints_in_full_precision(tmp_path):
    sae = make_sae(config(wsae_alpha=1.0, dtype="bfloat16"))
    batches = scaled(300)
    for x in batches:
        sae.loss_terms["wsae_loss"].observe(x)
    sae.save_model(tmp_path)
    resumed = make_sae(config(wsae_alpha=1.0, dtype="bfloat16"))
    resumed.load_weights_from_checkpoint(tmp_path)
    resumed.to(torch.bfloat16)
    term = resumed.loss_terms["wsae_loss"]
    assert term.n_samples == 300 * BATCH
    torch.testing.assert_close(
        term.statistic, torch.cat(batches).var(dim=0, correction=0), rtol=1e-4, atol=0
    )


def test_reweighting_moves_the_error_to_unimportant_dimensions():
    """Noise of equal size everywhere; what differs is the variance of the signal."""
    x = torch.cat(scaled(20))
    shares = []
    for alpha in (0.0, 1.0):
        sae = make_sae(config(wsae_alpha=alpha))
        make_trainer(sae, iter(scaled(200)), 200).fit()
        squared = (sae(x) - x).pow(2).mean(0)
        shares.append((squared[D_IN // 2 :].sum() / squared.sum()).item())
    assert shares[1] < shares[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n_classes=st.integers(1, 5))
def test_semantic_consistency_is_the_share_of_the_most_frequent_label(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(30, 4, generator=generator)
    activations[0] = 1.0
    labels = torch.randint(-7, -7 + n_classes, (30,), generator=generator)
    found = semantic_consistency(activations, labels)
    for j in range(4):
        counted = Counter(labels[activations[:, j] > 0].tolist())
        expected = max(counted.values()) / counted.total()
        assert found[j].item() == pytest.approx(expected)


def labelled_file(tmp_path, **changes):
    data = {
        "activations": torch.randn(50, D_IN).abs(),
        "labels": torch.arange(50) % 3,
        **changes,
    }
    file = tmp_path / "labelled.safetensors"
    save_file({name: tensor for name, tensor in data.items() if tensor is not None}, file)
    return file, data


def test_labels_decide_the_weights(tmp_path):
    file, data = labelled_file(tmp_path)
    cfg = config(
        wsae_alpha=0.5,
        wsae_statistic="semantic_consistency",
        wsae_labelled_activations=str(file),
    )
    sae = make_sae(cfg)
    for x in scaled(3):
        sae.training_forward_pass(step_input(x))
    consistency = semantic_consistency(data["activations"], data["labels"])
    expected = consistency / consistency.mean()
    torch.testing.assert_close(sae.loss_terms["wsae_loss"].squared_weights(), expected)
    sae.save_model(tmp_path / "checkpoint")
    file.unlink()
    resumed = make_sae(cfg)
    resumed.load_weights_from_checkpoint(tmp_path / "checkpoint")
    resumed.training_forward_pass(step_input(scaled(1)[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"lacks \['labels'\]"),
        ({"labels": torch.zeros(49, dtype=torch.long)}, "one label for each sample"),
        ({"labels": torch.zeros(50)}, "labels must be integers"),
        ({"activations": torch.randn(50, D_IN + 1)}, f"but d_in is {D_IN}"),
        ({"activations": torch.full((50, D_IN), float("nan"))}, "NaN or Inf"),
        ({"activations": -torch.ones(50, D_IN)}, "dimensions 0, 1, 2, 3, 4 and 11 more"),
    ],
)
def test_bad_labels_are_named_before_training(changes, message, tmp_path):
    file, _ = labelled_file(tmp_path, **changes)
    sae = make_sae(
        config(
            wsae_alpha=1.0,
            wsae_statistic="semantic_consistency",
            wsae_labelled_activations=str(file),
        )
    )
    before = sae.W_dec.clone()
    with pytest.raises(ValueError, match=message):
        make_trainer(sae, iter(scaled(3)), 3).fit()
    assert torch.equal(before, sae.W_dec)


def test_a_missing_file_is_named():
    sae = make_sae(
        config(
            wsae_alpha=1.0,
            wsae_statistic="semantic_consistency",
            wsae_labelled_activations="nowhere.safetensors",
        )
    )
    with pytest.raises(ValueError, match=r"cannot read nowhere\.safetensors"):
        sae.training_forward_pass(step_input(scaled(1)[0]))


def test_dimensions_without_variance_are_named():
    (x,) = scaled(1)
    x[:, [2, 5]] = 3.0
    sae = make_sae(config(wsae_alpha=1.0))
    with pytest.raises(ValueError, match="zero variance on dimensions 2, 5"):
        sae.training_forward_pass(step_input(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wsae_alpha": -0.5}, "between 0 and 2, got -0.5"),
        (
            {"wsae_alpha": 0.5, "normalize_activations": "covariance_whitening"},
            "does nothing on whitened activations",
        ),
        ({"wsae_alpha": 2.5}, "between 0 and 2, got 2.5"),
        ({"wsae_alpha": float("nan")}, "between 0 and 2, got nan"),
        ({"wsae_statistic": "kurtosis"}, "one of"),
        ({"wsae_alpha": 1.0, "wsae_statistic": "semantic_consistency"}, "must name a file"),
        ({"wsae_alpha": 1.0, "wsae_labelled_activations": "x"}, "and only for it"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
