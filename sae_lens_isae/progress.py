"""Progress bars, which a caller can switch off as a whole."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_shown: ContextVar[bool] = ContextVar("progress bars are shown", default=True)


@contextmanager
def progress_shown(shown: bool) -> Generator[None]:
    """Show the bars of what runs inside, or none of them."""
    token = _shown.set(shown and _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, disable: bool = False, **settings: Any
) -> tqdm[Any]:
    """A tqdm bar, unless bars are switched off; `settings` are tqdm's."""
    return tqdm(iterable, disable=disable or not _shown.get(), **settings)
