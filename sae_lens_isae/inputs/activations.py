"""Activations to measure SAEs on, read chunk by chunk: by name, from a tensor, from a generator."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.synthetic import SyntheticModel

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.inputs.activation_cache import CACHE_FILENAME, from_cache
from sae_lens_isae.inputs.activation_files import from_array, from_cached, from_safetensors
from sae_lens_isae.inputs.activation_source import DEFAULT_N_SAMPLES, ActivationSource
from sae_lens_isae.inputs.model_activations import from_model
from sae_lens_isae.synthetic import GENERATORS

SYNTHETIC_PREFIX = "synthetic:"
_GENERATED = 4096
_MOST_NUMBERS = 2**31


AnyActivations = Float[torch.Tensor, "samples d_in"] | ActivationSource | str | Path | None
"""A tensor, a source, the name of one as `open_activations` takes it; or None: the SAEs' model runs
on the text that they were trained on."""


def as_source(activations: AnyActivations, saes: Mapping[str, SAE[Any]]) -> ActivationSource:
    """Activations for SAEs, however they were given.

    Raises:
        InputError: They cannot be read, there are none, or their dimension is not that of an SAE.
    """
    first = next(iter(saes.values()))
    if isinstance(activations, torch.Tensor):
        if activations.ndim != 2:
            raise InputError(f"activations must be [samples, d_in], got {tuple(activations.shape)}")
        rows = activations
        source = ActivationSource(len(rows), rows.shape[1], "tensor", lambda: iter([rows]))
    elif isinstance(activations, ActivationSource):
        source = activations
    elif isinstance(activations, str | Path):
        metadata = first.cfg.metadata
        source = open_activations(
            str(activations), hook_name=metadata.hook_name, model_name=metadata.model_name
        )
    elif activations is None:
        source = from_model(first, device=str(first.device))
    else:
        raise InputError(
            "activations must be a tensor, the name of a file, folder or generator, an "
            f"ActivationSource, or None to run the model, got {type(activations).__name__}"
        )
    for name, sae in saes.items():
        if source.d_in != sae.cfg.d_in:
            raise InputError(
                f"{source.description}: d_in is {source.d_in}, the SAE {name} has {sae.cfg.d_in}"
            )
    if source.n_samples < 1:
        raise InputError(f"{source.description}: there are no activations")
    return source


def open_activations(
    name: str,
    n_samples: int | None = None,
    hook_name: str | None = None,
    model_name: str | None = None,
) -> ActivationSource:
    """Activations by the name that a user types.

    A `.safetensors` or `.npy` file with activations [..., d_in]; a folder of `isae cache`, of which
    the held-out activations are read, or of SAELens' CacheActivationsRunner; or
    `synthetic:NAME,option=value,...` with a generator of `sae_lens_isae.synthetic`, e.g.
    `synthetic:iid,num_features=256,hidden_dim=96,k=5`.

    Args:
        n_samples: Read no more than this many; all there are by default, 4,096 from a generator.
        hook_name: Column of a cached data set; needed where it has several.
        model_name: Whose tokens such a data set holds, to know how they are written.

    Raises:
        MissingInputError: There is no such file or folder.
        InputError: The format is unknown, or it does not hold activations.

    Examples:
        >>> source = open_activations("synthetic:iid,num_features=32,hidden_dim=16,k=2", 100)
        >>> source.n_samples, source.d_in
        (100, 16)
    """
    if name.startswith(SYNTHETIC_PREFIX):
        return _from_generator_name(name, n_samples)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / CACHE_FILENAME).exists():
            return from_cache(path, n_samples)
        return from_cached(path, n_samples, hook_name, model_name)
    if not path.is_file():
        raise MissingInputError(f"there is no activations file or folder {path}")
    with explained(path, "cannot be read as activations", "write it again"):
        if path.suffix == ".npy":
            return from_array(np.load(path, mmap_mode="r"), path, n_samples)
        if path.suffix == ".safetensors":
            return from_safetensors(path, n_samples)
    raise InputError(
        f"activations must be .safetensors, .npy, a folder of cached activations or "
        f"{SYNTHETIC_PREFIX}NAME, got {path.name}"
    )


def from_generator(
    model: SyntheticModel, n_samples: int = DEFAULT_N_SAMPLES, description: str = "generator"
) -> ActivationSource:
    """Samples of a SAELens synthetic model; torch's global generator chooses them once."""
    seed = int(torch.randint(2**31, ()))

    def chunks() -> Iterator[torch.Tensor]:
        for number in itertools.count():
            # every pass draws the same, regardless of other random draws
            with torch.random.fork_rng():
                torch.manual_seed(seed + number)
                chunk = model.sample(min(n_samples, _GENERATED))
            yield chunk

    return ActivationSource(n_samples, model.cfg.hidden_dim, description, chunks)


def _from_generator_name(name: str, n_samples: int | None) -> ActivationSource:
    kind, *options = name.removeprefix(SYNTHETIC_PREFIX).split(",")
    if kind not in GENERATORS:
        raise InputError(f"{name}: unknown generator {kind!r}, expected one of {list(GENERATORS)}")
    example = f"{SYNTHETIC_PREFIX}{kind},num_features=256,hidden_dim=96,k=5,seed=0"
    with explained(name, "is no generator", f"expected e.g. {example}"):
        model = GENERATORS[kind](**_generator_settings(name, kind, options))
    return from_generator(model, n_samples or DEFAULT_N_SAMPLES, name)


def _generator_settings(name: str, kind: str, options: list[str]) -> dict[str, Any]:
    parameters = inspect.signature(GENERATORS[kind]).parameters
    settings: dict[str, Any] = {}
    for option in options:
        key, value = option.split("=")
        if key in settings:
            raise InputError(f"{name}: {key} is given twice")
        settings[key] = float(value) if "." in value else int(value)
        whole = key in parameters and parameters[key].annotation == "int"
        if whole and (isinstance(settings[key], float) or settings[key] < 0):
            raise InputError(f"{name}: {key} must be an integer >= 0, got {value}")
    n_numbers = settings.get("num_features", 1) * settings.get("hidden_dim", 1)
    if n_numbers > _MOST_NUMBERS:
        raise InputError(
            f"{name}: num_features * hidden_dim = {n_numbers:,} concepts' entries do not fit in "
            "memory; use smaller sizes"
        )
    return settings
