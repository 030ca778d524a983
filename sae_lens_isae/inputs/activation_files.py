"""Activations in files: .npy, .safetensors, the data sets of SAELens' CacheActivationsRunner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_isae.errors import InputError, explained
from sae_lens_isae.files import write_whole
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.language_models import load_tokenizer
from sae_lens_isae.inputs.patch_images import Origin, origin_of_file
from sae_lens_isae.inputs.token_text import token_text

_CHUNK = 4096
_FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")


def from_array(array: Any, path: Path, n_samples: int | None) -> ActivationSource:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is no single array; save one with numpy.save")
    if array.ndim < 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise _not_activations(path, str(array.dtype), array.shape)
    native = array.dtype.newbyteorder("=")
    rows = array.reshape(-1, array.shape[-1])
    n = min(n_samples or len(rows), len(rows))

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, n, _CHUNK):
            # a copy: the file is mapped read-only, and may come from a machine of another kind
            yield torch.from_numpy(np.array(rows[start : start + _CHUNK], dtype=native))

    return ActivationSource(n, rows.shape[1], str(path), chunks)


def save_activations(
    path: Path, activations: Float[torch.Tensor, "samples d_in"], origin: Origin | None = None
) -> None:
    """Write what `from_safetensors` reads, with the tokens or image patches that they are of."""
    tensors = {"activations": activations.contiguous(), **(origin.tensors() if origin else {})}
    metadata = origin.metadata() if origin else None
    write_whole(path, lambda scratch: save_file(tensors, scratch, metadata))


def from_safetensors(path: Path, n_samples: int | None) -> ActivationSource:
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        name = "activations" if "activations" in names else next(iter(names), "")
        if not name or (name != "activations" and len(names) > 1):
            raise InputError(
                f"{path} holds tensors {names}, expected one or one named 'activations'"
            )
        view = file.get_slice(name)
        shape, dtype = tuple(view.get_shape()), view.get_dtype()
    if len(shape) < 2 or dtype not in _FLOAT_DTYPES:
        raise _not_activations(path, dtype, shape)
    per_row = int(np.prod(shape[1:-1]))
    n = min(n_samples or shape[0] * per_row, shape[0] * per_row)
    step = max(1, _CHUNK // max(per_row, 1))

    def chunks() -> Iterator[torch.Tensor]:
        with safe_open(path, "pt") as file:
            view = file.get_slice(name)
            for start in range(0, shape[0], step):
                yield view[start : start + step].flatten(0, -2)

    def origin() -> Origin | None:
        with safe_open(path, "pt") as file:
            return origin_of_file(file)

    return ActivationSource(n, shape[-1], str(path), chunks, origin)


def from_cached(
    folder: Path, n_samples: int | None, hook_name: str | None, model_name: str | None
) -> ActivationSource:
    with explained(folder, "is not a data set of cached activations"):
        dataset = load_from_disk(str(folder))
    if not isinstance(dataset, Dataset):
        raise InputError(f"{folder} holds several data sets, name the folder of one")
    columns = [c for c in dataset.column_names if c != "token_ids"]
    if hook_name not in columns:
        if len(columns) != 1:
            raise InputError(f"{folder} holds {columns}, and the SAE's hook is {hook_name!r}")
        hook_name = columns[0]
    with explained(folder, "is not a data set of cached activations"):
        rows = dataset.select_columns([hook_name]).with_format("torch")
        shape = tuple(rows[0][hook_name].shape) if len(rows) else (0, 0)
        if len(shape) != 2:
            raise _not_activations(folder, hook_name, shape)
    n = min(n_samples or len(rows) * shape[0], len(rows) * shape[0])
    step = max(1, _CHUNK // max(shape[0], 1))

    def chunks() -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            yield torch.cat([rows[i][hook_name] for i in range(start, stop)])

    def origin() -> Origin | None:
        if model_name is None or "token_ids" not in dataset.column_names:
            return None
        token_ids = torch.tensor(dataset["token_ids"])
        if token_ids.shape != (len(rows), shape[0]):
            return None
        return token_text(load_tokenizer(model_name), token_ids, torch.arange(n))

    return ActivationSource(n, shape[-1], str(folder), chunks, origin)


def _not_activations(path: Path, dtype: str, shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"{path} holds {dtype} of shape {shape}, expected floating-point activations [..., d_in]"
    )
