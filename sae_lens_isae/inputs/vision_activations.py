"""Activations of an image model at an SAE's hook."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activation_source import DEFAULT_N_SAMPLES, ActivationSource
from sae_lens_isae.inputs.image_sets import open_images
from sae_lens_isae.inputs.language_models import harmless_model_kwargs
from sae_lens_isae.inputs.patch_images import PatchImages
from sae_lens_isae.inputs.vision_models import VisionModel, load_vision_model

_SEED = 1_000
"""Of the order of the images: runs have their own seeds, which are small numbers."""


def from_images(
    sae: SAE[Any],
    n_samples: int | None = None,
    *,
    model_name: str | None = None,
    images: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> ActivationSource:
    """Activations of the patches of images. What is not given comes from the SAE's metadata.

    Args:
        images: See `image_sets.open_images`.

    Raises:
        InputError: The metadata lacks something that was not given, or there are fewer patches.
        MissingInputError: There is no such model, or no such images.
    """
    metadata = sae.cfg.metadata
    model_name = model_name or metadata.model_name
    images = images or metadata.dataset_path
    if model_name is None or images is None or metadata.hook_name is None:
        raise InputError(
            "this SAE does not say where its activations come from: it needs an image model "
            "(--model), images (--text) and a hook_name in its metadata; or give activations "
            "(--activations)"
        )
    kwargs: Any = metadata.model_from_pretrained_kwargs
    kwargs = harmless_model_kwargs(kwargs, trust_remote_code=trust_remote_code)
    found = open_images(images, _SEED)

    @cache
    def load() -> VisionModel:
        return load_vision_model(
            str(model_name), str(metadata.hook_name), sae.cfg.d_in, device, kwargs
        )

    n_samples = n_samples or DEFAULT_N_SAMPLES
    if found.n_images is not None:
        n_samples = min(n_samples, found.n_images * load().n_patches)
    thumbnails: list[bytes] = []
    names: list[str] = []

    def chunks() -> Iterator[torch.Tensor]:
        thumbnails.clear()
        names.clear()
        model = load()
        # images that cannot be read count among those that there are: the first stand in for them
        for passes in itertools.count():
            for _, image in found.images(passes):
                pixels = model.pixels([image.image])
                thumbnails.append(model.thumbnail(pixels[0]))
                names.append(image.name)
                yield model.patches(pixels)[0].cpu()

    def origin() -> PatchImages:
        model = load()
        places = torch.arange(len(names) * model.n_patches)
        return PatchImages(list(thumbnails), list(names), model.grid, places)

    description = f"{model_name} at {metadata.hook_name} on {images}"
    return ActivationSource(n_samples, sae.cfg.d_in, description, chunks, origin)
