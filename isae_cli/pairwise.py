"""`isae pairwise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isae_cli import options
from isae_cli.inputs import open_measured
from isae_cli.output import say_written


def pairwise(
    saes: options.SAEs,
    activations: options.Activations = None,
    model: options.Model = None,
    text: options.Text = None,
    samples: options.Samples = None,
    logits: options.Logits = False,
    group: Annotated[
        str | None,
        typer.Option(
            help="Regular expression; what it matches in an SAE's name is its group. Latents are "
            "looked for within groups.",
            show_default="the name without seed_N",
        ),
    ] = None,
    across: Annotated[
        bool, typer.Option("--across", help="Compare SAEs of different groups as well.")
    ] = False,
    oracle_samples: Annotated[
        int, typer.Option(help="Activations for the OMP oracle; 0 leaves it out.")
    ] = 1024,
    oracle_k: Annotated[
        int | None,
        typer.Option(
            help="Atoms per activation for it.", show_default="k, or as many as the encoder"
        ),
    ] = None,
    found: Annotated[
        float, typer.Option(help="A latent counts as found again from this cosine on.")
    ] = 0.9,
    chance: Annotated[
        bool, typer.Option(help="Say what every number is by chance; costs some matchings.")
    ] = True,
    table: options.Table = options.TableFormat.PARQUET,
    out: options.Out = Path("pairwise_report"),
    device: options.Device = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Would another training run have found the same features and the same codes?

    Compares all pairs of two or more SAEs, of any architecture that SAELens
    loads. Prints DCS, the mean |cosine| of matched atoms (1 is best); MCC, the
    same with signs; IoU, the overlap of the active latents (1 is best); l2, the
    distance of the codes over their norm (0 is best), with the SAEs' encoders
    and with an oracle encoder on their dictionaries; and what all of them are
    by chance. SAEs whose names differ in more than the seed are compared in
    groups, side by side. Writes a page that shows every latent, whether to
    trust it and what it is active on, with plots, and the same as tables.

    \b
    Example:
      isae pairwise output/seed_0 output/seed_1 \\
        --activations output/activations.safetensors
    """
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.files import output_folder
    from sae_lens_isae.identifiability.pairwise import (
        check_settings,
        pairwise_identifiability,
    )

    if len(saes) < 2:
        raise InputError(f"pairwise compares two or more SAEs, got {len(saes)}")
    check_settings(oracle_samples, oracle_k, found)
    with output_folder(out):
        loaded, source = open_measured(
            saes,
            activations,
            model=model,
            text=text,
            samples=samples,
            logits=logits,
            device=device,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        report = pairwise_identifiability(
            loaded,
            source,
            groups=group,
            across=across,
            n_oracle_samples=oracle_samples,
            oracle_k=oracle_k,
            found_cosine=found,
            chance=chance,
            seed=seed,
            force=force,
        )
        written = report.save(out, table.value)
    report.show()
    again = [] if activations is None else ["--activations", activations]
    say_written(written, ["isae", "audit", *saes, *again])
