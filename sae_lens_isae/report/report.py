"""What every report can do: be printed, shown in a notebook, plotted, written as a page."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from sae_lens_isae.files import write_whole
from sae_lens_isae.report.page import Section, html_fragment, shared_script, write_page
from sae_lens_isae.report.tables import Table, print_table

_PRINTED_WIDTH = 100


class Report(ABC):
    """The result of a measurement.

    `print(report)` and a notebook show its summary and its tables, `plot` the figure that says
    most, `to_html` writes the whole page, `save` everything.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """The question that the report answers."""

    @abstractmethod
    def summary(self) -> str:
        """The answer in a few sentences."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """The tables of the terminal."""

    @abstractmethod
    def notes(self) -> Sequence[str]:
        """What a reader must know before believing the numbers."""

    @abstractmethod
    def plot(self) -> go.Figure:
        """The figure that says most."""

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """The page."""

    def show(self, console: Console | None = None) -> None:
        """Print the summary, the tables and the notes, as wide as the terminal is."""
        console = console or Console()
        console.print(self.summary(), markup=False)
        for table in self.tables():
            if table.rows:
                print_table(console, table)
        for note in self.notes():
            console.print(f"note: {note}", markup=False)

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=_PRINTED_WIDTH))
        return text.getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_fragment([self.summary(), *self.tables(), list(self.notes())])

    def to_html(self, path: str | Path) -> None:
        """Write the page, which opens from disk without a network.

        It is one file, unless its folder is one of several that share Plotly's script.
        """
        title, answer, sections = self.title, self.summary(), self.sections()
        script = shared_script(Path(path))
        write_whole(
            Path(path), lambda scratch: write_page(scratch, title, answer, sections, script)
        )
