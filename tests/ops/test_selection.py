"""The k largest entries: every form against a sort in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_isae.ops import use_backend
from sae_lens_isae.ops.selection import largest_among, select_largest, select_largest_of_sum
from tests.ops.conftest import BACKENDS_AND_DEVICES, DTYPES, KERNEL_DEVICES

VALUES = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e30, -1e-30]
SIZES = [
    *[(1, 1), (7, 1), (7, 7), (33, 5), (64, 64), (100, 40)],
    # on either side of where rows are long, and of how many entries may be selected from them
    *[(2048, 1024), (2049, 512), (3000, 513), (2100, 40), (5001, 300)],
]


def check(u, selection, k, signed):
    """Distinct indices, the values there, and nothing larger left behind."""
    indices, values = selection
    assert indices.shape == values.shape == (len(u), k)
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(u.gather(-1, indices), values)
    ranked = u.double().abs() if signed else u.double()
    expected = ranked.sort(-1, descending=True).values[:, :k]
    torch.testing.assert_close(
        ranked.gather(-1, indices).sort(-1, descending=True).values, expected, rtol=0, atol=0
    )


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_columns", "k"), SIZES)
def test_largest(n_columns, k, dtype, signed, backend, device):
    u = torch.randn(3, n_columns, generator=torch.Generator().manual_seed(k)).to(device, dtype)
    with use_backend(backend):
        check(u, select_largest(u, k, signed), k, signed)


@pytest.mark.parametrize("device", KERNEL_DEVICES)
@given(
    rows=st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e30, -1e-30]), min_size=9, max_size=9
        ),
        min_size=1,
        max_size=3,
    ),
    k=st.integers(1, 9),
    signed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_ties_go_to_the_first(device, rows, k, signed):
    u = torch.tensor(rows, device=device)
    with use_backend("triton"):
        indices, values = select_largest(u, k, signed)
    for row, chosen, value in zip(u, indices, values, strict=True):
        # -0 ranks below 0 by value, as it does in the order of the bits
        rank = row.abs() if signed else row + torch.where(row.signbit() & (row == 0), -1e-40, 0.0)
        order = sorted(range(9), key=lambda i: (-rank[i].item(), i))[:k]
        assert sorted(chosen.tolist()) == sorted(order)
        assert torch.equal(row[chosen], value)


NASTY = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.0, -1.0, 1e-40, 3e38]


def long_rows(n_columns):
    """Rows in which a bound from some of their columns is of little use, or of none."""
    u = torch.randn(7, n_columns, generator=torch.Generator().manual_seed(n_columns))
    u[1] = u[1].sort().values
    u[2, : n_columns - 50] = 0
    u[3] = -1
    u[4] = u[4].round()
    u[5] = torch.where(u[5] > 0, 0.0, -0.0)
    u[6, 700:740] += 100
    return u


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_columns", "k"), [(2100, 80), (5001, 33)])
def test_long_rows(n_columns, k, dtype, signed, backend, device):
    u = long_rows(n_columns).to(device, dtype)
    with use_backend(backend):
        check(u, select_largest(u, k, signed), k, signed)


@pytest.mark.parametrize("device", KERNEL_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_columns", [2500, 5001])
def test_ties_in_long_rows_go_to_the_first(n_columns, signed, device):
    u = long_rows(n_columns).to(device)
    # by value -0 ranks below 0
    rank = u.abs() if signed else u + torch.where(u.signbit() & (u == 0), -1e-40, 0.0)
    expected = rank.sort(dim=-1, descending=True, stable=True).indices[:, :40]
    with use_backend("triton"):
        indices = select_largest(u, 40, signed).indices
    assert torch.equal(indices.sort(-1).values, expected.sort(-1).values)


@pytest.mark.parametrize("device", KERNEL_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_columns", [50, 3000])
def test_what_is_no_number_ranks_by_its_bits(n_columns, signed, device):
    u = torch.randn(2, n_columns, generator=torch.Generator().manual_seed(0)).to(device)
    u[0, 20:29] = torch.tensor(NASTY, device=device)
    with use_backend("triton"):
        indices, values = select_largest(u, 4, signed)
    assert {22, 23} <= set(indices[0].tolist())
    assert (24 in indices[0]) is signed
    assert torch.equal(u.gather(-1, indices).nan_to_num(7.0), values.nan_to_num(7.0))


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n_columns", [50, 3000])
def test_the_largest_among_the_largest(n_columns, signed, backend, device):
    u = torch.randn(3, n_columns, generator=torch.Generator().manual_seed(0)).to(device)
    u[1] = u[1].round()
    with use_backend(backend):
        chosen = largest_among(select_largest(u, 24, signed), 12, signed)
        check(u, chosen, 12, signed)
        if backend == "triton":
            direct = select_largest(u, 12, signed)
            assert torch.equal(chosen.indices.sort(-1).values, direct.indices.sort(-1).values)
        with pytest.raises(ValueError, match="k must be between 1 and the 12"):
            largest_among(chosen, 13, signed)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_all_zero_rows_and_infinities(backend, device):
    u = torch.zeros(2, 3000, device=device)
    u[1, 17] = -torch.inf
    with use_backend(backend):
        indices, values = select_largest(u, 3, signed=True)
    assert (values[0] == 0).all()
    assert 17 in indices[1]
    assert (indices.sort(-1).values.diff(dim=-1) > 0).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_columns", [70, 3000])
def test_sum_is_selected_from_and_returned(n_columns, dtype, backend, device):
    a, b = torch.randn(2, 4, n_columns, device=device).to(dtype)
    with use_backend(backend):
        selection, total = select_largest_of_sum(a, b, 6, signed=True)
    torch.testing.assert_close(total, a + b)
    check(total, selection, 6, signed=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_strided_input_and_empty_batch(backend, device):
    u = torch.randn(50, 6, device=device)
    with use_backend(backend):
        for view in (u.T, u[::2].T, u[:, 1:4], u.T.expand(6, 50)):
            check(view, select_largest(view, 2, signed=False), 2, signed=False)
        assert select_largest(u[:0], 2, signed=True).indices.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match="k must be between 1 and the 5 columns"):
        select_largest(torch.randn(2, 5), k, signed=True)
