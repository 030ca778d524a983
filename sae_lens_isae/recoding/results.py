"""The settings of the recoding study, and what it finds on one SAE."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from sae_lens_isae.checks import check_seed
from sae_lens_isae.errors import InputError

SCHEMA = "sae-lens-isae/recode/2"


@dataclass(frozen=True, kw_only=True)
class RecodeSettings:
    """What is computed; the defaults are those of 'Which Sparse Code?'."""

    exclude: tuple[int, ...] = (1, 2, 3)
    """OMP without the encoder's largest N features, for these N."""
    n_components: int = 50
    """Principal components of the codes for R2 and CCA."""
    gd_samples: int | None = None
    """Samples for GD-sparse, which costs as much as everything else together: 64 by default on a
    CPU, all on a GPU. Where a part has several levels they share this number, unless it is all."""
    gd_starts: int = 2
    """Random starts of GD-sparse."""
    noise_levels: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    noise_samples: int = 100
    decoder_k: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Sparsity of the codes that decoders are refitted to, as far as the encoder's reaches."""
    ridge: float = 1e-6
    ablation_k: tuple[int, ...] = (1, 3, 5, 10, 20)
    """How many features are ablated; empty: none are."""
    seed: int = 0

    def quick(self) -> RecodeSettings:
        """The same with what costs most cut down: a first look."""
        return replace(
            self,
            gd_samples=16 if self.gd_samples is None else self.gd_samples,
            gd_starts=1,
            noise_levels=(0.1, 0.5),
            decoder_k=(8, 32),
            ablation_k=(),
        )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        positive = {
            "exclude": self.exclude,
            "n_components": (self.n_components,),
            "gd_samples": () if self.gd_samples is None else (self.gd_samples,),
            "gd_starts": (self.gd_starts,),
            "noise_levels": self.noise_levels,
            "noise_samples": (self.noise_samples,),
            "decoder_k": self.decoder_k,
            "ridge": (self.ridge,),
            "ablation_k": self.ablation_k,
        }
        for name, values in positive.items():
            for value in values:
                if not value > 0 or not math.isfinite(value):
                    raise InputError(f"{name} must be > 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class RecodedSAE:
    """What the study found on one SAE. Every table has a column `method`."""

    name: str
    architecture: str
    d_sae: int
    hook_name: str | None
    n_samples: int
    """With a latent in their code."""
    n_empty: int
    """Samples whose code is zero; they are left out."""
    n_zero_rows: int
    """All-zero activations, which are no tokens' and are left out."""
    mean_k: float
    agreement: pd.DataFrame
    """Per method: the fields of `EncoderAgreement`, means over random starts; `starts` is the
    Jaccard overlap of two starts."""
    noise: pd.DataFrame
    """Per method and `sigma`: `jaccard` with the codes of the clean activations."""
    decoders: pd.DataFrame
    """Per method and `k`: `cosine` of refitted atoms to the SAE's own."""
    decoder_pairs: pd.DataFrame
    """Per pair `method`, `other` and `k`: `cosine` of the refitted atoms of shared latents."""
    ablation: pd.DataFrame | None
    """Per method and number of `features`; None without prompts that the model answers."""
    latents: pd.DataFrame
    """Per latent that the encoder uses, see `LatentPicks`; of prompts also `template_shares`."""
    latents_by_chance: pd.DataFrame
    """The same where the other algorithms coded another sample."""
    picks: pd.DataFrame
    """Per latent and method, see `LatentPicks`."""
    notes: list[str]
    seconds: dict[str, float]
    """What each part took in this run."""
