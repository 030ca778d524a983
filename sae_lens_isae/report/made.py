"""When and with what a page was made."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("sae-lens-isae", "sae-lens", "torch")


def command() -> str:
    """The command line of this process, as a user would type it."""
    program = Path(sys.argv[0])
    is_ours = program.name == "isae" or program.parent.name == "sae_lens_isae"
    return shlex.join(["isae" if is_ours else str(program), *sys.argv[1:]])


def made_with() -> str:
    """Time, versions and command, as a sentence."""
    return f"{datetime.now():%Y-%m-%d %H:%M}, {', '.join(versions())}: {command()}"


def versions() -> Iterator[str]:
    """Names and versions of the packages that numbers depend on."""
    for package in PACKAGES:
        # a checkout on the path is not an installed package
        with contextlib.suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
