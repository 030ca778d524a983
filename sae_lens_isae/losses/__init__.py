"""Loss terms for any SAELens training class. A new term is one file and its lines here."""

from dataclasses import dataclass

from sae_lens_isae.losses.arip import ARIPConfig, ARIPLoss
from sae_lens_isae.losses.reweighting import (
    ReweightingConfig,
    ReweightingLoss,
    semantic_consistency,
)
from sae_lens_isae.losses.self_consistency import SelfConsistencyConfig, SelfConsistencyLoss
from sae_lens_isae.losses.terms import (
    LossTerm,
    LossTermsMixin,
    StepContext,
    check_weight,
    drop_training_state,
)


@dataclass(kw_only=True)
class LossTermsConfig(ARIPConfig, SelfConsistencyConfig, ReweightingConfig):
    """The fields of all loss terms. Stands after the SAELens config among the bases."""


LOSS_TERMS: tuple[type[LossTerm], ...] = (ARIPLoss, SelfConsistencyLoss, ReweightingLoss)

__all__ = [
    "LOSS_TERMS",
    "LossTerm",
    "LossTermsConfig",
    "LossTermsMixin",
    "StepContext",
    "check_weight",
    "drop_training_state",
    "semantic_consistency",
]
