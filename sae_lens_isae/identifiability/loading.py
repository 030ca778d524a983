"""SAEs and activations by the names that a user types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import load_file


def load_sae(name: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from a folder, or by a pretrained name.

    A pretrained name is `release/sae_id` with a release of SAELens' directory, or
    `user/repository/sae_id` on the hub.

    Raises:
        FileNotFoundError: The name is neither.
        ValueError: SAELens does not know the id, or the architecture is not registered.
    """
    if (Path(name) / SAE_CFG_FILENAME).is_file():
        try:
            return SAE.load_from_disk(name, device=device)
        except KeyError as error:
            raise ValueError(
                f"{name}: SAELens has no inference class for architecture {error}; load the "
                "exported SAE (output_path), not a training checkpoint, or import the package that "
                "registers it"
            ) from error
    parts = name.split("/")
    n_release = 1 if parts[0] in get_pretrained_saes_directory() else 2
    # a name below an existing folder is a mistyped path, not somebody's repository
    local = name.startswith((".", "/", "~")) or Path(parts[0]).exists()
    if len(parts) <= n_release or (local and n_release == 2):
        raise FileNotFoundError(
            f"{name!r} is neither a folder with {SAE_CFG_FILENAME} nor a pretrained "
            "release/sae_id or user/repository/sae_id"
        )
    release, sae_id = "/".join(parts[:n_release]), "/".join(parts[n_release:])
    return SAE.from_pretrained(release, sae_id, device=device)


def load_activations(path: Path) -> Float[torch.Tensor, "samples d_in"]:
    """Read activations [..., d_in] from a `.safetensors` (one tensor, or `activations`) or `.npy`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The format is unknown, or the file does not hold one matrix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no activations file {path}")
    if path.suffix == ".npy":
        activations = torch.from_numpy(np.load(path))
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        name = "activations" if "activations" in tensors else next(iter(tensors), "")
        if not name or (name != "activations" and len(tensors) > 1):
            raise ValueError(
                f"{path} holds tensors {sorted(tensors)}, expected one or one named 'activations'"
            )
        activations = tensors[name]
    else:
        raise ValueError(f"activations must be .safetensors or .npy, got {path.name}")
    if activations.ndim < 2 or not activations.is_floating_point():
        raise ValueError(
            f"{path} holds {activations.dtype} of shape {tuple(activations.shape)}, expected "
            "floating-point activations [..., d_in]"
        )
    return activations.flatten(0, -2).float()
