"""CE-bench (Gulko et al. 2025, arXiv 2509.00691): do latents tell contrasting stories apart?"""

from __future__ import annotations

from sae_lens_isae.cebench.scores import CEBench, ce_bench
from sae_lens_isae.cebench.stories import StoryActivations, StoryPair, load_pairs

__all__ = ["CEBench", "StoryActivations", "StoryPair", "ce_bench", "load_pairs"]
