"""SAEs by the names that a user types."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import repo_folder_name
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.loading.pretrained_saes_directory import (
    get_pretrained_saes_directory,
    get_repo_id_and_folder_name,
)
from sae_lens.registry import SAE_CLASS_REGISTRY
from safetensors import safe_open

from sae_lens_isae.errors import InputError, MissingInputError, explained, reason
from sae_lens_isae.inputs.linear_sae import LinearSAE

AnySAE = SAE[Any] | str | Path
AnySAEs = AnySAE | Sequence[AnySAE] | Mapping[str, AnySAE]
"""One SAE or several, each loaded already or named as for `load_sae`."""


def named_saes(saes: AnySAEs, device: str = "cpu") -> dict[str, SAE[Any]]:
    """SAEs by name, however they were given; those that are named are loaded.

    Args:
        saes: See `given_saes`.
        device: Where to load SAEs; those that are loaded stay where they are.

    Raises:
        InputError: Something is no SAE, or cannot be loaded.
    """
    return {
        name: sae if isinstance(sae, SAE) else load_sae(str(sae), device)
        for name, sae in given_saes(saes).items()
    }


def given_saes(saes: AnySAEs) -> dict[str, AnySAE]:
    """SAEs by name as they were given, loaded or not.

    Args:
        saes: In a mapping the keys are the names; in a list SAEs are named by their folders, or by
            their position where they are loaded already.

    Raises:
        InputError: Something is no SAE and no name of one.
    """
    # most callers have no type checker
    given: Any = [saes] if isinstance(saes, SAE | str | Path) else saes
    if not isinstance(given, Mapping | Sequence):
        raise InputError(
            "saes must be an SAE or the name of one, or several in a list or a mapping, got "
            f"{type(given).__name__}"
        )
    values: list[Any] = list(given.values() if isinstance(given, Mapping) else given)
    for sae in values:
        if not isinstance(sae, SAE | str | Path):
            raise InputError(f"an SAE or the name of one was expected, got {type(sae).__name__}")
    if isinstance(given, Mapping):
        names = [str(name) for name in given]
    elif isinstance(saes, SAE):
        names = ["SAE"]
    else:
        said = [str(i) if isinstance(sae, SAE) else str(sae) for i, sae in enumerate(values)]
        names = labels(said)
    return dict(zip(names, values, strict=True))


def load_sae(name: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from a folder, or by a pretrained name.

    A pretrained name is `release/sae_id` with a release of SAELens' directory, or
    `user/repository/sae_id` on the hub.

    Raises:
        MissingInputError: The name is neither.
        InputError: SAELens does not know the id, or the architecture is not registered.
    """
    pretrained = release_and_id(name)
    if pretrained is not None:
        return load_pretrained(*pretrained, device)
    return _load_folder(Path(name), device)


def _load_folder(folder: Path, device: str) -> SAE[Any]:
    config_file, weights_file = folder / SAE_CFG_FILENAME, folder / SAE_WEIGHTS_FILENAME
    with explained(config_file, "is not the config of an SAE"):
        config: Any = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise InputError(f"{config_file} is not the config of an SAE: it holds no mapping")
        architecture: Any = handle_config_defaulting(config).get("architecture")
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise InputError(
            f"{folder}: SAELens has no inference class for architecture {architecture!r}; load the "
            "exported SAE (output_path), not a training checkpoint, or import the package that "
            "registers it"
        )
    if not weights_file.is_file():
        raise MissingInputError(
            f"{folder} has no {SAE_WEIGHTS_FILENAME}: the checkpoint is incomplete, copy the whole "
            "folder or train again"
        )
    with explained(weights_file, "cannot be read", "copy it again"), safe_open(weights_file, "pt"):
        pass
    with explained(
        folder,
        f"cannot be loaded as {architecture!r}",
        f"{SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME} must belong together and be as SAELens "
        "saved them",
    ):
        sae = SAE.load_from_disk(folder, device=device)
        # settings of a wrong kind, such as k = "3", show when they are used
        LinearSAE(sae, str(folder)).encode(torch.ones(1, sae.cfg.d_in))
    return sae


def release_and_id(name: str) -> tuple[str, str] | None:
    """The parts of a pretrained SAE's name; None for a folder with an SAE.

    Raises:
        MissingInputError: The name is neither.
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
        MissingInputError: It is not in the local cache, and the hub cannot be reached.
        InputError: SAELens does not know the release or the id.
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
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{release}/{sae_id} cannot be loaded: {reason(error)}; "
            "`from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory`"
            " lists releases and ids"
        ) from error


def labels(names: list[str]) -> list[str]:
    """Names without the folder that all of them share, numbered where they repeat; of a single
    folder that is named from the root its last two parts."""
    if len(names) == 1 and Path(names[0]).is_absolute():
        return ["/".join(Path(names[0]).parts[-2:]).lstrip("/")]
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
