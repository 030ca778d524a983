"""The contexts of tokens that a run reads, in the order of SAELens' store, made ahead of need.

The store tokenises one text at a time, on the device of the activations, where every comparison of
two tokens waits for the device. `Contexts` gives the same contexts: many texts go through the
tokenizer at once, on the CPU and in the background, and only whole batches go to the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from jaxtyping import Int
from sae_lens import ActivationsStore
from sae_lens.pretokenize_runner import get_special_token_from_cfg

from sae_lens_isae.progress import progress_bar
from sae_lens_isae.training.read_ahead import ReadAhead

_BatchTokenizer = Callable[[list[str]], list[Int[np.ndarray, " tokens"]]]


class _Chunk(NamedTuple):
    tokens: Int[torch.Tensor, "contexts context"]
    n_texts: int
    """Read before them, in all passes."""


_TEXTS_AT_ONCE = 256
_CONTEXTS_AT_ONCE = 64
_CHUNKS_AHEAD = 64
_N_COMPARED = 16
"""Texts whose tokens are compared with what the store makes of them, at the start of a run."""


class Contexts:
    """The contexts of a store's text, one pass after the other.

    `read` stands in for the store's `get_batch_tokens`, for training and for evaluations.

    Args:
        store: Nobody has read from it.
        share: Number of this reader and how many there are: each reads a share of the texts.
    """

    def __init__(self, store: ActivationsStore, share: tuple[int, int] = (0, 1)) -> None:
        self._store = store
        self._read_stock = store.get_batch_tokens
        if share[1] > 1:
            dataset: Any = store.dataset
            store.dataset = split_dataset_by_node(dataset, *share)
        self._passes = 0
        self._n_read = 0
        self._left = torch.empty(0)
        self._ahead: ReadAhead[_Chunk] | None = None
        self._first_text = 0
        self._n_texts = 0
        store.get_batch_tokens = self.read

    def read(
        self,
        batch_size: int | None = None,
        raise_at_epoch_end: bool = False,
        move_to_model_device: bool = True,
    ) -> Int[torch.Tensor, "batch context"]:
        """The next contexts, as `ActivationsStore.get_batch_tokens` returns them.

        Raises:
            StopIteration: The text ended and `raise_at_epoch_end` is set; or it holds no context.
        """
        size = batch_size or self._store.store_batch_size_prompts
        parts: list[torch.Tensor] = []
        while (missing := size - sum(map(len, parts))) > 0:
            chunk = self._take(missing)
            if chunk is not None:
                parts.append(chunk)
                continue
            empty = self._n_read == 0
            self._passes, self._n_read = self._passes + 1, 0
            if raise_at_epoch_end or empty:
                raise StopIteration
        tokens = torch.cat(parts)
        if move_to_model_device:
            return tokens.to(next(self._store.model.parameters()).device)
        return tokens

    def position(self) -> tuple[int, int]:
        """Passes over the text that are over, and contexts read since."""
        return self._passes, self._n_read

    def seek(self, position: tuple[int, int]) -> None:
        """Go on at a position, on a reader that nobody has used."""
        self._passes, n = position
        with progress_bar(
            total=n, desc="Finding the place in the text", unit="context", leave=False
        ) as progress:
            while self._n_read < n:
                chunk = self._take(min(n - self._n_read, _CONTEXTS_AT_ONCE))
                if chunk is None:
                    break
                progress.update(len(chunk))

    def start_at_text(self, n: int) -> None:
        """Leave out the first texts of the first pass, on a reader that nobody has used."""
        self._first_text = n

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _take(self, most: int) -> torch.Tensor | None:
        """Up to so many of the next contexts of this pass; None at its end."""
        if not len(self._left):
            if self._ahead is None:
                self._ahead = ReadAhead(self._pass(), _CHUNKS_AHEAD)
            chunk = next(self._ahead, None)
            if chunk is None:
                self.close()
                return None
            self._left = chunk.tokens
            # for the checkpoint that SAELens writes
            self._store.n_dataset_processed = chunk.n_texts
        taken, self._left = self._left[:most], self._left[most:]
        self._n_read += len(taken)
        return taken

    def _pass(self) -> Iterator[_Chunk]:
        """One pass over the text."""
        store = self._store
        if store.is_dataset_tokenized:
            contexts = (torch.as_tensor(row[: store.context_size]) for row in self._token_rows())
        elif store.use_chat_formatting or (tokenize := self._batch_tokenizer) is None:
            contexts = self._stock_contexts()
        else:
            yield from self._concatenated(tokenize)
            return
        while chunk := list(islice(contexts, _CONTEXTS_AT_ONCE)):
            yield _Chunk(torch.stack(chunk).long(), self._n_texts)

    def _token_rows(self) -> Iterator[Any]:
        for rows in self._columns():
            yield from rows

    def _concatenated(self, tokenize: _BatchTokenizer) -> Iterator[_Chunk]:
        store, tokenizer = self._store, self._tokenizer
        for tokens in concatenated_contexts(
            map(tokenize, self._columns()),
            store.context_size,
            tokenizer.bos_token_id if store.prepend_bos else None,
            get_special_token_from_cfg(store.sequence_separator_token, tokenizer),
        ):
            yield _Chunk(tokens, self._n_texts)

    def _stock_contexts(self) -> Iterator[Int[torch.Tensor, " context"]]:
        while True:
            try:
                yield self._read_stock(1, True, False)[0].cpu()
            except StopIteration:
                return

    def _columns(self) -> Iterator[Any]:
        dataset: Any = self._store.dataset
        if self._first_text and self._passes == 0:
            dataset = dataset.skip(self._first_text)
            self._n_texts = self._first_text
        for rows in dataset.iter(_TEXTS_AT_ONCE):
            column = rows[self._store.tokens_column]
            yield column
            self._n_texts += len(column)

    @property
    def _tokenizer(self) -> Any:
        return getattr(self._store.model, "tokenizer", None)

    @cached_property
    def _batch_tokenizer(self) -> _BatchTokenizer | None:
        """What makes the store's tokens of many texts at once; None where nothing does.

        The store asks the model for the tokens of each text. Some models take a token away again
        that the tokenizer puts first.
        """
        store = self._store
        to_tokens: Callable[..., torch.Tensor] | None = getattr(store.model, "to_tokens", None)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or to_tokens is None or store.disable_concat_sequences:
            return None
        # a copy: calls elsewhere set padding and truncation of the tokenizer that they use
        backend = copy.deepcopy(backend)
        backend.no_padding()
        backend.no_truncation()

        def tokenize(n_added: int, texts: list[str]) -> list[Int[np.ndarray, " tokens"]]:
            found = backend.encode_batch_fast(texts)
            return [np.array(row.ids[n_added:], dtype=np.int64) for row in found]

        texts = next(self._columns(), [])[:_N_COMPARED]
        stock = [
            to_tokens(text, truncate=False, move_to_device=False, prepend_bos=False).flatten()
            for text in texts
        ]
        for n_added in (0, 1):
            rows = tokenize(n_added, texts)
            if all(r.tolist() == s.tolist() for r, s in zip(rows, stock, strict=True)):
                return partial(tokenize, n_added)
        return None


def concatenated_contexts(
    texts: Iterable[list[Int[np.ndarray, " tokens"]]],
    size: int,
    begin: int | None,
    separator: int | None,
) -> Iterator[Int[torch.Tensor, "contexts size"]]:
    """SAELens' `concat_and_batch_sequences` for many texts at a time, all contexts of each such
    batch at once: made one by one they take as long as a training step.

    Args:
        texts: Batches of tokenised texts.
        size: Of a context, at least 2.
        begin: Token that every context begins with.
        separator: Token between two texts in one context.
    """
    between = np.array([] if separator is None else [separator])
    left = np.empty(0, dtype=np.int64)
    for batch in texts:
        parts, is_between = [left], [np.zeros(len(left), dtype=bool)]
        for text in batch:
            if len(text):
                inserted = between[: int(text[0] != separator)]
                parts += [inserted, text]
                is_between += [np.ones(len(inserted), dtype=bool), np.zeros(len(text), dtype=bool)]
        tokens, inserted = np.concatenate(parts), np.concatenate(is_between)
        contexts: list[np.ndarray] = []
        place = 0
        while place < len(tokens):
            # between two texts, and so between two contexts
            start = place + int(inserted[place])
            n_new = size - int(begin is not None and tokens[start] != begin)
            if start + n_new > len(tokens):
                break
            contexts.append(tokens[start : start + n_new])
            place = start + n_new
        left = tokens[place + int(place < len(tokens) and inserted[place]) :]
        if contexts:
            found = np.full((len(contexts), size), 0 if begin is None else begin)
            for row, context in zip(found, contexts, strict=True):
                row[size - len(context) :] = context
            yield torch.from_numpy(found)
