"""The contexts of tokens that a run reads, in the order of SAELens' store, made ahead of need.

The store tokenises one text at a time, on the device of the activations, where every comparison of
two tokens waits for the device. `Contexts` gives the same contexts: many texts go through the
tokenizer at once, on the CPU and in the background, and only whole batches go to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from datasets.distributed import split_dataset_by_node
from jaxtyping import Int
from sae_lens import ActivationsStore
from sae_lens.pretokenize_runner import get_special_token_from_cfg
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from sae_lens.training.prefetch import PrefetchingIterator

from sae_lens_isae.progress import progress_bar


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
        self._ahead: PrefetchingIterator[_Chunk] | None = None
        self._first_text = 0
        self._n_texts = 0
        self._n_added = 0
        """Tokens that the tokenizer puts before every text and the store takes away again."""
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
                self._ahead = PrefetchingIterator(self._pass(), _CHUNKS_AHEAD)
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
            contexts = (row[: store.context_size] for row in self._token_rows())
        elif store.use_chat_formatting or not self._can_tokenize_whole_batches():
            contexts = self._stock_contexts()
        else:
            contexts = self._concatenated()
        while chunk := list(islice(contexts, _CONTEXTS_AT_ONCE)):
            yield _Chunk(torch.stack(chunk), self._n_texts)

    def _token_rows(self) -> Iterator[Int[torch.Tensor, " tokens"]]:
        for rows in self._columns():
            for row in rows:
                yield torch.as_tensor(row, dtype=torch.long)

    def _concatenated(self) -> Iterator[Int[torch.Tensor, " context"]]:
        store, tokenizer = self._store, self._tokenizer
        return concat_and_batch_sequences(
            tokens_iterator=(
                torch.tensor(row[self._n_added :], dtype=torch.long)
                for texts in self._columns()
                for row in self._tokens(texts)
            ),
            context_size=store.context_size,
            begin_batch_token_id=tokenizer.bos_token_id if store.prepend_bos else None,
            begin_sequence_token_id=None,
            sequence_separator_token_id=get_special_token_from_cfg(
                store.sequence_separator_token, tokenizer
            ),
            disable_concat_sequences=store.disable_concat_sequences,
        )

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

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]

    def _can_tokenize_whole_batches(self) -> bool:
        """Whether the tokenizer makes the tokens of the store, which asks the model for them."""
        to_tokens: Callable[..., torch.Tensor] | None
        to_tokens = getattr(self._store.model, "to_tokens", None)
        if self._tokenizer is None or to_tokens is None:
            return False
        texts = next(self._columns(), [])[:_N_COMPARED]
        stock = [
            to_tokens(text, truncate=False, move_to_device=False, prepend_bos=False)
            .squeeze(0)
            .tolist()
            for text in texts
        ]
        rows = self._tokens(texts)
        self._n_added = int(rows != stock)
        return [row[self._n_added :] for row in rows] == stock
