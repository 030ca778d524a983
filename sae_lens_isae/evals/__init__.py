"""What is an SAE good for? SAEBench's evals and CE-bench on one or more SAEs."""

from __future__ import annotations

from sae_lens_isae.evals.report import BenchReport
from sae_lens_isae.evals.results import BenchResult
from sae_lens_isae.evals.run import bench

__all__ = ["BenchReport", "BenchResult", "bench"]
