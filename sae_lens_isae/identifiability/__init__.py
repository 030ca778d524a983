"""Measurements of how identifiable a trained SAE is."""

from __future__ import annotations

from sae_lens_isae.identifiability.activations import ActivationSource, open_activations
from sae_lens_isae.identifiability.audit import Audit, audit
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.pairwise import (
    PairIdentifiability,
    PairwiseReport,
    pairwise_identifiability,
)

__all__ = [
    "ActivationSource",
    "Audit",
    "DictionaryMatch",
    "LinearModel",
    "PairIdentifiability",
    "PairwiseReport",
    "audit",
    "match_dictionaries",
    "open_activations",
    "pairwise_identifiability",
]
