"""`isae consensus`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isae_cli import options
from isae_cli.output import say_next


def consensus(
    saes: options.SAEs,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the SAE; required.", show_default=False)
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(
            help="SAEs in which a latent must be found.", show_default="more than half of them"
        ),
    ] = None,
    cosine: Annotated[
        float, typer.Option(help="A latent counts as found again from this cosine on.")
    ] = 0.9,
    activations: Annotated[
        str | None,
        typer.Option(
            help="A folder of `isae cache`, or a .safetensors or .npy file [..., d_in], to train "
            "the encoder on. Without it the means are kept.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps; 0 keeps the means.")] = 2000,
    batch: Annotated[int, typer.Option(help="Activations in a step.")] = 2048,
    lr: Annotated[float, typer.Option(help="Learning rate, which falls to 0.")] = 1e-3,
    device: options.Device = None,
    seed: options.Seed = 0,
) -> None:
    """Make one SAE of the latents that several training runs have in common.

    Latents that recur are averaged, after their sign. With --activations the
    encoder is then trained for some steps while the atoms stay. Others are left
    out, so that the SAE has fewer latents than those that it is made of.

    \b
    Example:
      isae consensus output/seed_0 output/seed_1 output/seed_2 \\
        --activations activations --out output/consensus
    """
    from isae_cli.inputs import checked_device
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.files import output_folder
    from sae_lens_isae.identifiability.consensus import consensus_sae
    from sae_lens_isae.inputs.saes import named_saes
    from sae_lens_isae.training.cached import all_rows
    from sae_lens_isae.training.refinement import check_refinement, refine

    if out is None:
        raise InputError("name a folder for the SAE (--out); see `isae consensus --help`")
    if steps != 0:
        check_refinement(steps, batch, lr)
    with output_folder(out):
        loaded = named_saes(saes, checked_device(device))
        sae = consensus_sae(loaded, at_least=at_least, found_cosine=cosine)
        n_each = next(iter(loaded.values())).cfg.d_sae
        if activations is not None and steps > 0:
            rows = all_rows(activations, sae.device)
            refined = refine(sae, rows, n_steps=steps, batch_size=batch, lr=lr, seed=seed)
            refined.save_inference_model(out)
        else:
            sae.save_model(out)
    print(f"wrote {out}: {sae.cfg.d_sae:,} latents of {n_each:,} recur")
    again = [] if activations is None else ["--activations", activations]
    say_next(["isae", "pairwise", str(out), saes[0], *again])
