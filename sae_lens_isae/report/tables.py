"""Tables of text, for the terminal, a notebook or a page, and how numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

_NAME_WIDTH = 8
"""A name is shown this far, however narrow the terminal is."""
_LONG = 80
"""Characters of a sentence from which on rows are separated by lines."""


class Table(NamedTuple):
    """A table whose first column is text and whose others are numbers, or text as well."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_text: bool = False
    """All columns are text, which wraps."""


def print_table(console: Console, table: Table) -> None:
    """Print a table.

    Of numbers: long names give way and headers wrap; numbers do neither. Where the terminal is too
    narrow for that, every row is a paragraph with each number behind its name.
    """
    if table.is_text:
        console.print(_text_table(table))
        return
    title, headers, rows, _ = table
    # a border before every column and one at the end, a space on both sides of a cell
    room = console.width - 3 * len(headers) - 1
    cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(headers))]
    whole = [max(width, len(h)) for h, width in zip(headers, cells, strict=True)]
    wrapped = [max([width, *map(len, h.split())]) for h, width in zip(headers, cells, strict=True)]
    widths = whole if sum(whole) <= room else wrapped
    left_for_names = room - sum(widths[1:])
    if left_for_names < min(widths[0], _NAME_WIDTH):
        console.print(title, style="italic", markup=False)
        for row in rows:
            cells = ", ".join(f"{h} {c}" for h, c in zip(headers[1:], row[1:], strict=True) if c)
            console.print(f"  {row[0]}: {cells}", markup=False, highlight=False)
        return
    found = RichTable(title=escape(title))
    for i, (header, width) in enumerate(zip(headers, widths, strict=True)):
        if i == 0:
            found.add_column(header, overflow="fold", width=min(width, left_for_names))
        else:
            found.add_column(header, justify="right", width=width)
    for row in rows:
        found.add_row(*map(escape, row))
    console.print(found)


def _text_table(table: Table) -> RichTable:
    long = any(len(cell) > _LONG for row in table.rows for cell in row)
    found = RichTable(title=escape(table.title), show_lines=long)
    for header in table.headers:
        found.add_column(header, overflow="fold")
    for row in table.rows:
        found.add_row(*map(escape, row))
    return found


def number(value: float | None, digits: int) -> str:
    """A number with so many digits; '-' where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def finite(value: float) -> str:
    """A number with four digits, or 'infinite'."""
    return f"{value:.4g}" if math.isfinite(value) else "infinite"
