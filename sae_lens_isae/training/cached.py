"""Batches for training from a cache of activations: shuffled in memory, or mixed from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activation_cache import CACHE_FILENAME, ActivationCache
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.training.activation_stream import load_state, save_state
from sae_lens_isae.training.llm_batches import Position, sent
from sae_lens_isae.training.read_ahead import ReadAhead

_SHARE_OF_GPU = 0.6
"""Of its free memory: the rest is for SAEs, optimizers and steps."""
_MOST_ON_CPU = 4 << 30
_FILES_AHEAD = 2
_ROWS_AT_ONCE = 65_536


def fits_in_memory(n_bytes: int, device: torch.device) -> bool:
    """Whether activations of that size are kept there."""
    if device.type != "cuda":
        return n_bytes <= _MOST_ON_CPU
    return n_bytes <= _SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]


def files_of_rank(cache: ActivationCache, rank: int, n_ranks: int) -> list[str]:
    """Every rank's share of a cache.

    Raises:
        InputError: There are fewer files than ranks.
    """
    names = [file.name for file in cache.files][rank::n_ranks]
    if not names:
        raise InputError(
            f"the cache {cache.folder} has {len(cache.files)} files for {n_ranks} processes; use "
            "fewer, or cache more activations"
        )
    return names


class ShuffledActivations(Iterator[dict[str, Float[torch.Tensor, "batch d_in"]]]):
    """Activations in memory, every pass over them in another order.

    Args:
        seeds: Of every SAE's order, by its name. SAEs with one seed see the same batches.
        settings: Without which the state of one means nothing to another.
    """

    def __init__(
        self,
        rows: Float[torch.Tensor, "activations d_in"],
        seeds: Mapping[str, int],
        batch_size: int,
        settings: Mapping[str, Any],
    ) -> None:
        if len(rows) < batch_size:
            raise InputError(
                f"{len(rows)} activations do not fill a batch of {batch_size}; cache more, or "
                "lower train_batch_size_tokens"
            )
        self._rows = rows
        self._seeds = dict(seeds)
        self._batch_size = batch_size
        self._settings = dict(settings)
        self._orders = {seed: _Permutation(seed, rows) for seed in self._seeds.values()}

    def __next__(self) -> dict[str, Float[torch.Tensor, "batch d_in"]]:
        found = {
            seed: self._rows[order.next(self._batch_size)].float()
            for seed, order in self._orders.items()
        }
        return {name: found[seed] for name, seed in self._seeds.items()}

    def save(self, folder: Path) -> None:
        """See `ActivationStream`."""
        save_state(folder, self._orders, (0, 0), self._settings)

    def load(self, folder: Path) -> None:
        """See `ActivationStream`."""
        load_state(folder, self._orders, self._settings)


class _Permutation:
    """One order of the rows, pass after pass."""

    def __init__(self, seed: int, rows: torch.Tensor) -> None:
        self._n, self._device = len(rows), rows.device
        self._generator = torch.Generator().manual_seed(seed)
        self._begin()

    def next(self, n: int) -> torch.Tensor:
        if self._place + n > self._n:
            self._begin()
        found = self._order[self._place : self._place + n]
        self._place += n
        return found

    def _begin(self) -> None:
        self._before = self._generator.get_state()
        self._place = 0
        order = torch.randperm(self._n, generator=self._generator)
        self._order = order.to(self._device)

    def state(self) -> dict[str, torch.Tensor]:
        return {"generator": self._before, "place": torch.tensor(self._place)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._begin()
        self._place = int(state["place"])


def load_rows(
    cache: ActivationCache, names: Sequence[str], device: torch.device
) -> Float[torch.Tensor, "activations d_in"]:
    """The activations of several files of a cache, on a device."""
    sizes = {file.name: file.n_activations for file in cache.files}
    dtype = cache.dtype
    n = sum(sizes[name] for name in names)
    rows = torch.empty(n, cache.d_in, dtype=dtype, device=device)
    place = 0
    for name in progress_bar(names, desc="Reading activations", unit="file", leave=False):
        found = cache.activations(name)
        if len(found) != sizes[name] or found.dtype != dtype:
            raise InputError(
                f"{cache.folder / name} holds {len(found)} activations in {found.dtype}, and not "
                f"{sizes[name]} in {dtype} as cache.json says; make the cache again"
            )
        rows[place : place + len(found)].copy_(found)
        place += len(found)
    return rows


def all_rows(name: str, device: torch.device) -> Float[torch.Tensor, "activations d_in"]:
    """Activations to train on, by the name that a user types, in memory.

    Args:
        name: A folder of `isae cache`, without what it holds out, or what `open_activations` takes.
    """
    if (Path(name) / CACHE_FILENAME).is_file():
        cache = ActivationCache.read(Path(name))
        cache.check_finished()
        return load_rows(cache, [file.name for file in cache.files], device)
    return torch.cat(list(open_activations(name).batches(_ROWS_AT_ONCE))).to(device)


class CachedBatches(Iterator[Float[torch.Tensor, "tokens d_in"]]):
    """The files of a cache, in another order at every pass, read ahead in the background.

    Args:
        seed: Of the order of the files.
    """

    def __init__(
        self, cache: ActivationCache, names: Sequence[str], seed: int, device: torch.device
    ) -> None:
        self._cache = cache
        self._names = list(names)
        self._seed = seed
        self._device = device
        self._position: Position = (0, 0)
        self._ahead: ReadAhead[torch.Tensor] | None = None

    def __next__(self) -> Float[torch.Tensor, "tokens d_in"]:
        if self._ahead is None:
            self._ahead = ReadAhead(self._from(self._position), _FILES_AHEAD)
        rows = next(self._ahead)
        passes, n_read = self._position
        whole = n_read + 1 == len(self._names)
        self._position = (passes + 1, 0) if whole else (passes, n_read + 1)
        return sent(rows, self._device).float()

    def prefetch(self, n: int) -> None:
        """Files are read ahead anyway."""

    def position(self) -> Position:
        """See `Batches`."""
        return self._position

    def seek(self, position: Position) -> None:
        """See `Batches`."""
        passes, n_read = position
        # the share of another number of ranks may have had another number of files
        self._position = passes, min(n_read, len(self._names) - 1)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _from(self, position: Position) -> Iterator[torch.Tensor]:
        passes, n_read = position
        while True:
            for name in self._in_order(passes)[n_read:]:
                yield self._cache.activations(name)
            passes, n_read = passes + 1, 0

    def _in_order(self, passes: int) -> list[str]:
        digest = hashlib.sha256(f"{self._seed} {passes}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
        order = torch.randperm(len(self._names), generator=generator)
        return [self._names[number] for number in order.tolist()]
