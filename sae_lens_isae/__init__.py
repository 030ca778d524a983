"""Identifiable sparse autoencoders for SAELens.

Importing the package registers its architectures (`isae`, `isae_me`, `regularized_*`) with SAELens.
"""

from __future__ import annotations

from sae_lens_isae import architectures as _architectures
from sae_lens_isae.architectures.isae import ISAESAE, ISAETrainingSAE
from sae_lens_isae.architectures.isae_config import ISAESAEConfig, ISAETrainingSAEConfig
from sae_lens_isae.architectures.isae_ls import ISAELSTrainingSAE, ISAELSTrainingSAEConfig
from sae_lens_isae.architectures.isae_me import (
    ISAEMESAE,
    ISAEMESAEConfig,
    ISAEMETrainingSAE,
    ISAEMETrainingSAEConfig,
)
from sae_lens_isae.architectures.regularized import (
    RegularizedAbsTopKTrainingSAE,
    RegularizedAbsTopKTrainingSAEConfig,
    RegularizedBatchTopKTrainingSAE,
    RegularizedBatchTopKTrainingSAEConfig,
    RegularizedConfig,
    RegularizedGatedTrainingSAE,
    RegularizedGatedTrainingSAEConfig,
    RegularizedJumpReLUTrainingSAE,
    RegularizedJumpReLUTrainingSAEConfig,
    RegularizedMatchingPursuitTrainingSAE,
    RegularizedMatchingPursuitTrainingSAEConfig,
    RegularizedMatryoshkaBatchTopKTrainingSAE,
    RegularizedMatryoshkaBatchTopKTrainingSAEConfig,
    RegularizedMixin,
    RegularizedStandardTrainingSAE,
    RegularizedStandardTrainingSAEConfig,
    RegularizedTopKTrainingSAE,
    RegularizedTopKTrainingSAEConfig,
    regularize,
)
from sae_lens_isae.evals import BenchReport, BenchResult, bench
from sae_lens_isae.identifiability import (
    Audit,
    AuditReport,
    DictionaryMatch,
    PairIdentifiability,
    PairwiseReport,
    audit,
    consensus_sae,
    match_dictionaries,
    pairwise_identifiability,
)
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.refit import refit
from sae_lens_isae.recoding import (
    PromptedModel,
    RecodeSettings,
    RecodingReport,
    load_prompts,
    prompted_model,
    recode,
)

__version__ = "0.1.0"

__all__ = [
    "ISAEMESAE",
    "ISAESAE",
    "ActivationSource",
    "Audit",
    "AuditReport",
    "BenchReport",
    "BenchResult",
    "DictionaryMatch",
    "ISAELSTrainingSAE",
    "ISAELSTrainingSAEConfig",
    "ISAEMESAEConfig",
    "ISAEMETrainingSAE",
    "ISAEMETrainingSAEConfig",
    "ISAESAEConfig",
    "ISAETrainingSAE",
    "ISAETrainingSAEConfig",
    "LinearSAE",
    "PairIdentifiability",
    "PairwiseReport",
    "PromptedModel",
    "RecodeSettings",
    "RecodingReport",
    "RegularizedAbsTopKTrainingSAE",
    "RegularizedAbsTopKTrainingSAEConfig",
    "RegularizedBatchTopKTrainingSAE",
    "RegularizedBatchTopKTrainingSAEConfig",
    "RegularizedConfig",
    "RegularizedGatedTrainingSAE",
    "RegularizedGatedTrainingSAEConfig",
    "RegularizedJumpReLUTrainingSAE",
    "RegularizedJumpReLUTrainingSAEConfig",
    "RegularizedMatchingPursuitTrainingSAE",
    "RegularizedMatchingPursuitTrainingSAEConfig",
    "RegularizedMatryoshkaBatchTopKTrainingSAE",
    "RegularizedMatryoshkaBatchTopKTrainingSAEConfig",
    "RegularizedMixin",
    "RegularizedStandardTrainingSAE",
    "RegularizedStandardTrainingSAEConfig",
    "RegularizedTopKTrainingSAE",
    "RegularizedTopKTrainingSAEConfig",
    "__version__",
    "audit",
    "bench",
    "consensus_sae",
    "load_prompts",
    "match_dictionaries",
    "open_activations",
    "pairwise_identifiability",
    "prompted_model",
    "recode",
    "refit",
    "regularize",
]

_architectures.register()
