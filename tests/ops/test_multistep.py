"""The recursion, and its sparse forms against it."""

from __future__ import annotations

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopK
from sae_lens.saes.topk_sae import TopK

from sae_lens_isae.ops import use_backend
from sae_lens_isae.ops.multistep import encode_codes, multistep_encode
from sae_lens_isae.ops.multistep_tied import encode_codes_tied
from sae_lens_isae.ops.sparse import to_dense
from tests.ops.conftest import BACKENDS_AND_DEVICES


def test_last_pre_activation_yields_the_codes():
    linear_pre, S = torch.randn(5, 12), 0.3 * torch.randn(12, 12)
    activation = AbsTopK(3)
    codes, pre = multistep_encode(linear_pre, lambda z: z @ S, activation, n_steps=4)
    torch.testing.assert_close(codes, activation(pre))
    three, _ = multistep_encode(linear_pre, lambda z: z @ S, activation, n_steps=3)
    torch.testing.assert_close(pre, three @ S + linear_pre)


def test_orthonormal_dictionary_is_a_fixed_point():
    """With S = I - W_dec W_enc = 0 the first codes are final."""
    linear_pre = torch.randn(5, 12)
    once, _ = multistep_encode(linear_pre, lambda z: z * 0, AbsTopK(3), n_steps=1)
    often, _ = multistep_encode(linear_pre, lambda z: z * 0, AbsTopK(3), n_steps=9)
    assert torch.equal(once, often)


def plain(centred, W_enc, S, D, k, signed, n_steps, n_candidates=None):
    """The definition, on dense tensors, differentiated by autograd."""
    activation = AbsTopK(k) if signed else TopK(k)
    step = (lambda z: z @ S) if D is None else (lambda z: z - (z @ D) @ W_enc)
    linear_pre = centred @ W_enc
    candidates = None
    if n_candidates is not None:
        ranked = linear_pre.abs() if signed else linear_pre
        candidates = ranked >= ranked.topk(n_candidates, dim=-1).values[:, -1:]
    codes, pre = multistep_encode(linear_pre, step, activation, n_steps, candidates)
    return codes, linear_pre, pre


def encode(centred, W_enc, S, D, k, signed, n_steps, n_candidates=None, n_ranked=0):
    if D is not None:
        return encode_codes_tied(centred, W_enc, D, k, signed, n_steps, n_candidates, n_ranked)
    return encode_codes(centred, W_enc, k, signed, S, n_steps, n_ranked)


