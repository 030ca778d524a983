"""Progress where there is no terminal, or where none is wanted.

This changes tqdm for the whole process, which is the command's own: SAELens, SAEBench and datasets
draw bars too.
"""

from __future__ import annotations

from typing import Any

_LEAST_SECONDS = 2
"""A bar that is done sooner prints nothing."""
_SECONDS = 60
"""Between two lines of a bar that does not know its end."""


def no_bars() -> None:
    """Switch all bars off, also those that say themselves that they are shown."""
    import tqdm.std

    bars: Any = tqdm.std.tqdm
    begin = bars.__init__

    def disabled(bar: Any, *args: Any, **settings: Any) -> None:
        begin(bar, *args, **{**settings, "disable": True})

    bars.__init__ = disabled


def lines_instead_of_bars() -> None:
    """Print a line for each tenth of a bar."""
    import tqdm.std

    # the class itself: whoever imported tqdm before has it already
    bars: Any = tqdm.std.tqdm
    bars.display, bars.close = _display, _close


def _display(bar: Any, *_: Any, **__: Any) -> None:
    """Whenever a bar would be drawn: print a line if another tenth is done."""
    seconds = bar.format_dict["elapsed"]
    done = int(10 * bar.n / bar.total) if bar.total else int(seconds / _SECONDS)
    if done > getattr(bar, "_printed", 0) and seconds >= _LEAST_SECONDS:
        bar._printed = done
        # SAELens counts samples where it names nothing, and writes the losses beside them
        unit = "samples" if bar.unit == "it" else f"{bar.unit.strip()}s"
        count = f"{int(bar.n):,}"
        if bar.total:
            count = f"{bar.n / bar.total:.0%}, {count} of {int(bar.total):,}"
        text = f"{bar.desc.removesuffix(': ')}: {count} {unit}, {bar.format_interval(seconds)}"
        print(text, file=bar.fp, flush=True)


def _close(bar: Any) -> None:
    """Print nothing more: what came of it is the command's to say."""
    bar.disable = True
