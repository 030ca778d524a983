"""Progress where there is no terminal: a line now and then instead of a bar drawn over and over.

This changes tqdm for the whole process, which is the command's own: SAELens, SAEBench and datasets
draw bars too.
"""

from __future__ import annotations

import os
import time
from typing import Any

_LEAST_SECONDS = 2
"""A bar that is done sooner prints nothing."""
_SECONDS = 60
"""Between two lines of a bar that does not know its end."""


def no_bars() -> None:
    """Switch all bars off. To be called before tqdm is imported."""
    os.environ["TQDM_DISABLE"] = "1"


def lines_instead_of_bars() -> None:
    """Print a line for each tenth of a bar. To be called before anything else imports tqdm."""
    import tqdm.auto  # noqa: PLC0415

    class Lines(tqdm.std.tqdm[Any]):
        """A bar that prints a line whenever another tenth is done."""

        _tenths = 0
        _started = 0.0

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Called whenever a bar would be drawn."""
            del msg, pos
            now = time.monotonic()
            self._started = self._started or now
            tenths = (
                int(10 * self.n / self.total)
                if self.total
                else int((now - self._started) / _SECONDS)
            )
            if tenths > self._tenths and now - self._started >= _LEAST_SECONDS:
                self._tenths = tenths
                print(self._line(), file=self.fp, flush=True)

        def _line(self) -> str:
            unit = "steps" if self.unit == "it" else f"{self.unit.strip()}s"
            done = f"{int(self.n):,}"
            if self.total:
                done = f"{self.n / self.total:.0%}, {done} of {int(self.total):,}"
            elapsed = self.format_interval(time.monotonic() - self._started)
            # SAELens writes the losses into the description
            return f"{self.desc.removesuffix(': ')}: {done} {unit}, {elapsed}"

        def close(self) -> None:
            """Print nothing more: what came of it is the command's to say."""
            self.leave = False
            self.disable = True

    tqdm.auto.tqdm = Lines