def problem(d_sae=40, d_in=16, batch=6, dtype=torch.float64, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    D = torch.nn.functional.normalize(draw(d_sae, d_in), dim=-1)
    W_enc = (0.6 * D + 0.1 * draw(d_sae, d_in)).T.contiguous()
    S = 0.2 * draw(d_sae, d_sae)
    tensors = (draw(batch, d_in), W_enc, S, D)
    return [t.to(device, dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize(("tied", "n_candidates"), [(False, None), (True, None), (True, 7)])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("k", "n_steps"), [(3, 1), (3, 2), (3, 5), (1, 4), (12, 3)])
def test_codes_and_gradients_are_those_of_the_definition(
    k, n_steps, signed, tied, n_candidates, backend, device
):
    """Also for losses that read the pre-activations, whose gradient is dense."""
    d_sae = 12 if k == 12 else 40
    centred, W_enc, S, D = problem(d_sae, dtype=torch.float32, device=device)
    D = D if tied else None
    n_candidates = None if n_candidates is None else max(k, n_candidates)
    n_ranked = min(2 * k, d_sae)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (S, D)]
    wide = [t.detach().double().requires_grad_() for t in (centred, W_enc)]
    weights = torch.randn(3, 6, d_sae, device=device)
    leaves = [t for t in (centred, W_enc, D if tied else S) if t is not None]
    exact_leaves = [t for t in (*wide, exact[1] if tied else exact[0]) if t is not None]
    references = plain(*wide, *exact, k, signed, n_steps, n_candidates)
    with use_backend(backend):
        found = encode(centred, W_enc, S, D, k, signed, n_steps, n_candidates, n_ranked)
    rank = found.hidden_pre.abs() if signed else found.hidden_pre
    assert torch.equal(
        rank.gather(-1, found.ranked).sort(descending=True).values, rank.topk(n_ranked).values
    )
    dense = to_dense(found.indices, found.values, d_sae)
    outputs = (dense, found.linear_pre, found.hidden_pre)
    for output, reference in zip(outputs, references, strict=True):
        torch.testing.assert_close(output.double(), reference, rtol=1e-4, atol=1e-4)

    def gradients(parts, tensors, of):
        loss = sum(p * (w * t).sum() for p, w, t in zip(parts, weights, tensors, strict=True))
        return torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)

    for parts in ((1, 0, 0), (1, 0.3, 0.2), (0, 1, 0), (0, 0, 1)):
        expected = gradients(parts, references, exact_leaves)
        with use_backend(backend):
            grads = gradients(parts, outputs, leaves)
        for grad, reference in zip(grads, expected, strict=True):
            if reference is None or not reference.any():
                assert grad is None or not grad.any()
            else:
                error = (grad.double() - reference).norm() / reference.norm()
                assert error < 1e-4


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_gradcheck(n_steps, signed, tied, backend):
    centred, W_enc, S, D = problem(d_sae=10, d_in=5, batch=3)

    def codes(*tensors):
        x, W, matrix = tensors
        out = encode(x, W, matrix, matrix if tied else None, 2, signed, n_steps)
        return out.values, out.hidden_pre, out.linear_pre

    with use_backend(backend):
        assert torch.autograd.gradcheck(codes, (centred, W_enc, D if tied else S), eps=1e-7)


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_gradcheck_of_the_bias(n_steps, signed, backend):
    x, W_enc, S, _ = problem(d_sae=10, d_in=5, batch=3)
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)

    def codes(b, W, matrix):
        out = encode_codes(x.detach() - b, W, 2, signed, matrix, n_steps, bias=b)
        return out.values, out.hidden_pre, out.linear_pre

    with use_backend(backend):
        assert torch.autograd.gradcheck(codes, (bias, W_enc, S), eps=1e-7)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_short_way_to_the_gradient_of_the_bias(n_steps, signed, backend, device):
    """It is the gradient through `centred`, also of losses that read the pre-activations."""
    x, W_enc, S, _ = problem(dtype=torch.float32, device=device)
    bias = torch.randn(16, device=device, requires_grad=True)
    for dense_weight in (0.0, 0.3):
        grads = []
        for direct in (bias, None):
            with use_backend(backend):
                codes = encode_codes(x - bias, W_enc, 3, signed, S, n_steps, bias=direct)
                loss = codes.values.sin().sum() + dense_weight * codes.hidden_pre.cos().sum()
                # x needs a gradient here, and gets none the short way
                of_x, of_bias = torch.autograd.grad(loss, (x, bias), allow_unused=True)
            assert (of_x is None) is (direct is not None)
            grads.append(of_bias.double())
        assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm()


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_without_a_number_the_code_is_what_is_ranked(backend, device):
    centred, W_enc, S, D = problem(device=device, dtype=torch.float32)
    with use_backend(backend):
        for atoms, n_candidates in ((None, None), (D, None), (D, 7)):
            found = encode(centred, W_enc, S, atoms, 3, True, 3, n_candidates, n_ranked=0)
            assert torch.equal(found.ranked.sort(-1).values, found.indices.sort(-1).values)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_a_step_matrix_with_columns_first_has_the_same_gradients(backend, device):
    """A transposed view is not contiguous."""
    centred, W_enc, S, _ = problem(device=device, dtype=torch.float32)
    turned = S.detach().T.contiguous().requires_grad_()
    grads = []
    for matrix, leaf in ((S, S), (turned.T, turned)):
        with use_backend(backend):
            out = encode_codes(centred, W_enc, 3, True, matrix, 4)
            grads.append(torch.autograd.grad((out.values**2).sum(), (centred, W_enc, leaf)))
    (x_1, W_1, S_1), (x_2, W_2, S_2) = grads
    for first, second in ((x_1, x_2), (W_1, W_2), (S_1, S_2.T)):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_backward_of_a_sparse_loss_is_sparse():
    """A gradient at the values reaches k^2 entries of S per sample and step, not all of them."""
    centred, W_enc, S, _ = problem(batch=1)
    with use_backend("torch"):
        out = encode_codes(centred, W_enc, 3, True, S, 3)
        out.values.sum().backward()
    assert (S.grad != 0).sum() <= 2 * 3 * 3
    assert (W_enc.grad != 0).any(0).sum() <= 3 * 3


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("tied", [False, True])
def test_zero_input_and_half_precision(tied, backend, device):
    centred, W_enc, S, D = problem(device=device, dtype=torch.float32)
    with torch.no_grad():
        centred[0] = 0
    with use_backend(backend), torch.autocast(device, torch.bfloat16):
        out = encode(centred, W_enc, S, D if tied else None, 3, True, 4)
        (out.values**2).sum().backward()
    assert (out.values[0] == 0).all()
    assert out.values.dtype == torch.float32
    for t in (centred, W_enc, D if tied else S):
        assert t.grad.dtype == torch.float32
        assert t.grad.isfinite().all()
        assert t.grad.any()
