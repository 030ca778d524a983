"""Would another sparse coding algorithm have picked the same features? The study of paper 4."""

from __future__ import annotations

from sae_lens_isae.recoding.ablation import PromptedModel
from sae_lens_isae.recoding.prompts import Prompt, load_prompts
from sae_lens_isae.recoding.results import RecodedSAE, RecodeSettings, RecodingReport
from sae_lens_isae.recoding.study import recode

__all__ = [
    "Prompt",
    "PromptedModel",
    "RecodeSettings",
    "RecodedSAE",
    "RecodingReport",
    "load_prompts",
    "recode",
]
