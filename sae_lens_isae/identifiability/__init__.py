"""Measurements of how identifiable a trained SAE is."""

from __future__ import annotations

from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.pairwise import (
    PairIdentifiability,
    PairwiseReport,
    pairwise_identifiability,
)

__all__ = [
    "DictionaryMatch",
    "PairIdentifiability",
    "PairwiseReport",
    "match_dictionaries",
    "pairwise_identifiability",
]
