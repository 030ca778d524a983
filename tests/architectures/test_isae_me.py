"""The multistep encoder against equation 10 written out."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE
from torch.nn.functional import normalize

from sae_lens_isae import ISAEMESAE, ISAEMESAEConfig
from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.sparse import to_dense
from tests.architectures.test_recipe import step_input
from tests.conftest import (
    D_IN,
    D_SAE,
    Activations,
    K,
    isae_config,
    make_sae,
    make_trainer,
    train_sae,
)


def abstopk(u: torch.Tensor, k: int) -> torch.Tensor:
    threshold = u.abs().sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.where(u.abs() >= threshold, u, 0)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("step_matrix", ["full", "tied"])
def test_encoder_is_equation_10(steps, step_matrix):
    torch.manual_seed(0)
    sae = ISAEMESAE(
        ISAEMESAEConfig(
            D_IN, D_SAE, k=K, dtype="float64", encoder_steps=steps, step_matrix=step_matrix
        )
    )
    x = torch.randn(20, D_IN, dtype=torch.float64)
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.W_enc.normal_()
        if step_matrix == "full":
            sae.S.normal_(std=0.3)
        # the paper's column convention: z = AbsTopK(S z + W (x - b))
        D, W, b = sae.W_dec.T, sae.W_enc.T, sae.b_dec
        S = sae.S.T if step_matrix == "full" else torch.eye(D_SAE).double() - W @ D
        expected = torch.zeros(20, D_SAE, dtype=torch.float64)
        for _ in range(steps):
            expected = abstopk(expected @ S.T + (x - b) @ W.T, K)
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae(x), expected @ D.T + b)


def test_one_step_is_the_linear_encoder():
    x = next(Activations(0.5))
    linear = make_sae(isae_config("iSAE"))
    multistep = make_sae(isae_config("iSAE-ME", encoder_steps=1))
    torch.testing.assert_close(multistep.encode(x), linear.encode(x))


def test_topk_activation_gives_non_negative_codes():
    sae = make_sae(isae_config("iSAE-ME topk", step_matrix="full"))
    with torch.no_grad():
        sae.S.normal_(std=0.1)
    codes = sae.encode(next(Activations()))
    assert (codes >= 0).all()
    assert ((codes != 0).sum(-1) <= K).all()


def test_the_step_matrix_is_learned_and_gradients_are_right():
    torch.manual_seed(0)
    sae = make_sae(isae_config("iSAE-ME full", dtype="float64"))
    with torch.no_grad():
        sae.S.normal_(std=0.05)
    x = next(Activations()).double()[:4]

    def loss_of_S(S):
        return torch.func.functional_call(sae, {"S": S}, (x,)).pow(2).sum()

    assert torch.autograd.gradcheck(loss_of_S, (sae.S.detach().requires_grad_(),))


def test_warm_up_leaves_the_step_matrix_alone():
    sae = make_sae(isae_config("iSAE-ME full", encoder_warm_up_steps=3))
    trainer = make_trainer(sae, Activations(0.5), 10)
    seen = []
    for _ in range(5):
        trainer.step(next(trainer.data_provider))
        seen.append(bool(sae.S.any()))
    assert seen == [False, False, False, True, True]


def test_resampling_comes_when_it_is_due():
    sae = make_sae(isae_config("iSAE", resample_until=6, resample_every=2))
    data, dead = Activations(), torch.arange(D_SAE) < 6
    moved_at = []
    for step in range(9):
        before = sae.W_enc.detach().clone()
        sae.training_forward_pass(step_input(next(data), dead, step))
        changed = (sae.W_enc != before).any(0)
        if changed.any():
            assert not changed[~dead].any()
            # one latent in 16 at once
            assert changed.sum() == D_SAE // 16
            moved_at.append(step)
    assert moved_at == [2, 4, 6]


def test_no_resampling_after_the_end_or_by_default():
    for settings in ({}, {"resample_until": 1, "resample_every": 1}):
        sae = make_sae(isae_config("iSAE", **settings))
        data, dead = Activations(), torch.arange(D_SAE) < 6
        for step in range(2):
            sae.training_forward_pass(step_input(next(data), dead, step))
        before = sae.W_enc.detach().clone()
        sae.training_forward_pass(step_input(next(data), dead, 2))
        assert torch.equal(sae.W_enc, before)


def test_pre_activation_hook_sees_the_linear_pre_activation():
    sae = ISAEMESAE(ISAEMESAEConfig(D_IN, D_SAE, k=K))
    x = torch.randn(3, D_IN)
    _, cache = sae.run_with_cache(x)
    torch.testing.assert_close(cache["hook_sae_acts_pre"], x @ sae.W_enc)
    torch.testing.assert_close(cache["hook_sae_acts_post"], sae.encode(x))


@pytest.mark.parametrize("activation", ["abstopk", "topk"])
@pytest.mark.parametrize("candidates", [1, 1.5, 100])
def test_later_steps_choose_among_the_candidates_of_the_first(candidates, activation, tmp_path):
    double = {"activation": activation, "dtype": "float64"}
    sae = train_sae(isae_config("iSAE-ME", candidates=candidates, **double), n_steps=8)
    sae.fold_W_dec_norm()
    x = next(Activations(0.5, start=99)).double()
    linear = (x - sae.b_dec) @ sae.W_enc
    ranked = linear.abs() if activation == "abstopk" else linear
    n = min(round(candidates * K), D_SAE)
    allowed = torch.zeros_like(linear).scatter(-1, ranked.topk(n, dim=-1).indices, 1.0) > 0
    codes = sae.encode(x)
    assert not codes[~allowed].any()
    of_training = sae.encode_codes(x - sae.b_dec, normalize(sae.W_dec, dim=-1))
    dense = to_dense(of_training.indices, of_training.values, D_SAE)
    torch.testing.assert_close(dense, codes)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(SAE.load_from_disk(tmp_path).encode(x), codes)
    free = make_sae(isae_config("iSAE-ME", **double)).eval()
    free.load_state_dict(sae.state_dict())
    equal = torch.allclose(free.encode(x), codes)
    assert equal == (candidates == 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0.5}, "candidates"),
        ({"candidates": float("nan")}, "candidates"),
        ({"candidates": 2, "step_matrix": "full"}, "step_matrix='tied'"),
    ],
)
def test_candidates_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        isae_config("iSAE-ME", **settings)
