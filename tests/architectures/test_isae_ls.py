"""Coefficients by least squares: in training, in what is exported, and for any SAE afterwards."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from torch.nn.functional import normalize

from sae_lens_isae import ISAELSTrainingSAEConfig, LinearSAE, pairwise_identifiability, refit
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.supports import least_squares_gap
from sae_lens_isae.solvers import SparseCodes
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

FAMILIES = ["standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit", "isae_me"]


def inference_sae(architecture, **settings):
    torch.manual_seed(0)
    sae_class, config_class = get_sae_class(architecture)
    if architecture in ("topk", "abstopk", "isae_me"):
        settings["k"] = K
    if architecture == "matching_pursuit":
        settings["max_iterations"] = K
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **settings))
    for name, parameter in sae.named_parameters():
        with torch.no_grad():
            parameter.normal_(0, 0.3)
            if name == "threshold":
                parameter.abs_()
    if architecture == "matching_pursuit":
        sae.W_dec.data = normalize(sae.W_dec.data, dim=-1)
    return sae


def error(sae, x):
    return (sae(x) - x).square().sum(-1)


@pytest.mark.parametrize("candidates", [1.0, 1.5])
@pytest.mark.parametrize("activation", ["abstopk", "topk"])
@pytest.mark.parametrize("reaches", [False, True])
def test_gradient_is_that_through_the_solution(activation, reaches, candidates):
    """In float64, against autograd through a solver: the solution needs no gradient of its own."""
    cfg = ISAELSTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        dtype="float64",
        activation=activation,
        arip_weight=0.0,
        linear_loss_weight=0.7,
        candidates=candidates,
        linear_loss_reaches_atoms=reaches,
    )
    sae = make_sae(cfg)
    x = next(Activations(0.5)).double()
    sae.initialize_bias(x)
    sae.training_forward_pass(step_input(x)).loss.backward()

    W_enc, W_dec, b = (
        p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_dec)
    )
    atoms = normalize(W_dec, dim=-1)
    linear = (x - b) @ W_enc
    chosen = (linear.abs() if activation == "abstopk" else linear).topk(K, dim=-1).indices
    values = linear.gather(-1, chosen)
    if activation == "topk":
        values = values.relu()
    solved_for = sae.encode(x).abs().topk(K, dim=-1).indices
    active = sae.encode(x).gather(-1, solved_for) != 0
    rows = atoms[solved_for] * active[..., None]
    solved = torch.linalg.pinv(rows.mT) @ (x - b)[..., None]
    weight = 1 / x.square().sum(-1)
    loss = (weight * ((solved.mT @ rows)[:, 0] + b - x).square().sum(-1)).mean()
    rows, bias = (atoms[chosen], b) if reaches else (atoms[chosen].detach(), b.detach())
    of_encoder = (values[:, None] @ rows)[:, 0] + bias
    loss = loss + 0.7 * (weight * (of_encoder - x).square().sum(-1)).mean()
    loss.backward()
    for found, expected in ((sae.W_enc, W_enc), (sae.W_dec, W_dec), (sae.b_dec, b)):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("candidates", [1.0, 2.0])
@pytest.mark.parametrize("variant", ["iSAE-LS", "iSAE-LS topk"])
def test_what_is_exported_solves_for_its_codes(variant, candidates, tmp_path):
    """Assumption A6 as `isae audit` measures it."""
    sae = train_sae(
        isae_config(
            variant, normalize_activations="expected_average_only_in", candidates=candidates
        )
    )
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == ("topk_ls" if "topk" in variant else "abstopk_ls")
    assert loaded.cfg.candidates == candidates
    x = next(Activations(0.5, start=99))
    assert ((loaded.encode(x) != 0).sum(-1) <= K).all()
    torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-3, atol=1e-4)
    linear = LinearSAE(loaded)
    code = linear.encode(x)
    gap, _ = least_squares_gap(linear.atoms, SparseCodes.from_dense(code.codes), x - code.offset)
    assert gap.max() < 1e-3
    if "topk" in variant:
        assert (code.codes >= 0).all()
    assert code.hidden_pre is not None


@pytest.mark.parametrize("variant", ["iSAE", "TopK"])
def test_a_checkpoint_of_training_loads_for_inference(variant, tmp_path):
    cfg = isae_config("iSAE-LS" if variant == "iSAE" else "iSAE-LS topk")
    sae = train_sae(cfg, n_steps=4)
    sae.save_model(tmp_path)
    x = next(Activations(0.5, start=99))
    torch.testing.assert_close(SAE.load_from_disk(tmp_path).encode(x), sae.encode(x))


def test_until_it_solves_it_is_isae():
    plain = make_sae(isae_config("iSAE"))
    later = make_sae(isae_config("iSAE-LS", solve_after_steps=5))
    for n_steps, equal in ((5, True), (6, False)):
        for sae in (plain, later):
            make_trainer(sae, Activations(0.5), n_steps, lr_end=3e-3).fit()
        assert torch.equal(plain.W_dec, later.W_dec) == equal
        plain, later = make_sae(isae_config("iSAE")), make_sae(later.cfg)


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_refit_keeps_the_supports_and_lowers_the_error(architecture, normalization, tmp_path):
    sae = inference_sae(architecture, normalize_activations=normalization)
    x = 3 * next(Activations(0.5))
    before, error_before = sae.encode(x), error(sae, x)
    solved = refit(sae)
    after = solved.encode(x)
    assert (error(solved, x) <= error_before * (1 + 1e-4)).all()
    assert error(solved, x).mean() < 0.99 * error_before.mean() or architecture.startswith("match")
    assert ((before != 0) | (after == 0)).all()
    if architecture != "isae_me" and not (before < 0).any():
        assert (after >= 0).all()
    torch.testing.assert_close(sae.encode(x), before)

    solved.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == f"{architecture}_ls"
    torch.testing.assert_close(loaded.encode(x), after)
    # folding and the form x = D z + b leave what is rebuilt as it is
    linear = LinearSAE(loaded)
    code = linear.encode(x)
    torch.testing.assert_close(
        linear.decode(code.codes, code.offset), solved(x), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_more_candidates_lower_the_error_further(architecture, tmp_path):
    sae, x = inference_sae(architecture), next(Activations(0.5))
    errors = [error(refit(sae, candidates), x).mean() for candidates in (1, 1.5, 2)]
    assert errors[0] > errors[1] > errors[2]
    solved = refit(sae, 2)
    solved.save_model(tmp_path)
    torch.testing.assert_close(SAE.load_from_disk(tmp_path).encode(x), solved.encode(x))
    codes = solved.encode(x)
    assert ((codes != 0).sum(-1) <= K).all()
    # what stays was among what the encoder ranks first
    ranked = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    ranked = ranked.abs() if architecture == "abstopk" else ranked
    proposed = torch.zeros_like(codes).scatter(-1, ranked.topk(2 * K, dim=-1).indices, 1.0)
    assert ((codes != 0) <= (proposed != 0)).all()


def test_refit_is_folded():
    sae = inference_sae("jumprelu")
    # few latents, so that there is one solution
    sae.threshold.data += 5
    solved = refit(sae)
    x = next(Activations(0.5))
    expected = solved(x)
    solved.fold_W_dec_norm()
    torch.testing.assert_close(solved(x), expected, rtol=1e-3, atol=1e-3)


def test_a_latent_that_a_hook_switches_off_stays_off():
    solved = refit(inference_sae("abstopk"))
    x = next(Activations(0.5))
    code = solved.encode(x)
    latent = int((code != 0).sum(0).argmax())

    def switch_off(acts, hook):
        acts[:, latent] = 0
        return acts

    with solved.hooks(fwd_hooks=[("hook_sae_acts_post", switch_off)]):
        ablated = solved.encode(x)
    expected = code.clone()
    expected[:, latent] = 0
    torch.testing.assert_close(ablated, expected)


def test_zero_activations_and_tokens_in_contexts_have_finite_codes():
    solved = refit(inference_sae("abstopk"))
    x = next(Activations(0.5)).view(4, -1, D_IN)
    x[0, 0] = solved.b_dec.detach()
    assert solved.encode(x).isfinite().all()
    torch.testing.assert_close(solved.encode(x)[1], solved.encode(x[1]))


@pytest.mark.parametrize("n", [5, 0])
def test_activations_without_a_latent_have_an_empty_code(n):
    sae = inference_sae("jumprelu")
    sae.threshold.data += 1e6
    solved = refit(sae)
    x = torch.randn(n, D_IN)
    assert solved.encode(x).shape == (n, D_SAE)
    torch.testing.assert_close(solved(x), sae(x))


def test_refitted_saes_are_compared(tmp_path):
    saes = {}
    for seed in (0, 1):
        train_sae(isae_config("iSAE"), seed=seed).save_inference_model(tmp_path / str(seed))
        saes[str(seed)] = SAE.load_from_disk(tmp_path / str(seed))
    x = next(Activations(0.5, start=99))
    before = pairwise_identifiability(saes, x, progress=False)
    solved = {name: refit(sae) for name, sae in saes.items()}
    after = pairwise_identifiability(solved, x, progress=False)
    assert after.pairs[0].dcs == before.pairs[0].dcs
    assert after.pairs[0].sae.iou.value == pytest.approx(before.pairs[0].sae.iou.value)
    for one, other in zip(after.saes, before.saes, strict=True):
        assert one.mse < other.mse


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_sae(isae_config("iSAE")), "save_inference_model"),
        (lambda: refit(inference_sae("topk")), "'topk_ls'"),
        (lambda: refit(inference_sae("topk"), 0.5), "must be >= 1, got 0.5"),
        (lambda: refit(inference_sae("jumprelu"), 2), "candidates must be 1 for 'jumprelu'"),
        (
            lambda: get_sae_class("transcoder")[0](
                get_sae_class("transcoder")[1](d_in=4, d_out=4, d_sae=8, apply_b_dec_to_input=False)
            ),
            "'transcoder'",
        ),
    ],
)
def test_what_cannot_be_refitted_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        refit(make())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"linear_loss_weight": 0.0}, "linear_loss_weight"),
        ({"linear_loss_weight": float("nan")}, "linear_loss_weight"),
        ({"solve_after_steps": -1}, "solve_after_steps"),
        ({"candidates": 0.9}, "candidates is a multiple of k"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        isae_config("iSAE-LS", **settings)
