"""SAEBench on any SAE of SAELens, right for signed codes, with and without a hub."""

from __future__ import annotations

from sae_lens_isae.saebench.bench import BenchInputs, BenchResult, SizeRequest, run_evals
from sae_lens_isae.saebench.data import BenchSettings
from sae_lens_isae.saebench.presented import CodeForm, PresentedSAE

__all__ = [
    "BenchInputs",
    "BenchResult",
    "BenchSettings",
    "CodeForm",
    "PresentedSAE",
    "SizeRequest",
    "run_evals",
]
