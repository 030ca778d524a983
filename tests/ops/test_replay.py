"""What lets a training step run without waiting: late numbers, fused Adam, CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import torch

from sae_lens_isae.ops import graphs
from sae_lens_isae.ops.fused_adam import _fuse, _wait_for_optimizer_of, fuse_adam_of
from sae_lens_isae.ops.graphs import GraphedStep, _as_new_leaves
from sae_lens_isae.ops.lagging import LaggingCopies
from tests.conftest import BATCH, Activations, isae_config, make_sae, make_trainer


def test_copies_from_a_cpu_come_back_at_once_and_keep_their_value():
    copies = LaggingCopies()
    x = torch.tensor([1.0])
    copies.push(3, x)
    x += 1
    assert [(tag, t.item()) for tag, t in copies.pop()] == [(3, 1.0)]
    assert copies.pop() == []


def test_several_parameters_may_wait_for_their_optimizers():
    """Two SAEs whose steps come after both forward passes, and one that never makes a step."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizers = [torch.optim.Adam([weight]) for weight in weights]
    foreign = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    _wait_for_optimizer_of(torch.nn.Parameter(torch.ones(2)))
    for weight in weights[:2]:
        _wait_for_optimizer_of(weight)
        weight.grad = torch.ones(2)
    for optimizer in (foreign, *optimizers):
        optimizer.step()
        optimizer.step()
    assert [bool(o.param_groups[0]["fused"]) for o in optimizers] == [True, True, False]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_from_a_gpu_come_back_two_pushes_later(device):
    copies = LaggingCopies()
    seen = []
    for i in range(5):
        copies.push(i, torch.tensor(10 * i, device=device))
        seen.append([(tag, int(t)) for tag, t in copies.pop()])
    assert seen == [[], [], [(0, 0)], [(1, 10)], [(2, 20)]]
    assert [tag for tag, _ in copies.pop(wait=True)] == [3, 4]


@pytest.mark.parametrize("steps_before", [0, 3])
def test_fused_adam_updates_alike(steps_before):
    """Also when the optimizer's state exists already, as after a resume."""
    trained = []
    for fuse in (False, True):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12))
        optimizer = torch.optim.Adam([weight], lr=0.01)
        for step in range(steps_before + 5):
            if fuse and step == steps_before:
                _fuse(optimizer)
            weight.grad = (weight.detach() - 0.3) * (step + 1)
            optimizer.step()
        trained.append(weight.detach().clone())
        assert optimizer.state[weight]["step"].item() == steps_before + 5
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)


def test_a_choice_made_by_hand_is_kept():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], foreach=True)
    _fuse(optimizer)
    assert not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_only_the_adam_of_the_parameter_is_fused(device):
    mine, other = (torch.nn.Parameter(torch.zeros(2, device=device)) for _ in range(2))
    optimizers = [torch.optim.Adam([mine]), torch.optim.Adam([other])]
    fuse_adam_of(mine)
    for optimizer, weight in zip(optimizers, (mine, other), strict=True):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    fused = [bool(o.param_groups[0]["fused"]) for o in optimizers]
    assert fused == [device == "cuda", False]


def test_new_leaves_share_memory_and_leave_the_module_as_it_was():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = dict(module.named_parameters())
    with contextlib.suppress(KeyError), _as_new_leaves(module, before) as leaves:
        inside = dict(module.named_parameters())
        assert list(inside) == list(before)
        for new, leaf, old in zip(inside.values(), leaves, before.values(), strict=True):
            assert new is leaf
            assert new is not old
            assert new.data_ptr() == old.data_ptr()
        raise KeyError
    assert all(p is before[name] for name, p in module.named_parameters())


