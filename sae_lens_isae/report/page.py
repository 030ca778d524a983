"""HTML pages that open from disk without a network, by themselves or sharing one script."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_lens_isae.files import write_whole
from sae_lens_isae.report.browser import Browser
from sae_lens_isae.report.made import made_with
from sae_lens_isae.report.style import TEMPLATE
from sae_lens_isae.report.tables import Table

PLOTLY_FILENAME = "plotly.min.js"
"""Plotly's script for all pages of a folder, in its folders too."""


class Card(NamedTuple):
    """Another page and its answer."""

    address: str
    title: str
    answer: str


Part = str | list[str] | Table | Browser | Card | go.Figure
"""A paragraph, a bulleted list, a table, a table that can be searched, a way to another page, or a
plot."""


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


def write_page(
    path: Path, title: str, answer: str, sections: Sequence[Section], script: Path | None = None
) -> None:
    """Write a page, the answer on top. All text is escaped.

    Args:
        script: Plotly's, which the page then refers to in place of holding it.
    """
    has_browser = any(isinstance(part, Browser) for section in sections for part in section.parts)
    text = _TEMPLATES.get_template("page.html.j2").render(
        title=title,
        answer=answer,
        sections=sections,
        has_browser=has_browser,
        made=made_with(),
        plotly=None if script else Markup(get_plotlyjs()),
        script=script and Path(os.path.relpath(script, path.parent)).as_posix(),
    )
    path.write_text(text, encoding="utf-8")


def write_script(folder: Path) -> Path:
    """Write Plotly's script for the pages of a folder; `shared_script` finds it."""
    script = folder / PLOTLY_FILENAME
    write_whole(script, lambda scratch: scratch.write_text(get_plotlyjs(), encoding="utf-8"))
    return script


def shared_script(page: Path) -> Path | None:
    """Plotly's script of the folder that a page's folder is in, if one was written there."""
    script = page.parent.parent / PLOTLY_FILENAME
    return script if script.is_file() else None


def whole_page(path: Path) -> str:
    """The text of a page that can leave its folder: with its script in it."""
    text = path.read_text(encoding="utf-8")
    return _SCRIPT.sub(lambda _: f"<script>{get_plotlyjs()}</script>", text, count=1)


_SCRIPT = re.compile(rf'<script src="[^"]*{re.escape(PLOTLY_FILENAME)}"></script>')


def html_fragment(parts: Sequence[Part]) -> str:
    """Parts of a page, for a notebook; plots are left to `Report.plot`."""
    return _TEMPLATES.get_template("fragment.html.j2").render(parts=parts)


def _figure_html(figure: go.Figure) -> Markup:
    figure.update_layout(template=TEMPLATE)
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False))


def _kind(part: Part) -> str:
    if isinstance(part, str):
        return "paragraph"
    if isinstance(part, Table):
        return "table"
    if isinstance(part, Browser):
        return "browser"
    if isinstance(part, Card):
        return "card"
    return "list" if isinstance(part, list) else "figure"


_TEMPLATES = Environment(
    loader=PackageLoader("sae_lens_isae", "report/templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["kind"] = _kind
_TEMPLATES.filters["figure_html"] = _figure_html
