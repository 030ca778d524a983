"""Whether SAEs are for the same activations, so that comparing them means something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.identity import SOURCE_FIELDS

_DECISIVE = ("model_name", "hook_name", "hook_head_index")
"""SAEs that differ here see different activations."""


def check_comparable(saes: Mapping[str, SAE[Any]], *, force: bool = False) -> list[str]:
    """How SAEs differ in what they are for, one sentence for each field of their metadata.

    A field that an SAE leaves open agrees with everything.

    Args:
        force: Compare SAEs even if they are for different models or hooks.

    Raises:
        InputError: They are for different models or hooks, and `force` is off.
    """
    differences: dict[str, str] = {}
    for field in SOURCE_FIELDS:
        values = {name: sae.cfg.metadata[field] for name, sae in saes.items()}
        said = {name: value for name, value in values.items() if value is not None}
        if len({repr(value) for value in said.values()}) > 1:
            listed = ", ".join(f"{value!r} ({name})" for name, value in said.items())
            differences[field] = f"the SAEs differ in {field}: {listed}."
    decisive = [differences[field] for field in _DECISIVE if field in differences]
    if decisive and not force:
        raise InputError(
            f"{' '.join(decisive)} They are for different activations, and their codes do not "
            "compare; if you mean it, add --force (force=True)"
        )
    return list(differences.values())
