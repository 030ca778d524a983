"""Options of the commands that run an image model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

VisionModel = Annotated[
    str | None,
    typer.Option(
        help="Image backbone of transformers with patch tokens (facebook/dinov2-base) or a folder, "
        "in place of a language model.",
        show_default=False,
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        help="Folder of images, data set on the hub (imagenet-1k) or package:skimage, for "
        "--vision-model.",
        show_default=False,
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        help="Block or stage of --vision-model whose output is taken, from 0.", show_default=False
    ),
]


def vision_flags(
    model: str | None, images: str | None, layer: int | None, config: Path | None
) -> list[str]:
    """The same as flags of SAELens' runner, whose text is images then.

    Args:
        config: May name the model.

    Raises:
        InputError: There are images or a layer without a model.
    """
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.inputs.vision_models import VISION_CLASS

    flags: list[str] = []
    if model is not None:
        flags += ["--model_name", model, "--model_class_name", VISION_CLASS]
    elif config is None and (images is not None or layer is not None):
        raise InputError(
            "--images and --layer need a model: --vision-model facebook/dinov2-base, or a config"
        )
    if images is not None:
        flags += ["--dataset_path", images]
    if layer is not None:
        flags += ["--hook_name", f"layer.{layer}"]
    return flags
