"""SAEBench on any SAE of SAELens, right for signed codes, with and without a hub."""

from __future__ import annotations

from sae_lens_isae.saebench.data import BenchData, BenchSettings, choose_data
from sae_lens_isae.saebench.presented import PresentedSAE

__all__ = ["BenchData", "BenchSettings", "PresentedSAE", "choose_data"]
