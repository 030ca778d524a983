"""Image backbones of transformers by the names that a user types, and their patch tokens."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from sae_lens_isae.checks import check_device
from sae_lens_isae.errors import InputError, MissingInputError, explained

VISION_CLASS = "AutoModel"
"""The `model_class_name` of an SAE on an image model."""
_LAYER = "layer."
_THUMBNAIL = 112
_HALF = 0.5


class _HookReached(Exception):
    """Ends a forward pass: what comes after the hook is not needed."""


@dataclass(frozen=True, kw_only=True)
class VisionModel:
    """A backbone up to a module whose output has a vector for every patch."""

    model: nn.Module
    processor: Any
    hook_name: str
    """Of the module."""
    d_in: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    n_before: int
    """Tokens before the patches: CLS and registers."""

    @property
    def n_patches(self) -> int:
        """Of every image."""
        return self.grid[0] * self.grid[1]

    def pixels(self, images: Sequence[Image.Image]) -> Float[torch.Tensor, "images 3 height width"]:
        """Images as the model's own processor makes them, on the CPU."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def patches(
        self, pixels: Float[torch.Tensor, "images 3 height width"]
    ) -> Float[torch.Tensor, "images patches d_in"]:
        """The activations of all patches."""
        found = output_at(self.model, self.hook_name, pixels)
        return _rows(found, self.d_in)[:, self.n_before :]

    def thumbnail(self, pixels: Float[torch.Tensor, "3 height width"]) -> bytes:
        """What the model saw of an image, as a small JPEG file."""
        std, mean = (_channels(self.processor, name) for name in ("image_std", "image_mean"))
        shown: UInt8[torch.Tensor, "3 height width"] = (
            ((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        )
        image = Image.fromarray(shown.permute(1, 2, 0).numpy())
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return file.getvalue()


def load_vision_model(
    name: str,
    hook_name: str,
    d_in: int | None = None,
    device: str = "cpu",
    kwargs: Mapping[str, Any] | None = None,
) -> VisionModel:
    """Load a backbone with its image processor.

    Args:
        name: A hub name or a local folder.
        hook_name: A module, e.g. `encoder.layer.11`, or `layer.11` for the twelfth of its blocks or
            stages, whatever the model calls them.
        d_in: Which dimension is expected there.
        kwargs: Of `from_pretrained`.

    Raises:
        InputError: It is no image model, has no such layer or no patch tokens there, or has another
            dimension; the message says what to do.
        MissingInputError: There is no such model.
    """
    check_device(device)
    advice = (
        "name an image backbone of transformers on the hub (facebook/dinov2-base) or a local folder"
    )
    subject = f"the image model {name}"
    try:
        with explained(subject, "cannot be loaded", advice):
            model: Any = AutoModel.from_pretrained(name, **(kwargs or {}))
            # the plain processor: the other one needs torchvision
            processor: Any = AutoImageProcessor.from_pretrained(name, use_fast=False)
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise MissingInputError(str(error)) from error.__cause__
        raise
    # of a model of images and text the part that sees
    model = getattr(model, "vision_model", model).to(device).eval()
    hook_name = resolved_hook(model, hook_name)
    with explained(subject, "does not take images", advice):
        pixels = processor(images=[Image.new("RGB", (64, 48))], return_tensors="pt")["pixel_values"]
    found = output_at(model, hook_name, pixels)
    here = d_in is not None and d_in in (found.shape[1], found.shape[-1])
    width = d_in if d_in is not None and here else _width(model, found)
    if d_in is not None and width != d_in:
        raise InputError(
            f"d_in is {d_in}, but the model's activations at {hook_name} have {width} dimensions; "
            f"set d_in to {width} or name another layer"
        )
    grid, n_before = _grid(model, found, width, pixels, f"{name} at {hook_name}")
    return VisionModel(
        model=model,
        processor=processor,
        hook_name=hook_name,
        d_in=width,
        grid=grid,
        n_before=n_before,
    )


def resolved_hook(model: nn.Module, hook_name: str) -> str:
    """The name of the module that `layer.N` stands for; another name as it is.

    Raises:
        InputError: There is no such module.
    """
    modules = dict(model.named_modules())
    if hook_name in modules and hook_name:
        return hook_name
    # the outermost list of blocks: those of a stage lie in the list of the stages
    lists = {n: m for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) > 1}
    if not lists:
        raise InputError("the model has no list of layers; name one of its modules (--hook_name)")
    blocks = min(lists, key=lambda name: (name.count("."), -len(lists[name])))
    number = hook_name.removeprefix(_LAYER)
    n_layers = len(lists[blocks])
    if not hook_name.startswith(_LAYER) or not number.isdigit() or int(number) >= n_layers:
        raise InputError(
            f"the model has no layer {number!r}; name one of 0 to {n_layers - 1} (--layer), or a "
            f"module like {blocks}.{n_layers - 1} (--hook_name)"
        )
    return f"{blocks}.{int(number)}"


@torch.no_grad()
def output_at(
    model: nn.Module, hook_name: str, pixels: Float[torch.Tensor, "images 3 height width"]
) -> torch.Tensor:
    """What a module returns for images. The modules after it do not run."""
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _HookReached

    first = next(model.parameters())
    handle = model.get_submodule(hook_name).register_forward_hook(keep)
    try:
        model(pixels.to(first.device, first.dtype))
    except _HookReached:
        pass
    finally:
        handle.remove()
    if not found:
        raise InputError(f"{hook_name} does not run when the model sees an image; name a layer")
    return found[0]


def _rows(found: torch.Tensor, d_in: int) -> Float[torch.Tensor, "images tokens d_in"]:
    """The vectors of every image, in the order of rows and columns."""
    if found.ndim == 4:
        channels_first = found.shape[1] == d_in
        found = found.flatten(2).mT if channels_first else found.flatten(1, 2)
    return found


def _width(model: nn.Module, found: torch.Tensor) -> int:
    """Channels come first in maps, unless the model says that what comes last is as wide."""
    hidden = getattr(getattr(model, "config", None), "hidden_size", None)
    is_map = found.ndim == 4 and found.shape[-1] != hidden
    return int(found.shape[1] if is_map else found.shape[-1])


def _grid(
    model: nn.Module, found: torch.Tensor, d_in: int, pixels: torch.Tensor, where: str
) -> tuple[tuple[int, int], int]:
    """Rows and columns of patches, and how many tokens stand before them."""
    if found.ndim == 4:
        rows, columns = found.shape[2:] if found.shape[1] == d_in else found.shape[1:3]
        # a pooled map is one vector for the whole image
        if rows * columns > 1:
            return (int(rows), int(columns)), 0
    if found.ndim == 3:
        n_tokens = int(found.shape[1])
        size = getattr(getattr(model, "config", None), "patch_size", None)
        height, width = (size, size) if isinstance(size, int) else (size or (0, 0))
        if height and width:
            grid = (pixels.shape[2] // height, pixels.shape[3] // width)
            n_before = n_tokens - grid[0] * grid[1]
            if 0 <= n_before < n_tokens:
                return grid, n_before
        side = math.isqrt(n_tokens)
        # stages that merge patches leave a square of them
        if side > 1 and side * side == n_tokens:
            return (side, side), 0
    raise InputError(
        f"{where} has no patch tokens: its output has the shape {tuple(found.shape[1:])} for an "
        "image; name a layer whose output has a vector for every patch (--layer)"
    )


def _channels(processor: Any, name: str) -> Float[torch.Tensor, "3 1 1"]:
    values = getattr(processor, name, None) or [_HALF] * 3
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
