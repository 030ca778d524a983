"""Sparse-coding solvers on a given dictionary. Nothing here knows SAELens."""

from __future__ import annotations

from sae_lens_isae.solvers.omp import SparseCodes, omp

__all__ = ["SparseCodes", "omp"]
