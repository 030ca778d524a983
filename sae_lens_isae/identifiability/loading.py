"""SAEs by the names that a user types, and the model that they share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.identity import model_identity
from sae_lens_isae.sources import harmless_model_kwargs, load_language_model, width_at

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
        LinearModel(sae, str(folder)).encode(torch.ones(1, sae.cfg.d_in))
    return sae


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
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{release}/{sae_id} cannot be loaded: {reason(error)}; "
            "`from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory`"
            " lists releases and ids"
        ) from error


def load_shared_model(
    saes: Sequence[SAE[Any]],
    model_name: str | None,
    device: str,
    *,
    trust_remote_code: bool = False,
) -> tuple[SharedModel, HookedRootModule]:
    """The model that SAEs were trained on, and what it is, as their metadata say.

    Args:
        model_name: In place of the one in the metadata.
        trust_remote_code: Let the metadata name code to run, and code that comes with the model
            run.

    Raises:
        InputError: The metadata name several models, or none, or want code to run; or the model
            does not have what an SAE was trained on.
        MissingInputError: The model cannot be loaded.
    """
    shared = find_shared_model(saes, model_name, trust_remote_code=trust_remote_code)
    model = load_language_model(
        shared.name,
        shared.class_name,
        device,
        sorted({str(sae.cfg.metadata.hook_name) for sae in saes}),
        shared.kwargs,
    )
    for sae in saes:
        hook_name, head_index = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
        width = width_at(model, str(hook_name), head_index)
        if width != sae.cfg.d_in:
            raise InputError(
                f"an SAE for {hook_name} has d_in {sae.cfg.d_in}, the model has {width} there: "
                f"{shared.name} is not the model that it was trained on (--model)"
            )
    return shared, model


@dataclass(frozen=True)
class SharedModel:
    """What is loaded for one or more SAEs."""

    name: str
    class_name: str
    kwargs: dict[str, Any]

    @cached_property
    def identity(self) -> str:
        """See `identity.model_identity`, which reads a GGUF file as a whole."""
        return model_identity(self.name, self.class_name, self.kwargs)


def find_shared_model(
    saes: Sequence[SAE[Any]], model_name: str | None, *, trust_remote_code: bool = False
) -> SharedModel:
    """Which model `load_shared_model` loads; its errors but those of loading."""
    names = {sae.cfg.metadata.model_name for sae in saes}
    if model_name is None and (len(names) > 1 or None in names):
        raise InputError(
            f"the SAEs' metadata name the models {sorted(map(str, names))}; say which one to run "
            "(--model)"
        )
    metadata = saes[0].cfg.metadata
    kwargs: Any = metadata.model_from_pretrained_kwargs
    return SharedModel(
        model_name or str(metadata.model_name),
        str(metadata.model_class_name or "HookedTransformer"),
        harmless_model_kwargs(kwargs, trust_remote_code=trust_remote_code),
    )


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
