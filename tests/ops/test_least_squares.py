"""Coefficients by least squares on given supports, against NumPy and SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from sae_lens_isae.ops.backends import use_backend
from sae_lens_isae.ops.least_squares import least_squares_values, pruned_least_squares
from tests.ops.conftest import BACKENDS_AND_DEVICES

N, D_IN, D_SAE, K = 17, 24, 60, 7


def problem(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(D_SAE, D_IN, generator=generator, dtype=dtype)
    atoms = torch.nn.functional.normalize(atoms, dim=-1)
    x = torch.randn(N, D_IN, generator=generator, dtype=dtype)
    codes = x @ atoms.T
    indices = codes.abs().topk(K, dim=-1).indices
    return x, atoms, indices, codes.gather(-1, indices)


def squared_error(x, atoms, indices, values):
    chosen = atoms[indices].double()
    return (x.double() - (values.double()[:, None] @ chosen)[:, 0]).square().sum(-1)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_it_is_the_least_squares_solution(backend, device):
    x, atoms, indices, values = (t.to(device) for t in problem())
    with use_backend(backend):
        found = least_squares_values(x, atoms, indices, values, keep_sign=False).cpu().double()
    for sample, support, solution in zip(x.cpu(), indices.cpu(), found, strict=True):
        matrix = atoms.cpu()[support].double().numpy().T
        expected = np.linalg.lstsq(matrix, sample.double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(solution.numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
def test_signs_are_kept_and_the_error_is_near_the_best_with_signs(backend, device):
    x, atoms, indices, values = problem()
    with use_backend(backend):
        on_device = (t.to(device) for t in (x, atoms, indices, values))
        found = least_squares_values(*on_device, keep_sign=True).cpu()
    assert (found * values >= 0).all()
    assert (found == 0).any(), "no sign was at stake"
    error = squared_error(x, atoms, indices, found)
    signs = values.sign()
    best = [
        scipy.optimize.nnls((atoms[s] * sign[:, None]).double().numpy().T, v.double().numpy())[1]
        for s, sign, v in zip(indices, signs, x, strict=True)
    ]
    before = squared_error(x, atoms, indices, values)
    assert (error <= before * (1 + 1e-5)).all()
    assert error.mean() <= 1.02 * np.square(best).mean()


def test_what_is_not_in_the_support_stays_out():
    x, atoms, indices, values = problem()
    values[:, 2:] = 0
    found = least_squares_values(x, atoms, indices, values, keep_sign=False)
    assert (found[:, 2:] == 0).all()
    alone = least_squares_values(x, atoms, indices[:, :2], values[:, :2], keep_sign=False)
    torch.testing.assert_close(found[:, :2], alone)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("keep_sign", [False, True])
def test_dependent_atoms_give_a_finite_code_with_the_least_error(keep_sign, backend, device):
    x, atoms, indices, values = problem()
    atoms[1], atoms[2] = atoms[0], -atoms[0]
    atoms[4] = torch.nn.functional.normalize(atoms[0] + atoms[3], dim=-1)
    atoms[5] = 0
    indices[:, :6] = torch.arange(6)
    values[:, :6] = 1.0
    with use_backend(backend):
        on_device = (t.to(device) for t in (x, atoms, indices, values))
        found = least_squares_values(*on_device, keep_sign=keep_sign).cpu()
    assert found.isfinite().all()
    assert found.abs().max() < 100 * x.abs().max()
    if not keep_sign:
        error = squared_error(x, atoms, indices, found)
        for sample, support, each in zip(x, indices, error, strict=True):
            matrix = atoms[support].double().numpy().T
            # what differs by rounding alone counts as dependent
            best = np.linalg.lstsq(matrix, sample.double().numpy(), rcond=1e-5)[0]
            rest = np.square(sample.double().numpy() - matrix @ best).sum()
            assert each <= rest * 1.001 + 1e-6


def test_more_coefficients_than_dimensions_rebuild_exactly():
    x, atoms, _, _ = problem()
    indices = torch.arange(D_SAE).expand(N, D_SAE)
    found = least_squares_values(x, atoms, indices, x @ atoms.T, keep_sign=False)
    assert squared_error(x, atoms, indices, found).max() < 1e-6


@pytest.mark.parametrize("n", [N, 3])
def test_many_samples_are_solved_in_parts(n, monkeypatch):
    """With all inner products, and for few samples with those of their atoms."""
    x, atoms, indices, values = (t[:n] if len(t) == N else t for t in problem())
    whole = least_squares_values(x, atoms, indices, values, keep_sign=False)
    monkeypatch.setattr("sae_lens_isae.ops.least_squares._MOST_NUMBERS", 2 * K * D_IN)
    parts = least_squares_values(x, atoms, indices, values, keep_sign=False)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    none = least_squares_values(x[:0], atoms, indices[:0], values[:0], keep_sign=False)
    assert none.shape == (0, K)


@pytest.mark.parametrize(("backend", "device"), BACKENDS_AND_DEVICES)
@pytest.mark.parametrize("keep_sign", [False, True])
def test_of_the_candidates_those_with_the_largest_coefficients_stay(keep_sign, backend, device):
    x, atoms, _, _ = problem()
    x = x[:16]
    linear = x @ atoms.T
    candidates = linear.topk(2 * K, dim=-1).indices
    values = linear.gather(-1, candidates)
    with use_backend(backend):
        on_device = (t.to(device) for t in (x, atoms, candidates, values))
        found, solved = pruned_least_squares(*on_device, k=K, keep_sign=keep_sign)
    assert found.shape == solved.shape == (len(x), K)
    for sample, of_sample, kept, z in zip(x, candidates, found.cpu(), solved.cpu(), strict=True):
        matrix, y = atoms.double().numpy().T, sample.double().numpy()
        solve = scipy.optimize.nnls if keep_sign else np.linalg.lstsq
        first = solve(matrix[:, of_sample.numpy()], y)[0]
        largest = np.argsort(-np.abs(first))[:K]
        expected = set(of_sample[largest].tolist())
        if not keep_sign:
            assert set(kept.tolist()) == expected
        second = solve(matrix[:, kept.numpy()], y)[0]
        if keep_sign:
            assert (z >= 0).all()
            # latents that come out negative are left out one after the other, not the best set
            assert len(set(kept[z > 0].tolist()) - expected) <= 2
        else:
            np.testing.assert_allclose(z.numpy(), second, rtol=1e-3, atol=1e-4)


def test_without_more_candidates_than_k_all_stay():
    x, atoms, indices, values = problem()
    found, solved = pruned_least_squares(x, atoms, indices, values, k=K, keep_sign=False)
    assert torch.equal(found, indices)
    expected = least_squares_values(x, atoms, indices, values, keep_sign=False)
    assert torch.equal(solved, expected)
