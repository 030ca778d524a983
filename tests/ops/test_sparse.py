"""Products with sparse codes: every form against dense float64, and gradients against gradcheck."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae.ops import use_backend
from sae_lens_isae.ops.sparse import (
    accumulate_rows,
    decode_codes,
    dot_rows,
    gram_codes,
    stored_for_gathering,
    sum_rows,
    to_dense,
    values_at,
)
from tests.ops.conftest import BACKENDS_AND_DEVICES

# batch, rows, columns, k: a code that fills its dictionary, odd sizes, one entry, many columns
SIZES = [(3, 5, 2, 5), (4, 37, 19, 7), (2, 64, 300, 1), (40, 9, 16, 3)]


def tolerance(backend, dtype):
    """Kernels add in float32 what they read exactly; the other forms round in the matrix' dtype."""
    return 1e-6 if backend == "triton" else 8 * torch.finfo(dtype).eps


def problem(batch, n_rows, n_columns, k, device="cpu", dtype=torch.float64, seed=0):
    """Matrix, vectors, indices (distinct per sample) and weights, one of them 0."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n_rows, n_columns, generator=g, dtype=torch.float64)
    x = torch.randn(batch, n_columns, generator=g, dtype=torch.float64)
    indices = torch.rand(batch, n_rows, generator=g).topk(k, dim=-1).indices
    weights = torch.randn(batch, k, generator=g, dtype=torch.float64)
    weights[0, 0] = 0
    return (
        matrix.to(device, dtype),
        x.to(device, dtype),
        indices.to(device),
        weights.to(device, torch.promote_types(dtype, torch.float32)),
    )


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("n_rows", [2**15 + 1, 2**16, 2**16 + 1])
def test_first_and_last_of_many_rows(n_rows, backend, device):
    """The sort of `accumulate_rows` holds row numbers in as few bits as they need."""
    indices = torch.tensor([[0, n_rows - 1], [2**15, 2**15 - 1], [n_rows - 1, 1]], device=device)
    _, x, _, weights = problem(3, 4, 5, 2, device, torch.float32)
    expected = torch.zeros(n_rows, 5, dtype=torch.float64, device=device)
    for row, weight, vector in zip(indices, weights.double(), x.double(), strict=True):
        expected[row] += weight[:, None] * vector
    with use_backend(backend):
        found = accumulate_rows(indices, weights, x, n_rows)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_products(size, dtype, backend, device):
    """Dense and torch forms take products in the matrix' dtype, the kernels in float32."""
    matrix, x, indices, weights = problem(*size, device=device, dtype=dtype)
    D, v, w = matrix.double(), x.double(), weights.double()
    codes = torch.zeros(size[0], size[1], dtype=torch.float64, device=device)
    codes.scatter_(-1, indices, w)
    with use_backend(backend):
        found = {
            "sum": (sum_rows(matrix, indices, weights), codes @ D),
            "rest": (sum_rows(matrix, indices, weights, minuend=x), v - codes @ D),
            "rest of nothing": (sum_rows(matrix, indices[:, :0], weights[:, :0], minuend=x), v),
            "dot": (dot_rows(x, matrix, indices), (v @ D.T).gather(-1, indices)),
            "accumulate": (accumulate_rows(indices, weights, x, size[1]), codes.T @ v),
            "accumulate two": (
                accumulate_rows(indices, weights, x, size[1], more=(2 * weights, x + 1)),
                codes.T @ v + 2 * codes.T @ (x + 1).double(),
            ),
        }
    for name, (out, expected) in found.items():
        assert out.dtype == torch.float32, name
        assert relative_error(out, expected) < tolerance(backend, dtype), name


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize(("k", "n_at"), [(1, 1), (7, 20), (90, 40)])
def test_values_at_other_indices(k, n_at, backend, device):
    g = torch.Generator().manual_seed(k)
    indices, at = (torch.rand(3, 101, generator=g).topk(n).indices.to(device) for n in (k, n_at))
    values = torch.randn(3, k, generator=g).to(device)
    codes = torch.zeros(3, 101, device=device).scatter(-1, indices, values)
    with use_backend(backend):
        assert torch.equal(values_at(indices, values, at, 101), codes.gather(-1, at))


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_a_row_that_every_sample_uses_and_rows_that_none_uses(backend, device):
    """More entries than one program adds up, all for one row."""
    _, x, _, _ = problem(200, 10, 6, 1, device=device, dtype=torch.float32)
    indices = torch.full((200, 2), 4, device=device)
    indices[:, 1] = 7
    weights = torch.randn(200, 2, device=device)
    with use_backend(backend):
        out = accumulate_rows(indices, weights, x, 10)
    assert (out[[0, 1, 2, 3, 5, 6, 8, 9]] == 0).all()
    expected = weights.double().T @ x.double()
    assert relative_error(out[[4, 7]], expected) < 1e-6


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_strided_tensors_and_empty_batches(backend, device):
    matrix, x, indices, weights = problem(6, 20, 8, 4, device=device, dtype=torch.float32)
    with use_backend(backend):
        strided = (matrix.T.contiguous().T, x.T.contiguous().T, indices.T.contiguous().T)
        for m, v, i in ((matrix, x, indices), strided, (matrix[:, ::2], x[:, ::2], indices)):
            w = weights.T.contiguous().T
            codes = to_dense(i, w, 20).double()
            assert relative_error(sum_rows(m, i, w), codes @ m.double()) < 1e-6
            dots = (v.double() @ m.double().T).gather(-1, i)
            assert relative_error(dot_rows(v, m, i), dots) < 1e-6
            assert relative_error(accumulate_rows(i, w, v, 20), codes.T @ v.double()) < 1e-6
        assert sum_rows(matrix, indices[:0], weights[:0]).shape == (0, 8)
        assert dot_rows(x[:0], matrix, indices[:0]).shape == (0, 4)
        assert (accumulate_rows(indices[:0], weights[:0], x[:0], 20) == 0).all()


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_gradcheck(backend):
    matrix, _, indices, weights = problem(3, 9, 4, 3)
    matrix.requires_grad_()
    weights.requires_grad_()
    with use_backend(backend):
        for operation in (decode_codes, gram_codes):
            assert torch.autograd.gradcheck(
                lambda m, w, operation=operation: operation(m, indices, w), (matrix, weights)
            )


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("operation", [decode_codes, gram_codes])
def test_gradients_in_float32_and_under_autocast(operation, backend, device):
    matrix, _, indices, weights = problem(5, 30, 17, 4, device=device, dtype=torch.float32)
    target = torch.randn_like(operation(matrix, indices, weights))
    D, w = (t.double().requires_grad_() for t in (matrix, weights))
    codes = torch.zeros(5, 30, dtype=torch.float64, device=device).scatter(-1, indices, w)
    exact = codes @ D
    if operation is gram_codes:
        exact = (exact @ D.T).gather(-1, indices)
    expected = torch.autograd.grad((exact * target).sum(), (D, w))
    matrix.requires_grad_()
    weights.requires_grad_()
    for autocast, most in ((False, 1e-5), (True, 0.03)):
        with use_backend(backend), torch.autocast(device, torch.bfloat16, enabled=autocast):
            out = operation(matrix, indices, weights)
            assert out.dtype == torch.float32
            found = torch.autograd.grad((out * target).sum(), (matrix, weights))
        assert relative_error(out, exact) < most
        for f, e in zip(found, expected, strict=True):
            assert f.dtype == torch.float32
            assert relative_error(f, e) < most


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_float16_copies_where_tf32_is_allowed_and_nowhere_else(backend, device):
    """Weights lose no more than TF32's mantissa; gradients that float16 cannot hold survive."""
    matrix, _, indices, weights = problem(5, 30, 17, 4, device=device, dtype=torch.float32)
    D = matrix.double()
    exact = torch.zeros(5, 30, dtype=torch.float64, device=device)
    exact = exact.scatter(-1, indices, weights.double()) @ D
    matrix.requires_grad_()
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            with use_backend(backend):
                copied = stored_for_gathering(matrix.detach(), 4).dtype
                out = decode_codes(matrix, indices, weights)
                (grad,) = torch.autograd.grad((out * 1e-12).sum(), matrix)
            narrow = backend == "triton" and precision == "high"
            assert copied == (torch.float16 if narrow else torch.float32)
            assert relative_error(out, exact) < (2**-11 if precision == "high" else 1e-6)
            expected = to_dense(indices, weights, 30).double().T @ torch.full((5, 17), 1e-12).to(D)
            assert relative_error(grad, expected) < (2**-10 if precision == "high" else 1e-6)
    finally:
        torch.set_float32_matmul_precision(before)
