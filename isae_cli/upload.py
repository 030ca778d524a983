"""`isae upload`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from isae_cli.output import say_next


def upload(
    saes: Annotated[
        str,
        typer.Argument(help="Folder of one SAE, or with several, as `isae train` writes it."),
    ],
    repository: Annotated[str, typer.Argument(help="On the hub: USER/REPO.")],
    report: Annotated[Path, typer.Option(help="Folder of `isae pairwise` on these SAEs.")] = Path(
        "pairwise_report"
    ),
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Upload without numbers of stability.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder and upload nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for --dry-run; required there.", show_default=False),
    ] = None,
) -> None:
    """Put SAEs on the hub, with a card that says how stable they are.

    SAELens' uploader takes the SAEs. The model card carries the numbers of
    `isae pairwise` beside what they are by chance, the recipe, and how to load
    them; the page of `isae pairwise` lies beside it.

    \b
    Example:
      isae upload output me/my-saes --report pairwise_report --dry-run --out hub
      isae upload output me/my-saes --report pairwise_report
    """
    from sae_lens_isae import sharing
    from sae_lens_isae.errors import InputError

    if dry_run and out is None:
        raise InputError("name a folder for the dry run (--out)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = out if dry_run and out is not None else Path(scratch) / "release"
        release = sharing.prepare_release(saes, repository, folder, None if no_report else report)
        for warning in release.warnings:
            print(f"note: {warning}")
        if dry_run:
            print(f"wrote {folder}: {', '.join(release.sae_ids)}, README.md")
            return
        print(f"uploaded {sharing.upload(release)}")
    say_next(["isae", "audit", f"{repository}/{release.sae_ids[0]}"])
