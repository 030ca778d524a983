"""Projection to unit norm and its gradient, every form against float64 and torch's `normalize`."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from sae_lens_isae.ops import use_backend
from sae_lens_isae.ops.unit_norm import unit_norm_rows
from tests.ops.conftest import BACKENDS_AND_DEVICES

SIZES = [(1, 1), (5, 3), (130, 33), (3, 4100)]


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_and_their_gradient(size, backend, device):
    start = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    weight = start.clone().requires_grad_()
    upstream = torch.randn_like(start)
    with use_backend(backend):
        rows = unit_norm_rows(weight)
        (grad,) = torch.autograd.grad(rows, weight, upstream)
    expected = normalize(start.double(), dim=-1)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(rows, weight)
    leaf = expected.clone().requires_grad_()
    (of_torch,) = torch.autograd.grad(normalize(leaf, dim=-1), leaf, upstream.double())
    torch.testing.assert_close(grad.double(), of_torch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_tiny_and_huge_rows(dtype, backend, device):
    weight = torch.zeros(4, 70, dtype=dtype, device=device)
    weight[1], weight[2, 3], weight[3] = 1e-17, -1e-17, 1e17
    weight.requires_grad_()
    with use_backend(backend):
        rows = unit_norm_rows(weight)
        rows.sum().backward()
    assert not rows[0].any()
    torch.testing.assert_close(
        rows[1:].float().norm(dim=-1), torch.ones(3, device=device), rtol=1e-2, atol=0
    )
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_gradcheck():
    weight = normalize(torch.randn(4, 5, dtype=torch.float64), dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: unit_norm_rows(w.clone()), weight)
