"""Changes to an optimizer that somebody else built, and none to any other."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks

from sae_lens_isae.ops.optimizer import OptimizerChanges, forget_moments, fuse_adam
from tests.conftest import D_SAE, Activations, isae_config, make_sae, make_trainer


def adam_of(*weights, **settings):
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    return torch.optim.Adam(weights, lr=0.01, **settings)


def hooks_since(before):
    """Others may go away meanwhile, with owners that are no longer in use."""
    return set(_global_optimizer_pre_hooks) - before


def test_only_the_optimizer_of_the_parameter_is_changed():
    """Beside a foreign SGD and a foreign Adam, before, between and after."""
    mine, other, third = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    adam, foreign = adam_of(mine), adam_of(other)
    sgd = torch.optim.SGD([third], lr=0.1)
    third.grad = torch.ones(2)
    changes = OptimizerChanges()
    changes.request(mine, fuse_adam)
    for optimizer in (sgd, foreign, adam, foreign, sgd, adam):
        optimizer.step()
    assert adam.param_groups[0]["fused"]
    assert not foreign.param_groups[0]["fused"]
    assert third.tolist() == pytest.approx([0.8, 0.8])


def test_the_hook_goes_away_after_use():
    before = set(_global_optimizer_pre_hooks)
    weight = torch.nn.Parameter(torch.ones(2))
    adam, changes, seen = adam_of(weight), OptimizerChanges(), []
    changes.request(weight, seen.append)
    changes.tidy_up()
    assert len(hooks_since(before)) == 1
    adam.step()
    adam.step()
    assert seen == [adam]
    changes.tidy_up()
    assert not hooks_since(before)


def test_several_may_wait_and_one_that_waits_for_nothing_goes_with_its_owner():
    before = set(_global_optimizer_pre_hooks)
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [adam_of(weight) for weight in weights]
    changes = [OptimizerChanges() for _ in range(3)]
    for owner, weight in zip(changes, [*weights, torch.nn.Parameter(torch.ones(2))], strict=True):
        owner.request(weight, fuse_adam)
    for optimizer in optimizers:
        optimizer.step()
    assert all(o.param_groups[0]["fused"] for o in optimizers)
    assert len(hooks_since(before)) == 3
    del changes, owner
    gc.collect()
    assert not hooks_since(before)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_fused_adam_updates_alike(steps_before):
    """Also when the optimizer's state exists already, as after a resume."""
    trained = []
    for fuse in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12))
        optimizer = torch.optim.Adam([weight], lr=0.01)
        for step in range(steps_before + 5):
            if fuse and step == steps_before:
                fuse_adam(optimizer)
            weight.grad = (weight.detach() - 0.3) * (step + 1)
            optimizer.step()
        trained.append(weight.detach().clone())
        assert optimizer.state[weight]["step"].item() == steps_before + 5
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)


def test_a_choice_made_by_hand_and_another_optimizer_are_kept():
    weight = torch.nn.Parameter(torch.zeros(2))
    by_hand, other = adam_of(weight, foreach=True), torch.optim.AdamW([weight])
    for optimizer in (by_hand, other):
        fuse_adam(optimizer)
        assert not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("fused_adam", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_option_decides_on_a_gpu_and_no_hook_is_left(device, fused_adam):
    before = set(_global_optimizer_pre_hooks)
    sae = make_sae(isae_config("iSAE", device=device, fused_adam=fused_adam))
    trainer = make_trainer(sae, Activations(), 4, device=device)
    trainer.fit()
    assert bool(trainer.optimizer.param_groups[0]["fused"]) == (fused_adam and device == "cuda")
    assert not hooks_since(before)


def test_moments_of_chosen_entries_are_forgotten_and_no_others():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = adam_of(weight)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state[weight])
    forget_moments([(weight, torch.tensor([[False], [True], [False]]))])(optimizer)
    for name in ("exp_avg", "exp_avg_sq"):
        expected = kept[name].clone()
        expected[1] = 0
        assert torch.equal(optimizer.state[weight][name], expected)
    assert optimizer.state[weight]["step"] == 1


@pytest.mark.parametrize("variant", ["iSAE", "iSAE-ME full"])
def test_moved_latents_start_with_fresh_moments(variant, monkeypatch):
    """Right after the resampling the moments of a moved latent are those of one gradient."""
    sae = make_sae(isae_config(variant, resample_until=8, resample_every=4))
    trainer = make_trainer(sae, Activations(), 40)
    for _ in range(4):
        trainer.step(next(trainer.data_provider))
    moved = torch.zeros(D_SAE, dtype=torch.bool)
    moved[[3, 7]] = True

    def move_two(idle, *_):
        return torch.eye(D_SAE, sae.cfg.d_in), moved

    monkeypatch.setattr("sae_lens_isae.architectures.isae.choose_moves", move_two)
    trainer.step(next(trainer.data_provider))
    beta1, beta2 = trainer.optimizer.param_groups[0]["betas"]
    moved_entries = {"W_dec": moved[:, None], "W_enc": moved, "S": moved | moved[:, None]}
    for name, mask in moved_entries.items():
        if not hasattr(sae, name):
            continue
        moments = trainer.optimizer.state[getattr(sae, name)]
        # of one gradient g: (1 - beta1) g and (1 - beta2) g^2
        squared = (moments["exp_avg"] / (1 - beta1)).square()
        of_one = (moments["exp_avg_sq"] / (1 - beta2) - squared).abs() < 1e-9
        assert of_one[mask.expand_as(of_one)].all()
        assert not of_one[~mask.expand_as(of_one)].all()


def test_moments_with_another_order_in_memory_are_laid_out_anew():
    """As a checkpoint has them from before a parameter was stored column by column."""
    generator = torch.Generator().manual_seed(0)
    start, *grads = (torch.randn(5, 7, generator=generator) for _ in range(4))
    weights = [torch.nn.Parameter(w) for w in (start.clone(), start.T.contiguous().T)]
    optimizers = [torch.optim.Adam([weight], lr=0.1) for weight in weights]

    def step(grad):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.empty_like(weight).copy_(grad)
            optimizer.step()

    step(grads[0])
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    fuse_adam(optimizers[1])
    moments = optimizers[1].state[weights[1]]
    assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == weights[1].stride()
    for grad in grads[1:]:
        step(grad)
    torch.testing.assert_close(weights[0], weights[1])
