"""One self-contained HTML page: it opens from disk without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_lens_isae.report.browser import Browser
from sae_lens_isae.report.tables import Table

Part = str | list[str] | Table | Browser | go.Figure
"""A paragraph, a bulleted list, a table, a table that can be searched, or a plot."""


class Section(NamedTuple):
    """A heading and what stands below it."""

    heading: str
    parts: Sequence[Part]
    folded: bool = False
    """Whether a reader opens it first."""


def numbers_section(words: Mapping[str, str]) -> Section:
    """What the numbers of a page mean."""
    lines = [f"{name}: {line}" for name, line in words.items()]
    return Section("The numbers", [lines], folded=True)


def write_page(path: Path, title: str, answer: str, sections: Sequence[Section]) -> None:
    """Write a page, the answer on top. All text is escaped."""
    has_browser = any(isinstance(part, Browser) for section in sections for part in section.parts)
    text = _TEMPLATES.get_template("page.html.j2").render(
        title=title,
        answer=answer,
        sections=sections,
        has_browser=has_browser,
        plotly=Markup(get_plotlyjs()),
    )
    path.write_text(text, encoding="utf-8")


def html_fragment(parts: Sequence[Part]) -> str:
    """Parts of a page, for a notebook; plots are left to `Report.plot`."""
    return _TEMPLATES.get_template("fragment.html.j2").render(parts=parts)


def _figure_html(figure: go.Figure) -> Markup:
    figure.update_layout(template="plotly_white", height=420, margin={"t": 50, "r": 20})
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False))


def _kind(part: Part) -> str:
    if isinstance(part, str):
        return "paragraph"
    if isinstance(part, Table):
        return "table"
    if isinstance(part, Browser):
        return "browser"
    return "list" if isinstance(part, list) else "figure"


_TEMPLATES = Environment(
    loader=PackageLoader("sae_lens_isae", "report/templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["kind"] = _kind
_TEMPLATES.filters["figure_html"] = _figure_html
