"""Every measure against scikit-learn, SciPy or sets."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial import procrustes
from scipy.stats import pearsonr
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from sae_lens_isae.recoding.agreement import compare_with_encoder, jaccard
from sae_lens_isae.solvers import SparseCodes
from tests.solvers.test_omp import unit_atoms

N, D_IN, D_SAE = 80, 12, 30


def sparse(seed, k=5, n=N, signed=True):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, D_SAE, generator=generator, dtype=torch.float64)
    dense = dense if signed else dense.abs()
    kept = torch.rand(n, D_SAE, generator=generator).topk(k, dim=-1).indices
    return torch.zeros_like(dense).scatter(1, kept, dense.gather(1, kept))


@pytest.fixture
def two():
    a = sparse(0)
    # half of the samples agree in part
    b = torch.where((torch.arange(N) % 2 == 0)[:, None], a * 1.3, sparse(1, k=4))
    return a, b


def compare(a, b, n_components=6):
    atoms = unit_atoms(D_SAE, D_IN, 0)
    target = a @ atoms + 0.1 * sparse(7, k=D_IN)[: len(a), :D_IN]
    codes = SparseCodes.from_dense(a), SparseCodes.from_dense(b)
    return compare_with_encoder(*codes, target, atoms, n_components), target, atoms


def test_supports_coefficients_and_reconstruction(two):
    a, b = two
    found, target, atoms = compare(a, b)
    supports = [[set(np.flatnonzero(row)) for row in z.numpy()] for z in two]
    overlap = [len(s & t) / len(s | t) for s, t in zip(*supports, strict=True)]
    assert found.jaccard == pytest.approx(np.mean(overlap))
    cosine = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosine))
    error = [((target - z @ atoms) ** 2).sum().item() for z in two]
    assert found.reconstruction == pytest.approx(error[1] / error[0])
    both = (a != 0) & (b != 0)
    assert found.shared_correlation == pytest.approx(pearsonr(a[both], b[both])[0])


def test_linear_agreement_is_that_of_scikit_learn(two):
    found, *_ = compare(*two)
    pca = [PCA(6, svd_solver="full").fit(z.numpy()) for z in two]
    x, y = (p.transform(z.numpy()) for p, z in zip(pca, two, strict=True))
    retained = min(p.explained_variance_ratio_.sum() for p in pca)
    assert found.retained == pytest.approx(retained)
    for name, kind in (("r2_weighted", "variance_weighted"), ("r2", "uniform_average")):
        both = [
            r2_score(t, LinearRegression().fit(s, t).predict(s), multioutput=kind)
            for s, t in ((x, y), (y, x))
        ]
        assert getattr(found, name) == pytest.approx(np.mean(both)), name
    u, v = CCA(6, max_iter=10_000, tol=1e-12).fit_transform(x, y)
    correlations = [pearsonr(u[:, i], v[:, i])[0] for i in range(6)]
    assert found.cca == pytest.approx(np.mean(correlations), abs=1e-6)


def test_procrustes_is_that_of_scipy(two):
    a, b = (z.numpy() for z in two)
    found, *_ = compare(*two)
    rotation, _ = scipy.linalg.orthogonal_procrustes(b, a)
    expected = np.linalg.norm(a - b @ rotation) / np.linalg.norm(b)
    assert found.procrustes == pytest.approx(expected)
    assert found.disparity == pytest.approx(procrustes(a, b)[2])


def test_equal_and_rotated_codes():
    a = sparse(0)
    same, *_ = compare(a, a.clone())
    for name in ("jaccard", "cosine", "r2", "cca", "shared_correlation", "reconstruction"):
        assert getattr(same, name) == pytest.approx(1), name
    # a square root of rounding
    assert same.procrustes == pytest.approx(0, abs=1e-6)
    negated, *_ = compare(a, -a)
    assert (negated.jaccard, negated.cosine) == (pytest.approx(1), pytest.approx(-1))
    assert negated.r2 == pytest.approx(1)
    moved, *_ = compare(a, a.roll(3, dims=1), n_components=D_SAE)
    assert moved.procrustes == pytest.approx(0, abs=1e-6)
    assert moved.disparity == pytest.approx(0, abs=1e-6)


def test_unrelated_codes_agree_by_chance():
    """With few samples a linear map explains much of anything: `chance_r2` says how much."""
    found = [compare(sparse(i), sparse(100 + i), n_components=12)[0] for i in range(20)]
    assert np.mean([f.r2 for f in found]) == pytest.approx(found[0].chance_r2, rel=0.1)
    assert found[0].chance_r2 == pytest.approx(12 / (N - 1))


def test_what_is_not_defined_is_none():
    a = sparse(0)
    zero, *_ = compare(a, torch.zeros_like(a))
    assert (zero.r2, zero.cca, zero.procrustes, zero.disparity) == (None,) * 4
    assert zero.shared_correlation is None
    assert (zero.jaccard, zero.cosine) == (0, 0)
    one, *_ = compare(a[:1], a[:1])
    assert one.r2 is None
    assert one.jaccard == 1


def test_jaccard_of_codes_of_different_width():
    a = SparseCodes(torch.tensor([[3, 1, 0], [0, 0, 0]]), torch.tensor([[1.0, 2, 0], [0, 0, 0]]), 5)
    b = SparseCodes(torch.tensor([[1], [0]]), torch.tensor([[-1.0], [0]]), 5)
    assert jaccard(a, b).tolist() == [0.5, 1]
    assert jaccard(b, a).tolist() == [0.5, 1]
    empty = SparseCodes(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0), 5)
    assert jaccard(empty, a).tolist() == [0, 1]


def test_codes_of_other_samples_are_refused():
    a = SparseCodes.from_dense(sparse(0))
    with pytest.raises(ValueError, match="80 samples have 80 and 40 codes"):
        compare_with_encoder(a, a.pick(slice(40)), torch.zeros(N, D_IN), unit_atoms(D_SAE, D_IN, 0))


def test_by_chance_is_the_mean_over_other_samples(two):
    a, b = two
    found, *_ = compare(a, b)
    supports = [[set(np.flatnonzero(row)) for row in z.numpy()] for z in two]
    others = [
        (i, j, len(supports[0][i] & supports[1][j]) / len(supports[0][i] | supports[1][j]))
        for i in range(N)
        for j in range(N)
        if i != j
    ]
    assert found.chance_jaccard == pytest.approx(np.mean([o[2] for o in others]), abs=0.03)
    cosine = [float(a[i] @ b[j] / (a[i].norm() * b[j].norm())) for i, j, _ in others]
    assert found.chance_cosine == pytest.approx(np.mean(cosine), abs=0.06)
    assert found.chance_jaccard < 0.4 * found.jaccard
    assert found.chance_cosine < 0.4 * found.cosine
    assert found.chance_procrustes > found.procrustes
    # of codes that are unrelated already
    unrelated, *_ = compare(sparse(3), sparse(4))
    assert unrelated.cca == pytest.approx(unrelated.chance_cca, abs=0.1)
    assert unrelated.jaccard == pytest.approx(unrelated.chance_jaccard, abs=0.03)


def test_one_sample_has_no_other():
    found, *_ = compare(sparse(0, n=1), sparse(1, n=1))
    assert found.chance_jaccard is None
    assert found.chance_procrustes is None


def test_too_few_samples_for_the_components():
    found, *_ = compare(sparse(0, n=16), sparse(1, n=16), n_components=8)
    assert found.chance_r2 == pytest.approx(8 / 15)
    assert found.r2 is found.r2_weighted is found.cca is None
    found, *_ = compare(sparse(0, n=17), sparse(1, n=17), n_components=8)
    assert found.r2 is not None
