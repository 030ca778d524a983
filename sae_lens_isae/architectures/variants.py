"""The four variants that the paper compares, under one recipe."""

from typing import Any

from sae_lens_isae.architectures.isae_config import ISAETrainingSAEConfig
from sae_lens_isae.architectures.isae_me import ISAEMETrainingSAEConfig


def paper_variants(arip_weight: float = 0.01, **shared: Any) -> dict[str, ISAETrainingSAEConfig]:
    """Configs of TopK, AbsTopK, iSAE and iSAE-ME, in the order of the paper's tables.

    Args:
        arip_weight: Of iSAE and iSAE-ME, the paper uses 0.1; the other two are without.
        shared: `d_in`, `d_sae`, `k` and further config fields, the same for all four.

    Examples:
        >>> variants = paper_variants(d_in=16, d_sae=32, k=2)
        >>> {name: cfg.architecture() for name, cfg in variants.items()}
        {'TopK': 'isae', 'AbsTopK': 'isae', 'iSAE': 'isae', 'iSAE-ME': 'isae_me'}
    """
    return {
        "TopK": ISAETrainingSAEConfig(**shared, activation="topk", arip_weight=0.0),
        "AbsTopK": ISAETrainingSAEConfig(**shared, arip_weight=0.0),
        "iSAE": ISAETrainingSAEConfig(**shared, arip_weight=arip_weight),
        "iSAE-ME": ISAEMETrainingSAEConfig(**shared, arip_weight=arip_weight),
    }
