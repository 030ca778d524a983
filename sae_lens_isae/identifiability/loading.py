"""SAEs by the names that a user types, and the model that they share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import repo_folder_name
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.loading.pretrained_saes_directory import (
    get_pretrained_saes_directory,
    get_repo_id_and_folder_name,
)

from sae_lens_isae.errors import InputError, MissingInputError
from sae_lens_isae.sources import load_language_model

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def load_sae(name: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from a folder, or by a pretrained name.

    A pretrained name is `release/sae_id` with a release of SAELens' directory, or
    `user/repository/sae_id` on the hub.

    Raises:
        FileNotFoundError: The name is neither.
        ValueError: SAELens does not know the id, or the architecture is not registered.
    """
    pretrained = release_and_id(name)
    if pretrained is not None:
        return load_pretrained(*pretrained, device)
    try:
        return SAE.load_from_disk(name, device=device)
    except KeyError as error:
        raise InputError(
            f"{name}: SAELens has no inference class for architecture {error}; load the exported "
            "SAE (output_path), not a training checkpoint, or import the package that registers it"
        ) from error


def release_and_id(name: str) -> tuple[str, str] | None:
    """The parts of a pretrained SAE's name; None for a folder with an SAE.

    Raises:
        FileNotFoundError: The name is neither.
    """
    if (Path(name) / SAE_CFG_FILENAME).is_file():
        return None
    parts = name.split("/")
    n_release = 1 if parts[0] in get_pretrained_saes_directory() else 2
    # a name below an existing folder is a mistyped path, not somebody's repository
    local = name.startswith((".", "/", "~")) or Path(parts[0]).exists()
    if len(parts) <= n_release or (local and n_release == 2):
        raise MissingInputError(
            f"{name!r} is neither a folder with {SAE_CFG_FILENAME} nor a pretrained "
            "release/sae_id or user/repository/sae_id"
        )
    return "/".join(parts[:n_release]), "/".join(parts[n_release:])


def load_pretrained(release: str, sae_id: str, device: str = "cpu") -> SAE[Any]:
    """Load a pretrained SAE through SAELens.

    Raises:
        FileNotFoundError: It is not in the local cache, and the hub cannot be reached.
        ValueError: SAELens does not know the release or the id.
    """
    try:
        return SAE.from_pretrained(release, sae_id, device=device)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        repository, folder = get_repo_id_and_folder_name(release, sae_id)
        raise MissingInputError(
            f"{release}/{sae_id} is not on this machine, and the hub cannot be reached; where it "
            f"can, run `hf download {repository} --include '{folder}/*'` and bring the folder "
            f"{HF_HUB_CACHE}/{repo_folder_name(repo_id=repository, repo_type='model')}"
        ) from error
    except EntryNotFoundError as error:
        raise MissingInputError(f"{release}/{sae_id}: {error}") from error


def load_shared_model(
    saes: Sequence[SAE[Any]], model_name: str | None, device: str
) -> tuple[str, HookedRootModule]:
    """The model that SAEs were trained on, and its name, as their metadata say.

    Args:
        model_name: In place of the one in the metadata.

    Raises:
        ValueError: The metadata name several models, or none.
        FileNotFoundError: The model cannot be loaded.
    """
    metadata = saes[0].cfg.metadata
    names = {sae.cfg.metadata.model_name for sae in saes}
    if model_name is None and (len(names) > 1 or None in names):
        raise InputError(
            f"the SAEs' metadata name the models {sorted(map(str, names))}; say which one to run "
            "(--model)"
        )
    name = model_name or str(metadata.model_name)
    model = load_language_model(
        name,
        metadata.model_class_name or "HookedTransformer",
        device,
        sorted({str(sae.cfg.metadata.hook_name) for sae in saes}),
        metadata.model_from_pretrained_kwargs,
    )
    return name, model


def labels(names: list[str]) -> list[str]:
    """Names without the folder that all of them share, numbered where they repeat."""
    # folders given in both ways, relative and absolute, have no folder in common to leave out
    mixed = len({Path(name).is_absolute() for name in names}) > 1
    several = len(names) > 1 and not mixed
    shared = os.path.commonpath([Path(name).parent for name in names]) if several else ""
    short = [os.path.relpath(name, shared) if shared else name for name in names]
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in short:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
