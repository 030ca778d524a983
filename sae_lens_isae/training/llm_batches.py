"""Activations of a model on the text of a run, computed ahead of need on a GPU."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from sae_lens import ActivationsStore, logger

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activation_cache import TokenActivations
from sae_lens_isae.inputs.language_models import gains_from_bfloat16
from sae_lens_isae.inputs.token_text import TokenText, kept_places, token_text
from sae_lens_isae.training.contexts import Contexts
from sae_lens_isae.training.held_out import HeldOut

Position = tuple[int, int]


class Batches(Protocol):
    """Activations in the order of the data, batch by batch."""

    def __next__(self) -> Float[torch.Tensor, "tokens d_in"]: ...

    def prefetch(self, n: int) -> None:
        """Start to compute the next `n` batches, where that can go on beside the training."""
        ...

    def position(self) -> Position:
        """Where the next batch begins: passes over the data that are over, and how far it is in the
        present one."""
        ...

    def seek(self, position: Position) -> None:
        """Go on at a position."""
        ...


class FreshBatches(Batches, Protocol):
    """Batches that come from data which the training has not reached yet."""

    def held_out(self, n: int, dtype: torch.dtype = torch.float32) -> HeldOut | None:
        """At least `n` of the next activations with what they are of, on the CPU; fewer where the
        data end, None at their end."""
        ...


class LLMBatches(Iterator[Float[torch.Tensor, "tokens d_in"]]):
    """What a store's `get_filtered_llm_batch` returns, time after time.

    Which tokens are left out is known on the CPU, so nothing here waits for the device. On a GPU
    `prefetch` runs the model on a stream of its own, beside the training steps. The store's
    `autocast_lm` is switched off where it would cost time.

    Args:
        once: End with the text, in place of reading it again.
    """

    def __init__(self, store: ActivationsStore, contexts: Contexts, once: bool = False) -> None:
        self._store = store
        self._contexts = contexts
        self._once = once
        self._ended = False
        self._pending: deque[_Pending] = deque()
        excluded = store.exclude_special_tokens
        self._excluded = None if excluded is None else excluded.cpu()
        self._model_device = next(store.model.parameters()).device
        if store.autocast_lm and not gains_from_bfloat16(self._model_device):
            logger.warning("autocast_lm is left out: on this CPU it takes several times as long")
            store.autocast_lm = False
        on_one_gpu = store.device.type == "cuda" and self._model_device.type == "cuda"
        self._side = torch.cuda.Stream(self._model_device) if on_one_gpu else None

    def __next__(self) -> Float[torch.Tensor, "tokens d_in"]:
        return self.take().activations

    def held_out(self, n: int, dtype: torch.dtype = torch.float32) -> HeldOut | None:
        """See `Batches`."""
        found = joined(self, n, dtype)
        return None if found is None else HeldOut(found.activations, self.text_of(found))

    def text_of(self, found: TokenActivations) -> TokenText | None:
        """How the model's tokenizer writes the tokens of activations, None without one."""
        tokenizer: Any = getattr(self._store.model, "tokenizer", None)
        return token_text(tokenizer, found.token_ids, found.places)

    def take(self) -> TokenActivations:
        """The next batch with its tokens.

        Raises:
            StopIteration: The text is used up, and is to be read once.
        """
        pending = self._pending.popleft() if self._pending else self._compute()
        if pending.done is not None:
            activations = pending.batch.activations
            stream = torch.cuda.current_stream(activations.device)
            stream.wait_event(pending.done)
            activations.record_stream(stream)
        return pending.batch

    def prefetch(self, n: int) -> None:
        if self._side is None:
            return
        with contextlib.suppress(StopIteration):
            while len(self._pending) < n:
                self._pending.append(self._compute())

    def position(self) -> Position:
        return self._pending[0].position if self._pending else self._contexts.position()

    def seek(self, position: Position) -> None:
        passes, _ = position
        self._ended = self._once and passes > 0
        self._contexts.seek(position)

    @torch.no_grad()
    def _compute(self) -> _Pending:
        position, tokens = self._read()
        store = self._store
        places, kept = kept_places(tokens, slice(*store.seqpos_slice), self._excluded)
        beside = contextlib.nullcontext() if self._side is None else torch.cuda.stream(self._side)
        with beside:
            activations = store.get_activations(sent(tokens, self._model_device))
            activations = activations.to(store.device).reshape(-1, store.d_in)
            if len(kept) < len(activations):
                activations = activations[sent(kept, activations.device)]
            done = None
            if self._side is not None:
                done = torch.cuda.Event()
                done.record(self._side)
        return _Pending(position, TokenActivations(activations, tokens, places), done)

    def _read(self) -> tuple[Position, torch.Tensor]:
        if self._ended:
            raise StopIteration
        position = self._contexts.position()
        try:
            return position, self._contexts.read(None, True, False)
        except StopIteration:
            if self._once:
                self._ended = True
                raise
            warnings.warn("the text is used up, and is read again from its start", stacklevel=2)
        try:
            return self._contexts.position(), self._contexts.read(None, False, False)
        except StopIteration:
            raise InputError(
                "the text is too short to fill a single batch of the model; use more text, or "
                "lower store_batch_size_prompts or context_size"
            ) from None


class TokenBatches(Protocol):
    """Batches with their tokens."""

    def take(self) -> TokenActivations:
        """The next one."""
        ...

    def prefetch(self, n: int) -> None:
        """Start to compute the next `n`."""
        ...


def joined(
    batches: TokenBatches, n: int, dtype: torch.dtype = torch.float32, n_ahead: int = 0
) -> TokenActivations | None:
    """The next whole batches with at least `n` activations as one, on the CPU; fewer where the text
    ends, None at its end.

    Args:
        n_ahead: Batches to compute ahead of need.
    """
    found: list[TokenActivations] = []
    n_tokens = 0
    while sum(len(batch.activations) for batch in found) < n:
        batches.prefetch(n_ahead)
        try:
            activations, token_ids, places = batches.take()
        except StopIteration:
            break
        places = (places + n_tokens).int()
        found.append(TokenActivations(activations.to(dtype).cpu(), token_ids.int(), places))
        n_tokens += token_ids.numel()
    if not found:
        return None
    return TokenActivations(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class StoredBatches(Iterator[Float[torch.Tensor, "tokens d_in"]]):
    """The same from a store of cached activations (`use_cached_activations`)."""

    def __init__(self, store: ActivationsStore) -> None:
        self._store = store
        self._passes = 0

    def __next__(self) -> Float[torch.Tensor, "tokens d_in"]:
        try:
            return self._store.get_filtered_llm_batch(raise_on_epoch_end=True)
        except StopIteration:
            self._passes += 1
            warnings.warn(
                "the cached activations are used up, and are read again from their start",
                stacklevel=2,
            )
            return self._store.get_filtered_llm_batch()

    def prefetch(self, n: int) -> None:
        """Nothing: SAELens reads them from disk when they are asked for."""

    def held_out(self, n: int, dtype: torch.dtype = torch.float32) -> HeldOut | None:
        """See `Batches`; SAELens keeps no tokens."""
        found: list[torch.Tensor] = []
        while sum(map(len, found)) < n:
            found.append(next(self).cpu().to(dtype))
        return HeldOut(torch.cat(found), None)

    def position(self) -> Position:
        return self._passes, self._store.current_row_idx

    def seek(self, position: Position) -> None:
        self._passes, self._store.current_row_idx = position


class _Pending(NamedTuple):
    position: Position
    """Of its first context."""
    batch: TokenActivations
    done: torch.cuda.Event | None


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device, without making the host wait for a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
