"""One self-contained HTML page: it opens from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1f2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #dde1e7; }
th:first-child, td:first-child, .text td, .text th { text-align: left; vertical-align: top; }
table:not(.text) td { white-space: nowrap; }
.scroll { overflow-x: auto; }
p, li { max-width: 46rem; } code { background: #f2f4f7; padding: .1rem .3rem; }
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(items: Sequence[str]) -> str:
    """A bulleted list of plain text."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def html_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, all_text: bool = False
) -> str:
    """A table whose first column is text and whose others are numbers, or text as well."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    kind = ' class="text"' if all_text else ""
    table = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def figure(fig: go.Figure) -> str:
    """A plot; the page itself carries plotly's code."""
    fig.update_layout(template="plotly_white", height=420, margin={"t": 50, "r": 20})
    return fig.to_html(full_html=False, include_plotlyjs=False)


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str]]) -> None:
    """Write a page of (heading, HTML) sections."""
    body = "".join(f"<h2>{escape(heading)}</h2>{html}" for heading, html in sections)
    path.write_text(
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>",
        encoding="utf-8",
    )
