"""Activations of an image model on the patches of images, read and decoded ahead of need."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float

from sae_lens_isae.inputs.activation_cache import TokenActivations
from sae_lens_isae.inputs.image_sets import ImageSet, NamedImage
from sae_lens_isae.inputs.patch_images import PatchImages
from sae_lens_isae.inputs.vision_models import VisionModel
from sae_lens_isae.training.held_out import HeldOut
from sae_lens_isae.training.llm_batches import Position, sent
from sae_lens_isae.training.read_ahead import ReadAhead

_BATCHES_AHEAD = 2


class _Images(NamedTuple):
    """Images for one forward pass, as the model's processor made them."""

    position: Position
    """After them."""
    numbers: list[int]
    names: list[str]
    pixels: Float[torch.Tensor, "images 3 height width"]


class ImageBatches(Iterator[Float[torch.Tensor, "patches d_in"]]):
    """The activations of all patches of some images, time after time: `Batches` for image models.

    Args:
        batch_size: Images in one forward pass.
        device: Of the activations.
        share: Number of this reader and how many there are: each reads a share of the images.
        once: End with the images, in place of reading them again.
    """

    def __init__(
        self,
        model: VisionModel,
        images: ImageSet,
        batch_size: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        once: bool = False,
    ) -> None:
        self.model, self.images = model, images
        self._batch_size, self._device = batch_size, device
        self._share, self._once = share, once
        self._position: Position = (0, 0)
        self._ahead: ReadAhead[_Images] | None = None
        self._pool = ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)))

    def __next__(self) -> Float[torch.Tensor, "patches d_in"]:
        return self._activations(self._read())

    def take(self) -> TokenActivations:
        """The next batch; in place of tokens it has the number of the image of every patch.

        Raises:
            StopIteration: The images are used up, and are to be read once.
        """
        found = self._read()
        n_patches = self.model.n_patches
        numbers = torch.tensor(found.numbers, dtype=torch.int32)[:, None].repeat(1, n_patches)
        return TokenActivations(self._activations(found), numbers, torch.arange(numbers.numel()))

    def held_out(self, n: int, dtype: torch.dtype = torch.float32) -> HeldOut | None:
        """At least `n` of the next activations, with the images that they are of; None at the end
        of the images."""
        activations: list[torch.Tensor] = []
        thumbnails: list[bytes] = []
        names: list[str] = []
        while sum(map(len, activations)) < n:
            try:
                found = self._read()
            except StopIteration:
                break
            activations.append(self._activations(found).to(dtype).cpu())
            thumbnails += map(self.model.thumbnail, found.pixels)
            names += found.names
        if not activations:
            return None
        together = torch.cat(activations)
        places = torch.arange(len(together))
        return HeldOut(together, PatchImages(thumbnails, names, self.model.grid, places))

    def prefetch(self, n: int) -> None:
        """Images are read ahead anyway."""

    def position(self) -> Position:
        """See `Batches`."""
        return self._position

    def seek(self, position: Position) -> None:
        """See `Batches`."""
        self.close()
        self._position = position

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _activations(self, found: _Images) -> Float[torch.Tensor, "patches d_in"]:
        model_device = next(self.model.model.parameters()).device
        patches = self.model.patches(sent(found.pixels, model_device))
        return patches.reshape(-1, self.model.d_in).to(self._device).float()

    def _read(self) -> _Images:
        passes, _ = self._position
        if self._once and passes > 0:
            raise StopIteration
        if self._ahead is None:
            self._ahead = ReadAhead(self._from(self._position), _BATCHES_AHEAD)
        found = next(self._ahead)
        if found.position[0] > passes and not self._once:
            warnings.warn("the images are used up, and are read again", stacklevel=2)
        self._position = found.position
        return found

    def _from(self, position: Position) -> Iterator[_Images]:
        passes, start = position
        while True:
            images = self.images.images(passes, start, self._share)
            some = list(islice(images, self._batch_size))
            while some:
                # known one batch late, so that a pass ends with its last images
                following = list(islice(images, self._batch_size))
                after = (passes, some[-1][0] + 1) if following else (passes + 1, 0)
                yield self._prepared(after, [image for _, image in some])
                some = following
            if self._once:
                return
            passes, start = passes + 1, 0

    def _prepared(self, position: Position, images: list[NamedImage]) -> _Images:
        pixels = self._pool.map(lambda each: self.model.pixels([each.image]), images)
        return _Images(
            position, [i.number for i in images], [i.name for i in images], torch.cat(list(pixels))
        )
