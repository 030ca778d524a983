"""When the parts of the recipe act, for a run of so many steps: one preset for synthetic data, one
for a language model, which want different settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Phase:
    """One run of a SAELens trainer."""

    n_steps: int
    trainer_settings: dict[str, Any]
    """Fields that SAELens' trainer and runner configs share."""


@dataclass(frozen=True)
class SyntheticSchedule:
    """Settings for synthetic data, where every concept is active in every batch, as that of Nelson
    et al. 2026 at its size; `benchmarks/recipe.py` changes one part at a time.

    An SAE is trained in two phases. In the first it sees whitened activations: concepts that come
    in clusters share directions of large variance, and on activations as they come latents settle
    there. The second, on activations as they come, lets the learning rate fall to 0: with noiseless
    data most of the error that is left before is its noise, and what an SAE cannot rebuild is to be
    small in the units of the data.

    On activations of a real model a latent may well rest for many batches: keep SAELens' default of
    `dead_feature_window` there.
    """

    n_steps: int
    lr: float = 1e-3
    dead_feature_window: int = 5
    arip_weight: float = 0.01
    """A tenth of the paper's: concepts that come in clusters are not orthogonal, and with the
    paper's weight aRIP is what most of the error is made of in the end."""
    whitened_share: float = 0.8
    """Of the steps; at 0 there is one phase."""
    resample: bool = True
    """Whether dead and duplicate latents are moved during the first seven tenths."""

    def sae_settings(self) -> dict[str, Any]:
        """Arguments of `paper_variants`."""
        return {
            "arip_weight": self.arip_weight,
            "normalize_activations": "covariance_whitening" if self.whitened_share else "none",
            "resample_until": 7 * self.n_steps // 10 if self.resample else 0,
            "resample_every": 50,
        }

    def phases(self) -> tuple[Phase, ...]:
        """What to train an SAE with, one after the other. The trainer folds the whitening into the
        weights at the end of the first, so that the second begins with an ordinary SAE."""
        n_first = round(self.whitened_share * self.n_steps)
        n_last = self.n_steps - n_first
        n_decay = max(1, self.n_steps // 5)
        shared = {"lr": self.lr, "dead_feature_window": self.dead_feature_window}
        if n_first == 0:
            decay = {"lr_end": 0.0, "lr_decay_steps": n_decay}
            return (Phase(self.n_steps, {**shared, **decay}),)
        first = {
            **shared,
            "lr_end": self.lr,
            "n_batches_for_norm_estimate": max(1, self.n_steps // 40),
        }
        n_warm_up = n_decay // 10
        last = {
            **shared,
            "lr_warm_up_steps": n_warm_up,
            "lr_end": 0.0,
            "lr_decay_steps": min(n_decay, n_last - n_warm_up),
        }
        return Phase(n_first, first), Phase(n_last, last)


@dataclass(frozen=True)
class LanguageModelSchedule:
    """Settings for activations of a language model (`benchmarks/table2.py`).

    What makes seeds agree there is a learning rate several times the usual one, decayed to 0 over
    the last two fifths of the run, with little aRIP, and weights averaged over the last third.
    Whitening and resampling are off.
    """

    n_steps: int
    arip_weight: float = 0.01
    """A tenth of the paper's, which costs error and agreement there."""

    def sae_settings(self) -> dict[str, Any]:
        """Arguments of `paper_variants`."""
        return {
            "arip_weight": self.arip_weight,
            "normalize_activations": "expected_average_only_in",
            "average_from": 2 * self.n_steps // 3,
            "average_until": self.n_steps,
        }

    def trainer_settings(self, variant: str) -> dict[str, Any]:
        """Fields that SAELens' trainer and runner configs share.

        Args:
            variant: iSAE-ME takes a smaller learning rate than the others.
        """
        return {
            "lr": 2e-3 if variant == "iSAE-ME" else 4e-3,
            "lr_end": 0.0,
            "lr_warm_up_steps": min(500, self.n_steps // 10),
            "lr_decay_steps": 2 * self.n_steps // 5,
        }
