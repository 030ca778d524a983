"""What lets a training step run without waiting: late numbers and CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import gc
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from sae_lens_isae.ops.graphs import ReplayedFunction, _as_new_leaves, flatten, unflatten
from sae_lens_isae.ops.lagging import LaggingCopies
from tests.conftest import (
    BATCH,
    VARIANTS,
    Activations,
    isae_config,
    make_sae,
    make_trainer,
    step_input,
)


def test_copies_from_a_cpu_come_back_at_once_and_keep_their_value():
    copies = LaggingCopies()
    x = torch.tensor([1.0])
    copies.push(3, x)
    x += 1
    assert [(tag, t.item()) for tag, t in copies.pop()] == [(3, 1.0)]
    assert copies.pop() == []


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_copies_from_a_gpu_come_back_two_pushes_later(device):
    copies = LaggingCopies()
    seen = []
    for i in range(5):
        copies.push(i, torch.tensor(10 * i, device=device))
        seen.append([(tag, int(t)) for tag, t in copies.pop()])
    assert seen == [[], [], [(0, 0)], [(1, 10)], [(2, 20)]]
    assert [tag for tag, _ in copies.pop(wait=True)] == [3, 4]


@dataclass
class Nested:
    x: torch.Tensor
    more: dict[str, object]


def test_a_value_comes_back_from_its_tensors():
    x, y = torch.ones(2), torch.zeros(3)
    value = Nested(x, {"pair": (y, [x]), "none": None, "number": 0.5})
    tensors, structure = flatten(value)
    assert [t.data_ptr() for t in tensors] == [t.data_ptr() for t in (x, y, x)]
    again = unflatten(structure, iter([x, y, y]))
    assert type(again) is Nested
    assert again.more["pair"][1][0] is y
    assert again.more["none"] is None
    # a constant tells one recording from another
    assert structure == flatten(value)[1]
    assert hash(structure) != hash(flatten(Nested(x, {**value.more, "number": 0.25}))[1])


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
    step = ReplayedFunction()
    for _ in range(6):
        loss = step(lambda x: module(x).sum(), torch.ones(2, 3), module)
        loss.backward()
    assert module.weight.grad.any()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_replays_follow_inputs_parameters_and_scale_of_the_loss(device):
    """Against the same steps run eagerly, with an earlier loss kept alive as SAELens keeps it."""

    def train(graphed):
        torch.manual_seed(0)
        module = torch.nn.Linear(8, 4, device=device)
        step, losses, kept = ReplayedFunction(), [], None
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for i in range(10):
            x = torch.full((5, 8), 0.1 * (i + 1), device=device)

            def function(x, key=i % 2):
                out = module(x * (1 + key))
                return {"loss": out.pow(2).mean(), "out": out.detach()}

            run = step if graphed else (lambda f, inputs, *_: f(inputs))
            loss = run(function, x, module, i % 2)["loss"]
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


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_replayed_gradients_are_those_of_the_step_itself(variant, autocast, device):
    """Also after the weights have changed a lot: nothing of an earlier call is used again."""
    saes = [
        make_sae(isae_config(variant, device=device, cuda_graph=each)) for each in (True, False)
    ]
    data, changes = Activations(0.5), torch.Generator(device).manual_seed(0)
    for step in range(8):
        x = next(data).to(device)
        grads = []
        for sae in saes:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = sae.training_forward_pass(step_input(x, step=step)).loss
            loss.backward()
            grads.append({n: p.grad for n, p in sae.named_parameters() if p.grad is not None})
            sae.zero_grad()
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[0].items():
            error = (grad - grads[1][name]).norm() / grads[1][name].norm()
            assert error < 1e-3, (step, name)
        with torch.no_grad():
            for name in grads[0]:
                there = [dict(sae.named_parameters())[name] for sae in saes]
                noise = torch.randn(there[0].shape, generator=changes, device=device)
                there[0].add_((0.3 * there[0].std() + 0.01) * noise)
                there[1].copy_(there[0])
    assert len(saes[0]._replayed._recordings) == 1


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_added_up_where_some_are_left(device):
    module = torch.nn.Linear(2, 1, bias=False, device=device)
    step = ReplayedFunction()
    for i in range(8):
        x = torch.full((1, 2), float(i), device=device)
        loss = step(lambda x: module(x).sum(), x, module)
        loss.backward()
        if i < 5:
            module.zero_grad()
    gc.collect()
    assert module.weight.grad.tolist() == [[5.0 + 6 + 7] * 2]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_oldest_graph_makes_room(device):
    module = torch.nn.Linear(2, 1, bias=False, device=device)
    step = ReplayedFunction()
    x = torch.ones(1, 2, device=device)
    for key in [*range(6), 0]:
        for _ in range(5):
            loss = step(lambda x, key=key: module(x).sum() * key, x, module, key)
            loss.backward()
            assert module.weight.grad.tolist() == [[key, key]]
            module.zero_grad()
    assert len(step._recordings) == 4


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_graphs_share_memory_and_do_not_disturb_each_other(device):
    module = torch.nn.Linear(4, 1, bias=False, device=device)
    step = ReplayedFunction()
    x = torch.rand(2**22, 4, device=device)
    reserved = []
    for turn in range(8):
        for key in range(1, 4):
            # many temporaries as large as x, and one number that is returned
            loss = step(lambda x, key=key: (module(x * key).exp() * x).sin().sum(), x, module, key)
            loss.backward()
            found, module.weight.grad = module.weight.grad.clone(), None
            expected = (module(x * key).exp() * x).sin().sum()
            expected.backward()
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(found, module.weight.grad)
            module.weight.grad = None
            torch.cuda.empty_cache()
            if turn >= 2:
                reserved.append(torch.cuda.memory_reserved())
    # of turn 3, in which each is recorded
    first, *others = (after - before for before, after in pairwise(reserved[2:6]))
    assert max(others) < first / 2
