"""SAELens' prefetching for a source that may be left before its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

from sae_lens.training.prefetch import PrefetchingIterator

Item = TypeVar("Item")


class ReadAhead(Iterator[Item], Generic[Item]):
    """The items of a source, up to `n` of them made ahead of need in the background."""

    def __init__(self, source: Iterator[Item], n: int) -> None:
        self._closed = False
        self._source = source
        self._items = PrefetchingIterator(self._until_closed(), n)

    def __next__(self) -> Item:
        return next(self._items)

    def close(self) -> None:
        """End the background thread; it finishes the item that it is at."""
        self._closed = True
        # older versions of SAELens end their thread in this way alone
        with contextlib.suppress(Exception):
            for _ in self._items:
                pass

    def _until_closed(self) -> Iterator[Item]:
        for item in self._source:
            if self._closed:
                return
            yield item
