"""The last lines of every command: what it wrote, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path


def say_written(files: Iterable[Path], next_command: Sequence[str] | None = None) -> None:
    """Name the files of a report, the page first, and the command that goes on from there."""
    page, *others = files
    print(f"wrote {page}")
    if others:
        print(f"  and {', '.join(file.name for file in others)} beside it")
    if next_command is not None:
        say_next(next_command)


def say_next(command: Sequence[str]) -> None:
    """Name a command that goes on from here."""
    print(f"next: {shlex.join(command)}")
