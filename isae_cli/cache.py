"""`isae cache`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from isae_cli.output import say_next
from isae_cli.vision import Images, Layer, VisionModel, vision_flags


class StoredAsChoice(str, Enum):
    """Precision of activations on disk."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def cache(
    ctx: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; required.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file as for `isae train`, or the name of one that comes with this package.",
            show_default=False,
        ),
    ] = None,
    vision_model: VisionModel = None,
    images: Images = None,
    layer: Layer = None,
    stored_as: Annotated[
        StoredAsChoice | None,
        typer.Option(
            help="Precision on disk; by default float32, or bfloat16 where the model runs in it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model's activations to disk, to train many SAEs from them.

    Runs the model of --config on its text until --training_tokens activations
    are written, with their tokens. `isae train --activations FOLDER` with the
    same config trains from them. A run that was stopped goes on with the same
    command. Takes every flag of `isae train` that says which activations.

    \b
    Example:
      isae cache --config smollm2_isae_me --training_tokens 2000000 \\
        --out activations
    """
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.training.caching import cache_activations
    from sae_lens_isae.training.config import load_runner_config

    args = [*vision_flags(vision_model, images, layer, config), *ctx.args]
    if out is None or (config is None and not args):
        raise InputError("name a folder (--out) and a config (--config); see `isae cache --help`")
    found = cache_activations(
        load_runner_config(config, args),
        out,
        stored_as=None if stored_as is None else stored_as.value,
    )
    n, size = found.n_activations, found.n_bytes / 1e6
    print(f"wrote {out}: {n:,} activations in {len(found.files)} files, {size:,.0f} MB")
    named = [] if config is None else ["--config", str(config)]
    say_next(["isae", "train", *named, *args, "--activations", str(out)])
