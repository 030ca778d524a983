"""What SAELens trains and loads. `register()` makes the names known to SAELens."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from sae_lens_isae.architectures.isae import ISAESAE, ISAETrainingSAE
from sae_lens_isae.architectures.isae_config import ISAESAEConfig, ISAETrainingSAEConfig
from sae_lens_isae.architectures.isae_ls import ISAELSTrainingSAE, ISAELSTrainingSAEConfig
from sae_lens_isae.architectures.isae_me import (
    ISAEMESAE,
    ISAEMESAEConfig,
    ISAEMETrainingSAE,
    ISAEMETrainingSAEConfig,
)
from sae_lens_isae.architectures.least_squares import SUFFIX, least_squares_class
from sae_lens_isae.architectures.regularized import REGULARIZED
from sae_lens_isae.errors import InputError

_TRAINING: dict[str, tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]]] = {
    "isae": (ISAETrainingSAE, ISAETrainingSAEConfig),
    "isae_me": (ISAEMETrainingSAE, ISAEMETrainingSAEConfig),
    "isae_ls": (ISAELSTrainingSAE, ISAELSTrainingSAEConfig),
    **{cfg.architecture(): (sae, cfg) for sae, cfg in REGULARIZED},
}

# Exports of `isae` carry stock names, but its training checkpoints carry its own: this class lets
# `SAE.load_from_disk` read one. The regularized ones have none, like stock batchtopk.
_INFERENCE: dict[str, tuple[type[SAE[Any]], type[SAEConfig]]] = {
    "isae": (ISAESAE, ISAESAEConfig),
    "isae_me": (ISAEMESAE, ISAEMESAEConfig),
}

_REBUILD = ("standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit")
"""SAELens' own that rebuild their input, one activation at a time."""
_LEAST_SQUARES = {
    name + SUFFIX: least_squares_class(name + SUFFIX, *classes)
    for name, classes in {**{n: SAE_CLASS_REGISTRY[n] for n in _REBUILD}, **_INFERENCE}.items()
}


def register() -> None:
    """Register every architecture with SAELens. Harmless when repeated or after a reload.

    Raises:
        InputError: Another package's class holds one of the names; nothing is registered then.
    """
    registries: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (SAE_TRAINING_CLASS_REGISTRY, _TRAINING),
        (SAE_CLASS_REGISTRY, {**_INFERENCE, **_LEAST_SQUARES}),
    ]
    for registry, entries in registries:
        for name, (sae_class, _) in entries.items():
            if name in registry and _full_name(registry[name][0]) != _full_name(sae_class):
                raise InputError(
                    f"SAELens architecture {name!r} is already registered to "
                    f"{_full_name(registry[name][0])}, so {_full_name(sae_class)} cannot take it; "
                    "import only one of the two packages"
                )
    # SAELens' register functions refuse a name that exists, and a reload has to replace its own
    for registry, entries in registries:
        registry.update(entries)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
