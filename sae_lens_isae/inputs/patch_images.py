"""The image patches behind activations, so that a report can show what a latent is active on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from safetensors import safe_open

from sae_lens_isae.inputs.token_text import Excerpt, TokenText, text_of_file

_IMAGES = "patch_images"
"""Entry of a safetensors file's metadata."""


@dataclass(frozen=True)
class PatchImages:
    """Which patch of which image each of some activations belongs to, and how the images look."""

    thumbnails: Sequence[bytes]
    """JPEG files of what the model saw."""
    names: Sequence[str]
    grid: tuple[int, int]
    """Rows and columns of patches in every image."""
    places: Int[torch.Tensor, " activations"]
    """In the patches of all images, one image after the other."""

    @property
    def n_patches(self) -> int:
        """Of every image."""
        return self.grid[0] * self.grid[1]

    def excerpt(self, row: int) -> Excerpt:
        """The patch of one activation in words."""
        image, patch = divmod(int(self.places[row]), self.n_patches)
        line, column = divmod(patch, self.grid[1])
        return Excerpt("", f"{self.names[image]}, row {line + 1}, column {column + 1}", "")

    def first(self, n: int) -> PatchImages:
        """The patches of the first `n` activations."""
        return replace(self, places=self.places[:n])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a safetensors file holds of it, beside `metadata`."""
        together = b"".join(self.thumbnails)
        return {
            "thumbnails": torch.frombuffer(bytearray(together), dtype=torch.uint8),
            "thumbnail_sizes": torch.tensor([len(jpeg) for jpeg in self.thumbnails]),
            "places": self.places.int(),
        }

    def metadata(self) -> dict[str, str]:
        """What the metadata of a safetensors file hold of it."""
        return {_IMAGES: json.dumps({"names": list(self.names), "grid": list(self.grid)})}


Origin = TokenText | PatchImages
"""What activations are of."""


def origin_of_file(file: safe_open) -> Origin | None:
    """What the activations in an open safetensors file are of, None if it does not say."""
    said = (file.metadata() or {}).get(_IMAGES)
    if said is None:
        return text_of_file(file)
    settings = json.loads(said)
    sizes: list[int] = file.get_tensor("thumbnail_sizes").tolist()
    parts = file.get_tensor("thumbnails").split(sizes)
    return PatchImages(
        [part.numpy().tobytes() for part in parts],
        settings["names"],
        tuple(settings["grid"]),
        file.get_tensor("places"),
    )
