"""`isae recode`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isae_cli import options
from isae_cli.inputs import check_samples, checked_device
from isae_cli.output import say_written

if TYPE_CHECKING:
    from sae_lens import SAE


def recode(
    saes: Annotated[
        list[str] | None, typer.Argument(help=options.SAES_HELP, show_default=False)
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            help="A release of SAELens' directory of pretrained SAEs.", show_default=False
        ),
    ] = None,
    sae_id: Annotated[
        list[str] | None,
        typer.Option(help="An SAE of the release; may be given several times.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the columns prompt,answer. The SAEs code the last position of each; "
            "features are ablated where the model answers correctly.",
            show_default="596 simple facts that come with the package",
        ),
    ] = None,
    activations: options.Activations = None,
    model: options.Model = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="At most this many prompts, drawn from each template its share, or activations "
            "of a file.",
            show_default="all",
        ),
    ] = None,
    autocast: options.Autocast = False,
    gd_samples: Annotated[
        int | None,
        typer.Option(help="Samples for GD-sparse.", show_default="64 on a CPU, all on a GPU"),
    ] = None,
    gd_starts: Annotated[int, typer.Option(help="Random starts of GD-sparse.")] = 2,
    noise_samples: Annotated[int, typer.Option(help="Samples for the stability under noise.")] = (
        100
    ),
    ablation: Annotated[bool, typer.Option(help="Ablate features in the running model.")] = True,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="One start of GD-sparse on 16 samples (or --gd-samples), two noise levels, two "
            "refitted decoders, no ablation.",
        ),
    ] = False,
    table: options.Table = options.TableFormat.PARQUET,
    out: options.Out = Path("recode_report"),
    device: options.Device = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Would another sparse coding algorithm have picked the same features?

    The study of 'Which Sparse Code?' on trained SAEs: the same activations on
    the same dictionary, coded by the SAE's encoder, orthogonal matching pursuit
    (OMP), iterative hard thresholding (IHT) and gradient descent with an l1
    penalty (GD-sparse), each with the encoder's number of latents. Agreement of
    the codes, stability under noise, refitted decoders, ablation in the running
    model, and tables that say of every latent which algorithms pick it where
    the encoder does.

    What is finished lies in a folder below --out: the same command goes on
    where it was stopped.

    \b
    Examples:
      isae recode output/seed_0 --prompts facts.csv
      isae recode --release gemma-scope-2b-pt-res-canonical \\
        --sae-id layer_12/width_16k/canonical
    """
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.files import output_folder
    from sae_lens_isae.inputs.activations import open_activations
    from sae_lens_isae.recoding import (
        RecodeSettings,
        load_prompts,
        prompted_model,
    )
    from sae_lens_isae.recoding import recode as run_recode
    from sae_lens_isae.recoding.prompts import DEFAULT_PROMPTS, drawn

    check_samples(samples)
    if activations is not None and prompts is not None:
        raise InputError("give prompts or activations, not both")
    settings = RecodeSettings(
        gd_samples=gd_samples, gd_starts=gd_starts, noise_samples=noise_samples, seed=seed
    )
    if quick:
        settings = settings.quick()
    elif not ablation:
        settings = replace(settings, ablation_k=())
    place = checked_device(device)
    with output_folder(out):
        # read before anything large is loaded
        read = [] if activations else drawn(load_prompts(prompts or DEFAULT_PROMPTS), samples, seed)
        loaded = _load(saes or [], release, sae_id or [], place)
        first = next(iter(loaded.values()))
        given = (
            open_activations(activations, samples, first.cfg.metadata.hook_name)
            if activations is not None
            else prompted_model(
                list(loaded.values()),
                read,
                model=model,
                device=place,
                autocast=autocast,
                trust_remote_code=trust_remote_code,
            )
        )
        report = run_recode(
            loaded, given, settings, cache=out / "parts", force=force, announce=print
        )
        written = report.save(out, table.value)
    report.show()
    say_written(written, ["isae", "bench", *saes] if saes else None)


def _load(
    saes: list[str], release: str | None, sae_ids: list[str], device: str
) -> dict[str, SAE[Any]]:
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.inputs.saes import labels, load_pretrained, load_sae

    if (release is None) != (not sae_ids):
        raise InputError("--release and --sae-id belong together")
    if not saes and release is None:
        raise InputError("no SAE was named: give folders, or --release and --sae-id")
    names = labels([*saes, *(f"{release}/{sae_id}" for sae_id in sae_ids)])
    loaded = [load_sae(name, device) for name in saes]
    loaded += [load_pretrained(str(release), sae_id, device) for sae_id in sae_ids]
    return dict(zip(names, loaded, strict=True))
