"""What is an SAE good for? SAEBench's evals and CE-bench on one or more SAEs."""

from __future__ import annotations

from sae_lens_isae.bench.report import BenchReport
from sae_lens_isae.bench.results import BenchResult
from sae_lens_isae.bench.run import bench

__all__ = ["BenchReport", "BenchResult", "bench"]
