"""SAELens' runners with seeds, several SAEs at a time, and runs that can be resumed exactly."""

from __future__ import annotations

from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.images import image_data_provider
from sae_lens_isae.training.results import TrainedSAE, TrainingResult
from sae_lens_isae.training.runs import train, train_together
from sae_lens_isae.training.seeds import seeded_sae

__all__ = [
    "TrainedSAE",
    "TrainingResult",
    "cache_activations",
    "image_data_provider",
    "load_runner_config",
    "seeded_sae",
    "train",
    "train_together",
]
