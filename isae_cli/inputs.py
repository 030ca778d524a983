"""SAEs and activations by the names of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_lens_isae.inputs.activation_source import ActivationSource


def checked_device(device: str | None) -> str:
    """The device that was asked for, or the default.

    Raises:
        InputError: torch does not see it.
    """
    import torch

    from sae_lens_isae.checks import check_device

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return device


def check_samples(samples: int | None) -> None:
    """Refuse a number of samples that is none.

    Raises:
        InputError: It is below 1.
    """
    from sae_lens_isae.errors import InputError

    if samples is not None and samples < 1:
        raise InputError(f"samples must be >= 1, got {samples}")


def open_measured(
    names: Sequence[str],
    activations: str | None,
    *,
    model: str | None,
    text: str | None,
    samples: int | None,
    logits: bool,
    device: str | None,
    seed: int,
    trust_remote_code: bool,
) -> tuple[Mapping[str, SAE[Any]], ActivationSource]:
    """Load SAEs, by labels that tell them apart, and prepare the activations.

    Raises:
        InputError: Something cannot be loaded or does not go together; the message says what.
    """
    from transformers import set_seed

    from sae_lens_isae.checks import check_seed
    from sae_lens_isae.inputs.activations import open_activations
    from sae_lens_isae.inputs.model_activations import from_model, with_model
    from sae_lens_isae.inputs.saes import named_saes

    check_samples(samples)
    place = checked_device(device)
    check_seed(seed)
    set_seed(seed)
    saes = named_saes(list(names), place)
    first = next(iter(saes.values()))
    if activations is not None:
        metadata = first.cfg.metadata
        source = open_activations(
            activations, samples, metadata.hook_name, model or metadata.model_name
        )
        if logits:
            source = with_model(source, first, model, place, trust_remote_code=trust_remote_code)
        return saes, source
    return saes, from_model(
        first,
        samples,
        model_name=model,
        text=text,
        device=place,
        trust_remote_code=trust_remote_code,
    )
