"""Mixed activations for training whose state can be saved, so that a resumed run sees the same.

SAELens' store keeps its buffer inside a generator and saves no more than the number of texts it has
read. `MixedActivations` gives the same batches from the same store (a test compares them), and
`state` holds what the next batch depends on: where the text stands, the buffer, the random numbers.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import ActivationsStore
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_isae.errors import InputError, explained
from sae_lens_isae.progress import progress_bar

STATE_FILENAME = "activation_stream.safetensors"

_SETTINGS = (
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
"""Attributes of a store without which the state of one means nothing to another."""


class MixedActivations(Iterator[Float[torch.Tensor, "batch d_in"]]):
    """What `ActivationsStore` iterates over: batches drawn from a buffer that is refilled when half
    of it is used.

    Args:
        before_batch: Called before every batch; it may raise to stop the run between two steps.
    """

    def __init__(self, store: ActivationsStore, before_batch: Callable[[], None]) -> None:
        self._store = store
        self._before_batch = before_batch
        self._buffer_size = store.n_batches_in_buffer * store.training_context_size
        self._batch_size = store.train_batch_size_tokens
        if self._buffer_size < self._batch_size:
            raise InputError(
                f"n_batches_in_buffer * context_size = {self._buffer_size} tokens do not fill a "
                f"batch of train_batch_size_tokens = {self._batch_size}; raise n_batches_in_buffer"
            )
        self._stored: torch.Tensor | None = None
        self._serving: torch.Tensor | None = None
        self._reads = _RecordedReads(store)

    def __next__(self) -> Float[torch.Tensor, "batch d_in"]:
        self._before_batch()
        while self._serving is None or len(self._serving) < self._batch_size:
            self._refill()
        batch, self._serving = self._serving.split(
            [self._batch_size, len(self._serving) - self._batch_size]
        )
        return batch

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint."""
        tensors = {f"random_{name}": state for name, state in _random_states().items()}
        tensors["reads"] = self._reads.state()
        for name, buffer in (("stored", self._stored), ("serving", self._serving)):
            if buffer is not None:
                tensors[name] = buffer.contiguous()
        save_file(
            tensors, folder / STATE_FILENAME, metadata={"settings": json.dumps(self._settings())}
        )

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint was written. The text up to there is read again, not the model's
        activations.

        Raises:
            InputError: The state is damaged, or of a store with other settings.
        """
        path = folder / STATE_FILENAME
        with explained(path, "is damaged", "resume from an earlier checkpoint"):
            with safe_open(path, "pt") as file:
                settings = json.loads(file.metadata()["settings"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            reads = tensors["reads"].tolist()
        different = [
            f"{name} {settings.get(name)!r} instead of {value!r}"
            for name, value in self._settings().items()
            if settings.get(name) != value
        ]
        if different:
            raise InputError(
                f"{folder} was written by a run with {', '.join(different)}; resume with the "
                "settings of that run, or start a new one from its weights (from_pretrained_path)"
            )
        self._reads.replay(reads)
        device = self._store.device
        for name in ("stored", "serving"):
            buffer = tensors.get(name)
            setattr(self, f"_{name}", None if buffer is None else buffer.to(device))
        _set_random_states(
            {n.removeprefix("random_"): t for n, t in tensors.items() if n.startswith("random_")}
        )

    def _refill(self) -> None:
        new = self._next_llm_batch()
        stored = new if self._stored is None else torch.cat([self._stored, new])
        if len(stored) < self._buffer_size:
            self._stored = stored
            return
        mix_fraction = self._store.activations_mixing_fraction
        if mix_fraction > 0:
            stored = stored[torch.randperm(len(stored))]
        n_spare = len(stored) - int(self._buffer_size * mix_fraction)
        n_served = max(1, n_spare // self._batch_size) * self._batch_size
        self._serving, self._stored = stored[:n_served], stored[n_served:]

    def _next_llm_batch(self) -> torch.Tensor:
        try:
            return self._store.get_filtered_llm_batch(raise_on_epoch_end=True)
        except StopIteration:
            warnings.warn("the text is used up, and is read again from its start", stacklevel=2)
            try:
                return self._store.get_filtered_llm_batch()
            except StopIteration:
                raise InputError(
                    "the text is too short to fill a single batch of the model; use more text, or "
                    "lower store_batch_size_prompts or context_size"
                ) from None

    def _settings(self) -> dict[str, Any]:
        found = {name: getattr(self._store, name) for name in _SETTINGS}
        excluded = self._store.exclude_special_tokens
        found["exclude_special_tokens"] = None if excluded is None else excluded.tolist()
        return json.loads(json.dumps(found, default=str))


class _RecordedReads:
    """Where a store stands in its text: how it was read, by training and by evaluations between."""

    def __init__(self, store: ActivationsStore) -> None:
        self._log: list[list[int]] = []
        """Size of a read, whether it stops at the end of the text, and how often in a row."""
        self._store = store
        self._read = store.get_batch_tokens
        if store.cached_activation_dataset is None:
            store.get_batch_tokens = self._recorded

    def _recorded(
        self,
        batch_size: int | None = None,
        raise_at_epoch_end: bool = False,
        move_to_model_device: bool = True,
    ) -> torch.Tensor:
        kind = [batch_size or self._store.store_batch_size_prompts, int(raise_at_epoch_end)]
        if self._log and self._log[-1][:2] == kind:
            self._log[-1][2] += 1
        else:
            self._log.append([*kind, 1])
        return self._read(batch_size, raise_at_epoch_end, move_to_model_device)

    def state(self) -> Int[torch.Tensor, "kinds 3"]:
        """Of a store of cached activations the next row, in the same shape."""
        if self._store.cached_activation_dataset is not None:
            return torch.tensor([[self._store.current_row_idx, 0, 0]])
        return torch.tensor(self._log, dtype=torch.long).view(-1, 3)

    def replay(self, log: list[list[int]]) -> None:
        """Read as the log says, on a store that nobody has read."""
        if self._store.cached_activation_dataset is not None:
            self._store.current_row_idx = log[0][0]
            return
        n_reads = sum(count for _, _, count in log)
        with progress_bar(
            total=n_reads, desc="Finding the place in the text", leave=False
        ) as progress:
            for size, stops, count in log:
                for _ in range(count):
                    with contextlib.suppress(StopIteration):
                        self._read(size, bool(stops), False)
                    progress.update()
        self._log = log


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda_{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        number = name.removeprefix("cuda_")
        if number.isdigit() and int(number) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(number))
