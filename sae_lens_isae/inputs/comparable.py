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


def what_seeds_varied(saes: Mapping[str, SAE[Any]]) -> list[str]:
    """What tells SAEs apart that were trained alike, as far as their metadata say.

    Returns:
        A sentence; none for a single SAE, or where no seed is recorded.
    """
    seeds = {
        name: (sae.cfg.metadata.seed, sae.cfg.metadata.data_seed) for name, sae in saes.items()
    }
    known = {name: pair for name, pair in seeds.items() if None not in pair}
    if len(saes) < 2 or not known:
        return []
    if len(known) < len(saes):
        missing = ", ".join(name for name in saes if name not in known)
        return [f"The seeds of {missing} are not recorded."]
    n_init, n_data = (len(set(column)) for column in zip(*known.values(), strict=True))
    listed = ", ".join(f"{init}/{data} ({name})" for name, (init, data) in known.items())
    said = {
        (False, False): "The SAEs were trained with the same seeds",
        (True, False): "Seeds decided the initial weights: all SAEs saw the same batches",
        (False, True): "Seeds decided the order of the data: all SAEs began with the same weights",
        (True, True): "Seeds decided initial weights and the order of the data",
    }[n_init > 1, n_data > 1]
    return [f"{said} (weights/data: {listed})."]
