"""Mixed activations for training whose state can be saved, so that a resumed run sees the same.

SAELens' store keeps its buffer inside a generator and saves no more than the number of texts it has
read. `MixedActivations` gives the same batches from the same store (a test compares them), in one
order or in several at a time, and its state is what the next batch depends on: where the text
stands, the buffers, the random numbers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from sae_lens import ActivationsStore
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_isae.checks import settings_that_differ
from sae_lens_isae.distributed import n_ranks, rank
from sae_lens_isae.errors import InputError, explained
from sae_lens_isae.training.llm_batches import Batches, Position, sent

STATE_FILENAME = "activation_stream.safetensors"


class ActivationStream(Protocol):
    """Batches for several SAEs at a time, and where they stand."""

    def __next__(self) -> dict[str, Float[torch.Tensor, "batch d_in"]]:
        """A batch for every SAE, by its name."""
        ...

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint."""
        ...

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint was written.

        Raises:
            InputError: The state is damaged, or of a run with other settings.
        """
        ...


class MixedActivations(Iterator[dict[str, Float[torch.Tensor, "batch d_in"]]]):
    """What `ActivationsStore` iterates over: batches drawn from a buffer that is refilled when half
    of it is used.

    Args:
        batches: Activations in the order of the text.
        seeds: Of every SAE's order, by its name. SAEs with one seed see the same batches. Those of
            others come from the same text, mixed in another order, in a buffer of their own.
        batch_size: Of what is returned.
        buffer_size: At which a buffer is mixed.
        mix_fraction: How much of it stays for the next mixing; 0 mixes nothing.
        device: Of the buffer.
        settings: Without which the state of one means nothing to another.
    """

    def __init__(
        self,
        batches: Batches,
        seeds: Mapping[str, int],
        batch_size: int,
        buffer_size: int,
        mix_fraction: float,
        device: torch.device,
        settings: Mapping[str, Any],
    ) -> None:
        self._batches = batches
        self._seeds = dict(seeds)
        self._batch_size = batch_size
        self._buffer_size = buffer_size
        self._mix_fraction = mix_fraction
        self._settings = json.loads(json.dumps(settings, default=str))
        self._orders = {seed: _Order(seed, device) for seed in self._seeds.values()}

    def __next__(self) -> dict[str, Float[torch.Tensor, "batch d_in"]]:
        while any(len(order.serving) < self._batch_size for order in self._orders.values()):
            self._refill()
        found = {seed: order.serve(self._batch_size) for seed, order in self._orders.items()}
        return {name: found[seed] for name, seed in self._seeds.items()}

    def save(self, folder: Path) -> None:
        save_state(folder, self._orders, self._batches.position(), self._settings)

    def load(self, folder: Path) -> None:
        self._batches.seek(load_state(folder, self._orders, self._settings))

    def _refill(self) -> None:
        orders = list(self._orders.values())
        n_stored = len(orders[0].kept)
        new: list[torch.Tensor] = []
        while not new or n_stored + sum(map(len, new)) < self._buffer_size:
            new.append(next(self._batches))
        n_all = n_stored + sum(map(len, new))
        n_spare = n_all - int(self._buffer_size * self._mix_fraction)
        n_served = max(1, n_spare // self._batch_size) * self._batch_size
        for order in orders:
            order.mix(new, n_served, shuffled=self._mix_fraction > 0)
        self._batches.prefetch(len(new))


class _Order:
    """One order of the activations: what it has left of them, and its random numbers."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)
        self.kept = torch.empty(0, device=device)
        """For the next mixing."""
        self.serving = torch.empty(0, device=device)

    def serve(self, n: int) -> torch.Tensor:
        batch, self.serving = self.serving[:n], self.serving[n:]
        return batch

    def mix(self, new: Sequence[torch.Tensor], n_served: int, shuffled: bool) -> None:
        pool = torch.cat([self.kept, *new] if len(self.kept) else list(new))
        if shuffled:
            order = torch.randperm(len(pool), generator=self._generator)
            pool = pool[sent(order, pool.device)]
        self.serving, self.kept = pool[:n_served], pool[n_served:]

    def state(self) -> dict[str, torch.Tensor]:
        return {
            "generator": self._generator.get_state(),
            "kept": self.kept,
            "serving": self.serving,
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self.kept, self.serving = (state[n].to(self._device) for n in ("kept", "serving"))


_STORE_SETTINGS = (
    "hook_name",
    "hook_head_index",
    "context_size",
    "store_batch_size_prompts",
    "train_batch_size_tokens",
    "n_batches_in_buffer",
    "activations_mixing_fraction",
    "prepend_bos",
    "seqpos_slice",
    "disable_concat_sequences",
    "sequence_separator_token",
    "dtype",
)


def settings_of(store: ActivationsStore) -> dict[str, Any]:
    """What the activations of a store depend on, besides model and text."""
    found = {name: getattr(store, name) for name in _STORE_SETTINGS}
    excluded = store.exclude_special_tokens
    return {**found, "exclude_special_tokens": None if excluded is None else excluded.tolist()}


class Order(Protocol):
    """One order of the activations, whose state can be saved."""

    def state(self) -> dict[str, torch.Tensor]:
        """What the next batch depends on."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state."""
        ...


def save_state(
    folder: Path, orders: Mapping[int, Order], position: Position, settings: Mapping[str, Any]
) -> None:
    """Write where this rank stands into a checkpoint.

    Args:
        orders: By their seeds.
        position: Where its share of the data is read next.
    """
    tensors = _random_states()
    tensors["position"] = torch.tensor(position)
    for seed, order in orders.items():
        tensors |= {f"{seed}_{name}": value for name, value in order.state().items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / _filename(rank()),
        metadata={"settings": json.dumps(settings), "n_ranks": str(n_ranks())},
    )


def load_state(folder: Path, orders: Mapping[int, Order], settings: Mapping[str, Any]) -> Position:
    """Restore what was saved with these settings, and say where the data are read next.

    Of a run on another number of ranks that is near where the first of them stood; the orders begin
    anew, with a warning.

    Raises:
        InputError: It is damaged, or was saved with other settings.
    """
    path = folder / STATE_FILENAME
    advice = "resume from an earlier checkpoint"
    with explained(path, "is damaged", advice):
        tensors, saved, before = _read(path)
        same = before == n_ranks() and (folder / _filename(rank())).is_file()
        if same and rank():
            tensors, saved, _ = _read(folder / _filename(rank()))
    different = settings_that_differ(saved, settings)
    if different:
        raise InputError(
            f"{folder} was written by a run with {different}; resume with the settings of that "
            "run, or start a new one from its weights (from_pretrained_path)"
        )
    with explained(path, "is damaged", advice):
        passes, place = tensors["position"].tolist()
        if same:
            for seed, order in orders.items():
                order.restore({n: tensors[f"{seed}_{n}"] for n in order.state()})
            _set_random_states(tensors)
            return passes, place
    warnings.warn(
        f"{folder} was written by {before} processes and goes on in {n_ranks()}: weights and "
        "optimizer are the same, the text goes on near where it was, and the buffer is refilled",
        stacklevel=2,
    )
    return passes, place * before // n_ranks()


def _filename(of_rank: int) -> str:
    path = Path(STATE_FILENAME)
    return path.name if of_rank == 0 else f"{path.stem}_{of_rank}{path.suffix}"


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if "n_ranks" not in metadata:
            raise InputError(
                f"{path} was written by an earlier version of this package; start a new run from "
                "its weights (from_pretrained_path)"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["settings"]), int(metadata["n_ranks"])


def _random_states() -> dict[str, torch.Tensor]:
    """Those of torch's global generators."""
    states = {"random_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random_cuda_{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_random_states(tensors: Mapping[str, torch.Tensor]) -> None:
    """What `_random_states` returned, among other tensors."""
    torch.set_rng_state(tensors["random_cpu"])
    for name, state in tensors.items():
        number = name.removeprefix("random_cuda_")
        if number.isdigit() and int(number) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(number))