def test_without_a_gpu_the_function_just_runs():
    module = torch.nn.Linear(3, 1)
    step = GraphedStep()
    for _ in range(6):
        (loss,) = step(lambda x: (module(x).sum(),), (torch.ones(2, 3),), module, 0)
        loss.backward()
    assert module.weight.grad.any()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_replays_follow_inputs_parameters_and_scale_of_the_loss(device):
    """Against the same steps run eagerly, with an earlier loss kept alive as SAELens keeps it."""

    def train(graphed):
        torch.manual_seed(0)
        module = torch.nn.Linear(8, 4, device=device)
        step, losses, kept = GraphedStep(), [], None
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for i in range(10):
            x = torch.full((5, 8), 0.1 * (i + 1), device=device)

            def function(x, key=i % 2):
                out = module(x * (1 + key))
                return out.pow(2).mean(), out.detach()

            run = step if graphed else (lambda f, inputs, *_: f(*inputs))
            loss, _ = run(function, (x,), module, i % 2)
            (3 * loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            kept = loss  # noqa: F841
        return losses, module.weight.detach().clone()

    (eager, weight), (replayed, same) = train(False), train(True)
    assert eager == pytest.approx(replayed, rel=1e-6)
    torch.testing.assert_close(weight, same)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_trained_sae_can_be_copied_and_trained_on(device):
    sae = make_sae(isae_config("iSAE", device=device))
    trainer = make_trainer(sae, Activations(), 10, device=device)
    for _ in range(6):
        trainer.step(next(trainer.data_provider))
    x = next(Activations()).to(device)
    other = copy.deepcopy(sae)
    assert torch.equal(other(x), sae(x))
    make_trainer(other, Activations(), 6, device=device).fit()
    assert not torch.equal(other(x), sae(x))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_statistics_of_loss_terms_count_every_step_once(device):
    settings = {
        "wsae_alpha": 1.0,
        "self_consistency_weight": 1.0,
        "self_consistency_warm_up_start": 2,
        "self_consistency_warm_up_end": 9,
    }
    saes = []
    for cuda_graph in (False, True):
        sae = make_sae(isae_config("iSAE-ME", device=device, cuda_graph=cuda_graph, **settings))
        make_trainer(sae, Activations(0.5), 12, device=device).fit()
        saes.append(sae)
    eager, replayed = (sae.loss_terms["wsae_loss"] for sae in saes)
    assert eager.n_samples == replayed.n_samples == 12 * BATCH
    torch.testing.assert_close(eager.statistic, replayed.statistic)
    torch.testing.assert_close(saes[0].W_dec, saes[1].W_dec, rtol=1e-3, atol=1e-3)


def test_calls_before_a_capture_leave_running_statistics(monkeypatch):
    def call_first(function, inputs, **_):
        for _ in range(3):
            function(*inputs)
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", call_first)
    monkeypatch.setattr(graphs, "_can_capture", lambda _: True)
    module = torch.nn.BatchNorm1d(2)
    step = GraphedStep()
    for _ in range(6):
        step(lambda x: (module(x),), (torch.rand(4, 2),), module, 0)
    assert module.num_batches_tracked == 6


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_added_up_where_some_are_left(device):
    module = torch.nn.Linear(2, 1, bias=False, device=device)
    step = GraphedStep()
    for i in range(8):
        x = torch.full((1, 2), float(i), device=device)
        (loss,) = step(lambda x: (module(x).sum(),), (x,), module, 0)
        loss.backward()
        if i < 5:
            module.zero_grad()
    gc.collect()
    assert module.weight.grad.tolist() == [[5.0 + 6 + 7] * 2]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_oldest_graph_makes_room(device):
    module = torch.nn.Linear(2, 1, bias=False, device=device)
    step = GraphedStep()
    x = torch.ones(1, 2, device=device)
    for key in [*range(6), 0]:
        for _ in range(5):
            (loss,) = step(lambda x, key=key: (module(x).sum() * key,), (x,), module, key)
            loss.backward()
            assert module.weight.grad.tolist() == [[key, key]]
            module.zero_grad()
    assert len(step._graphs) == 4
