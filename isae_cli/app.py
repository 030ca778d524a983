"""The commands together, what they share, and what is said when one fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, Exit, TyperException

from isae_cli.audit import audit
from isae_cli.bench import ListsOfEvals, bench
from isae_cli.cache import cache
from isae_cli.consensus import consensus
from isae_cli.demo import demo
from isae_cli.pairwise import pairwise
from isae_cli.progress import lines_instead_of_bars, no_bars
from isae_cli.recode import recode
from isae_cli.report import report
from isae_cli.train import train
from isae_cli.upload import upload

app = typer.Typer(
    help="Identifiable sparse autoencoders for SAELens: train them, compare seeds, know which "
    "features to trust. Start with `isae demo`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(demo)
# SAELens' flags are read by SAELens
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(cache)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(train)
app.command(
    cls=ListsOfEvals,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(report)
app.command()(pairwise)
app.command()(audit)
app.command()(consensus)
app.command()(recode)
app.command(cls=ListsOfEvals)(bench)
app.command()(upload)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"isae {version('sae-lens-isae')}, sae-lens {version('sae-lens')}")
        raise Exit


@app.callback()
def _common(
    show_version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show versions."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    if quiet or os.environ.get("RANK", "0") != "0":
        no_bars()
    elif not sys.stderr.isatty():
        lines_instead_of_bars()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that a user can mend are one line, bugs keep their traceback.

    Args:
        arguments: By default those of the process.
    """
    try:
        code = app(arguments, prog_name="isae", standalone_mode=False)
    except Abort:
        _fail("stopped", 130)
    except TyperException as error:
        _fail(_usage(error), 2)
    except Exception as error:
        # loaded by now, unless the command line itself is broken
        from sae_lens_isae.errors import sentence_of

        said = sentence_of(error)
        if said is None or os.environ.get("ISAE_TRACEBACK"):
            raise
        _fail(said, 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def _usage(error: TyperException) -> str:
    """What typer says, on one line, with the nearest name of an option or a command."""
    context: Any = getattr(error, "ctx", None)
    command = "isae" if context is None else context.command_path
    said = error.format_message().rstrip(".").replace("Value error, ", "")
    said = said.partition(" (Possible options")[0]
    if "Did you mean" in said:
        return said[0].lower() + said[1:]
    known = [] if context is None else [o for p in context.command.params for o in p.opts]
    near = get_close_matches(getattr(error, "option_name", ""), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`{command} --help` lists what there is"
    return f"{said[0].lower()}{said[1:]}; {hint}"
