"""Would another sparse coding algorithm have picked the same features? The study of "Which Sparse
Code?"."""

from __future__ import annotations

from sae_lens_isae.recoding.prompted_model import PromptedModel, prompted_model
from sae_lens_isae.recoding.prompts import Prompt, load_prompts
from sae_lens_isae.recoding.report import RecodingReport
from sae_lens_isae.recoding.results import RecodedSAE, RecodeSettings
from sae_lens_isae.recoding.study import recode

__all__ = [
    "Prompt",
    "PromptedModel",
    "RecodeSettings",
    "RecodedSAE",
    "RecodingReport",
    "load_prompts",
    "prompted_model",
    "recode",
]
