"""How plots look: colours that the colour-blind tell apart, and curves that differ in more."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's, without the yellow that white swallows."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_WIDEST, _THINNEST = 5.0, 1.5

pio.templates["isae"] = go.layout.Template(pio.templates["plotly_white"]).update(
    {"layout": {"colorway": COLOURS, "height": 420, "margin": {"t": 50, "r": 20}}}
)
TEMPLATE = "plotly_white+isae"


def curve(number: int, dash: str | None = None) -> dict[str, Any]:
    """Line and marker of one of several curves, by its number.

    A later curve is thinner, so that an earlier one with the same course shows on both sides.

    Args:
        dash: In place of the number's own.
    """
    return {
        "line": {
            "color": COLOURS[number % len(COLOURS)],
            "dash": dash or _DASHES[number // len(COLOURS) % len(_DASHES)],
            "width": max(_THINNEST, _WIDEST - number),
        },
        "marker": {"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 7},
    }


def hover(x: str, y: str, x_format: str = "", y_format: str = ".3f") -> str:
    """What a point says when a pointer rests on it: the curve, and both numbers by name."""
    x_value, y_value = (
        f"%{{{axis}:{shape}}}" if shape else f"%{{{axis}}}"
        for axis, shape in (("x", x_format), ("y", y_format))
    )
    return f"%{{fullData.name}}<br>{x}: {x_value}<br>{y}: {y_value}<extra></extra>"
