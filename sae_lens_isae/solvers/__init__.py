"""Solvers of the sparse coding problem on a given dictionary; they know nothing of SAELens."""

from __future__ import annotations

from sae_lens_isae.solvers.codes import SparseCodes, gram_matrix
from sae_lens_isae.solvers.gradient_descent import gd_sparse
from sae_lens_isae.solvers.iht import iht
from sae_lens_isae.solvers.omp import omp

__all__ = ["SparseCodes", "gd_sparse", "gram_matrix", "iht", "omp"]
