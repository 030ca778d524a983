"""Activations of a model on disk, with the tokens or image patches that they come from.

SAELens' CacheActivationsRunner writes Arrow tables in float32, and slower than a GPU runs the model
(`benchmarks/throughput.py`). A cache here is a folder of safetensors files, memory-mapped when
read, in the precision of the model:

    cache.json                       what they are activations of, and the finished files
    activations_00000.safetensors    activations [n, d_in], token_ids [contexts, context], and for
                                     every activation its place in the flattened token_ids
    held_out.safetensors             the same of the first contexts, to measure SAEs on, and how
                                     their tokens are written; or small copies of the first images
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_isae.checks import settings_that_differ
from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import write_json, write_whole
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.patch_images import Origin, origin_of_file

CACHE_FILENAME = "cache.json"
HELD_OUT_FILENAME = "held_out.safetensors"
_VERSION = 1


class TokenActivations(NamedTuple):
    """Activations and where they come from. Of an image model every token is a patch, and its id is
    the number of its image."""

    activations: Float[torch.Tensor, "activations d_in"]
    token_ids: Int[torch.Tensor, "contexts context"]
    places: Int[torch.Tensor, " activations"]
    """In the flattened `token_ids`; tokens that the run leaves out have no activation."""


_PARTS = ("activations", "token_ids", "places")


@dataclass(frozen=True)
class CacheFile:
    """One finished file."""

    name: str
    n_activations: int
    position: tuple[int, int]
    """Where the text goes on after it."""


@dataclass(kw_only=True)
class ActivationCache:
    """A folder of activations. `cache.json` names the files that are whole."""

    folder: Path
    source: Mapping[str, Any]
    """Model, hook, text and whatever else decides which activations these are."""
    d_in: int
    n_planned: int
    """Activations for training that were asked for."""
    files: list[CacheFile] = field(default_factory=list[CacheFile])

    @property
    def n_activations(self) -> int:
        """For training, in finished files."""
        return sum(file.n_activations for file in self.files)

    @property
    def n_bytes(self) -> int:
        """Of the activations for training, in memory."""
        return self.n_activations * self.d_in * self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return getattr(torch, str(self.source["stored_as"]))

    @classmethod
    def read(cls, folder: Path) -> ActivationCache:
        """Open a folder.

        Raises:
            MissingInputError: There is none, or it holds no cache.
            InputError: `cache.json` is damaged.
        """
        path = folder / CACHE_FILENAME
        if not path.is_file():
            other = (folder / "dataset_info.json").is_file()
            raise MissingInputError(
                f"{folder} has no {CACHE_FILENAME}: "
                + (
                    "it is a data set of SAELens' CacheActivationsRunner, which trains with "
                    "--use_cached_activations true --cached_activations_path"
                    if other
                    else "make a cache with `isae cache --config CONFIG --out FOLDER`"
                )
            )
        with explained(path, "is no description of a cache", "make it again with `isae cache`"):
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("version") != _VERSION:
                raise InputError(f"{path} was written by another version of this package")
            files = [
                CacheFile(file["name"], file["n_activations"], tuple(file["position"]))
                for file in data.pop("files")
            ]
            return cls(folder=folder, files=files, **data)

    def save(self) -> None:
        """Write `cache.json`, whole."""
        data = {**asdict(self), "version": _VERSION}
        del data["folder"]
        write_json(self.folder / CACHE_FILENAME, data)

    def add(self, batch: TokenActivations, position: tuple[int, int]) -> None:
        """Write one more file, and name it when it is whole."""
        name = f"activations_{len(self.files):05d}.safetensors"
        self.write(name, batch)
        self.files.append(CacheFile(name, len(batch.activations), position))
        self.save()

    def write(
        self, name: str, batch: TokenActivations, metadata: dict[str, str] | None = None
    ) -> None:
        """Write one file."""
        tensors = {key: part.contiguous() for key, part in zip(_PARTS, batch, strict=True)}
        write_whole(self.folder / name, lambda scratch: save_file(tensors, scratch, metadata))

    def load(self, name: str) -> TokenActivations:
        """One file, with its tokens.

        Raises:
            InputError: It is damaged.
        """
        with self._opened(name) as file:
            return TokenActivations(*(file.get_tensor(key) for key in _PARTS))

    def origin(self, name: str) -> Origin | None:
        """The tokens or image patches of one file, where it says how they are shown.

        Raises:
            InputError: It is damaged.
        """
        with self._opened(name) as file:
            return origin_of_file(file)

    def activations(self, name: str) -> Float[torch.Tensor, "activations d_in"]:
        """One file, without its tokens.

        Raises:
            InputError: It is damaged.
        """
        with self._opened(name) as file:
            found = file.get_tensor("activations")
            if found.shape[1:] != (self.d_in,):
                raise InputError(
                    f"{self.folder / name} holds activations of shape {tuple(found.shape)}, "
                    f"expected [activations, {self.d_in}]; make the cache again"
                )
            return found

    @contextlib.contextmanager
    def _opened(self, name: str) -> Generator[safe_open]:
        path = self.folder / name
        with (
            explained(path, "is damaged", "make the cache again with `isae cache`"),
            safe_open(path, "pt") as file,
        ):
            yield file

    def check_finished(self) -> None:
        """Refuse a cache that was cut off.

        Raises:
            InputError: It says how to finish it.
        """
        if self.n_activations < self.n_planned:
            raise InputError(
                f"the cache {self.folder} holds {self.n_activations:,} of {self.n_planned:,} "
                "activations: it was cut off. Finish it with the same `isae cache` command, or "
                "make do with what is there (the same with a smaller --training_tokens)"
            )

    def check_source(self, wanted: Mapping[str, Any]) -> None:
        """Refuse a cache of other activations than a run asks for.

        Raises:
            InputError: It names the differences.
        """
        different = settings_that_differ(self.source, wanted)
        if different:
            raise InputError(
                f"the cache {self.folder} holds other activations than the run asks for: "
                f"{different}; name the config that it was made with"
            )


def from_cache(folder: Path, n_samples: int | None) -> ActivationSource:
    """The held-out activations of a cache, which no SAE is trained on."""
    cache = ActivationCache.read(folder)
    rows = cache.activations(HELD_OUT_FILENAME)
    n = min(n_samples or len(rows), len(rows))

    def chunks() -> Iterator[torch.Tensor]:
        yield rows[:n]

    return ActivationSource(
        n, cache.d_in, f"{folder}, held out", chunks, lambda: cache.origin(HELD_OUT_FILENAME)
    )
