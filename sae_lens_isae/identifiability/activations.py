"""Where activations come from: a file, SAELens' cached activations, a model, a generator."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from jaxtyping import Float
from sae_lens import SAE, ActivationsStore
from sae_lens.synthetic import SyntheticModel
from sae_lens.util import get_special_token_ids
from safetensors import safe_open
from tqdm.auto import tqdm

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.identifiability.loading import load_shared_model
from sae_lens_isae.sources import PACKAGE_PREFIX, load_package_text
from sae_lens_isae.synthetic import GENERATORS

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

SYNTHETIC_PREFIX = "synthetic:"
DEFAULT_N_SAMPLES = 4096
"""Drawn from a model or a generator, which have no end of their own."""

_CHUNK = 4096
_GENERATED = 4096
_FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
_MOST_NUMBERS = 2**31
_PROMPTS = 8


@dataclass(frozen=True)
class ActivationSource:
    """Activations that are read chunk by chunk, never all at once.

    Iterating again gives the same activations in the same order.
    """

    n_samples: int
    d_in: int
    description: str
    chunks: Callable[[], Iterator[Float[torch.Tensor, "chunk d_in"]]]
    """Chunks of any size; what exceeds `n_samples` is dropped."""

    def non_zero_batches(
        self, size: int, description: str
    ) -> Iterator[Float[torch.Tensor, "batch d_in"]]:
        """`batches` without all-zero activations, under a progress bar: masked tokens, which any
        SAE without bias rebuilds exactly."""
        with tqdm(total=self.n_samples, desc=description, unit="sample", leave=False) as progress:
            for x in self.batches(size):
                some = x[(x != 0).any(-1)]
                if len(some):
                    yield some
                progress.update(len(x))

    def batches(self, size: int) -> Iterator[Float[torch.Tensor, "batch d_in"]]:
        """The activations in float32, at most `size` at a time.

        Raises:
            ValueError: An activation is NaN or Inf, or there are fewer than `n_samples`.
        """
        left = self.n_samples
        for chunk in self.chunks():
            for part in chunk[:left].split(size):
                batch = part.float()
                if not batch.isfinite().all():
                    raise InputError(
                        f"{self.description}: the activations hold NaN or Inf in float32"
                    )
                left -= len(batch)
                yield batch
            if left <= 0:
                return
        raise InputError(
            f"{self.description}: {self.n_samples - left} activations came, {self.n_samples} were "
            "expected"
        )


Activations = Float[torch.Tensor, "samples d_in"] | ActivationSource


def as_source(activations: Activations, d_in: int) -> ActivationSource:
    """A source of a tensor, or the source itself.

    Raises:
        ValueError: There are no activations, or not of dimension `d_in`.
    """
    if isinstance(activations, torch.Tensor):
        if activations.ndim != 2:
            raise InputError(f"activations must be [samples, d_in], got {tuple(activations.shape)}")
        source = ActivationSource(
            len(activations), activations.shape[1], "tensor", lambda: iter([activations])
        )
    else:
        source = activations
    if source.d_in != d_in:
        raise InputError(f"{source.description}: d_in is {source.d_in}, the SAEs have {d_in}")
    if source.n_samples < 1:
        raise InputError(f"{source.description}: there are no activations")
    return source


def open_activations(
    name: str, n_samples: int | None = None, hook_name: str | None = None
) -> ActivationSource:
    """Activations by the name that a user types.

    A `.safetensors` or `.npy` file with activations [..., d_in]; a folder of SAELens'
    CacheActivationsRunner; or `synthetic:NAME,option=value,...` with a generator of
    `sae_lens_isae.synthetic`, e.g. `synthetic:iid,num_features=256,hidden_dim=96,k=5`.

    Args:
        n_samples: Read no more than this many; all there are by default, 4,096 from a generator.
        hook_name: Column of a cached data set; needed where it has several.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The format is unknown, or it does not hold activations.
    """
    if name.startswith(SYNTHETIC_PREFIX):
        return _from_generator_name(name, n_samples)
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_cached(path, n_samples, hook_name)
    if not path.is_file():
        raise MissingInputError(f"there is no activations file or folder {path}")
    with explained(path, "cannot be read as activations", "write it again"):
        if path.suffix == ".npy":
            return _from_array(np.load(path, mmap_mode="r"), path, n_samples)
        if path.suffix == ".safetensors":
            return _from_safetensors(path, n_samples)
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
            # every pass draws the same, whatever else draws random numbers meanwhile
            with torch.random.fork_rng():
                torch.manual_seed(seed + number)
                chunk = model.sample(min(n_samples, _GENERATED))
            yield chunk

    return ActivationSource(n_samples, model.cfg.hidden_dim, description, chunks)


def from_model(
    sae: SAE[Any],
    n_samples: int | None = None,
    *,
    model_name: str | None = None,
    text: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> ActivationSource:
    """Activations of a language model at the SAE's hook, through SAELens' `ActivationsStore`.

    What is not given comes from the SAE's metadata: model, data set, context size, special tokens.

    Args:
        model_name: A hub name, a local folder, or `gguf:...` (see `sources`).
        text: A data set on the hub or in a folder, or `package:...`.

    Raises:
        ValueError: The metadata lacks something that was not given; the message says what.
    """
    metadata = sae.cfg.metadata
    model_name = model_name or metadata.model_name
    text = text or metadata.dataset_path
    missing = [
        what
        for what, value in {
            "a model (--model)": model_name,
            "text (--text)": text,
            "hook_name in its metadata": metadata.hook_name,
            "context_size in its metadata": metadata.context_size,
        }.items()
        if value is None
    ]
    if missing:
        raise InputError(
            "this SAE does not say where its activations come from: it needs "
            f"{', '.join(missing)}; or give activations (--activations)"
        )
    assert model_name is not None
    assert text is not None
    n_samples = n_samples or DEFAULT_N_SAMPLES

    @cache
    def load() -> HookedRootModule:
        return load_shared_model([sae], model_name, device, trust_remote_code=trust_remote_code)[1]

    def chunks() -> Iterator[torch.Tensor]:
        model = load()
        store = text_store(sae, model, text, device, n_samples)
        while True:
            yield store.get_filtered_llm_batch().flatten(0, -2).cpu()

    description = f"{model_name} at {metadata.hook_name} on {text}"
    return ActivationSource(n_samples, sae.cfg.d_in, description, chunks)


def text_store(
    sae: SAE[Any],
    model: HookedRootModule,
    text: str,
    device: str,
    n_samples: int = 10**9,
    context_size: int | None = None,
) -> ActivationsStore:
    """SAELens' store of tokens and activations at an SAE's hook, as the SAE was trained.

    Args:
        text: A data set on the hub or in a folder, or `package:...`.
        n_samples: How many activations will be asked for.
        context_size: In place of the one in the SAE's metadata.
    """
    metadata = sae.cfg.metadata
    packaged = text.startswith(PACKAGE_PREFIX)
    dataset = load_package_text(text.removeprefix(PACKAGE_PREFIX)) if packaged else text
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset,
        streaming=not packaged and not Path(text).exists(),
        context_size=context_size,
        store_batch_size_prompts=_PROMPTS,
        total_tokens=n_samples,
        device=device,
        disable_concat_sequences=bool(metadata.disable_concat_sequences),
    )
    # from_sae does not pass on which tokens the SAE was trained without
    excluded: Any = metadata.exclude_special_tokens
    if excluded is True:
        tokenizer: Any = model.tokenizer
        excluded = get_special_token_ids(tokenizer)
    if excluded:
        store.exclude_special_tokens = torch.tensor(excluded, dtype=torch.long, device=device)
    return store


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


def _from_array(array: Any, path: Path, n_samples: int | None) -> ActivationSource:
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


def _from_safetensors(path: Path, n_samples: int | None) -> ActivationSource:
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

    return ActivationSource(n, shape[-1], str(path), chunks)


def _from_cached(folder: Path, n_samples: int | None, hook_name: str | None) -> ActivationSource:
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

    return ActivationSource(n, shape[-1], str(folder), chunks)


def _not_activations(path: Path, dtype: str, shape: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"{path} holds {dtype} of shape {shape}, expected floating-point activations [..., d_in]"
    )
