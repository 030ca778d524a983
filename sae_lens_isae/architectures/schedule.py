"""When the parts of the recipe act, for a run of so many steps.

For the synthetic data of paper 1 at its size, the same for all variants; `benchmarks/recipe.py`
changes one part at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SyntheticSchedule:
    """Settings for synthetic data, where every concept is active in every batch.

    On activations of a real model a latent may well rest for many batches: keep SAELens' default of
    `dead_feature_window` there.
    """

    n_steps: int
    lr: float = 1e-3

    def trainer_settings(self) -> dict[str, Any]:
        """Fields that SAELens' trainer and runner configs share.

        The learning rate falls linearly to 0 over the last fifth: with noiseless data most of the
        error that is left before is its noise.
        """
        return {
            "lr": self.lr,
            "lr_end": 0.0,
            "lr_decay_steps": self.n_steps // 5,
            "dead_feature_window": 5,
        }

    def sae_settings(self) -> dict[str, Any]:
        """Fields of every variant's SAE config."""
        return {"resample_until": 9 * self.n_steps // 10, "resample_every": 50}
