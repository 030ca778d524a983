"""Images by the names that a user types: a folder, a data set on the hub or on disk, or those that
a package ships (`package:skimage`), for machines without a hub.

Every pass over the images has an order of its own, the same for equal seeds: folders lie class by
class, and a buffer of activations mixes its own contents only.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import DatasetDict, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import fingerprint
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
_N_NAMED = 3
_SHUFFLED = 10_000
"""Images of a streamed data set among which the next one is drawn."""
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)
"""What Pillow raises for damaged files, by their kind."""


class NamedImage(NamedTuple):
    """One image, in RGB."""

    number: int
    """In the set."""
    name: str
    image: Image.Image


@dataclass
class ImageSet:
    """Images that are read one after the other. Those that cannot be read are left out, and named
    in a warning at the end of a pass."""

    name: str
    n_images: int | None
    """None where the set is streamed."""
    identity: str
    order: Callable[[int], Iterator[tuple[int, str, Callable[[], Image.Image]]]]
    """Number, name and reader of every image in a pass."""
    unreadable: dict[str, str] = field(default_factory=dict[str, str])
    """By the names of images, why."""

    def images(
        self, passes: int = 0, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[int, NamedImage]]:
        """A pass from its place `start` on: the places of images and they themselves.

        Args:
            share: Number of this reader and how many there are: each reads a share of the images.

        Raises:
            InputError: No image of a whole pass can be read.
        """
        n_read = 0
        for place, (number, name, read) in enumerate(self.order(passes)):
            if place < start or place % share[1] != share[0]:
                continue
            try:
                image = read()
            except _UNREADABLE as error:
                self.unreadable[name] = str(error) or type(error).__name__
                continue
            n_read += 1
            yield place, NamedImage(number, name, image)
        if not n_read and start == 0:
            raise InputError(f"{self.name}: {self._said() or 'there are no images'}")
        if self.unreadable:
            warnings.warn(f"{self.name}: {self._said()}", stacklevel=2)

    def _said(self) -> str:
        if not self.unreadable:
            return ""
        named = [f"{name} ({why})" for name, why in list(self.unreadable.items())[:_N_NAMED]]
        more = len(self.unreadable) - len(named)
        return (
            f"{len(self.unreadable)} images cannot be read and are left out: {', '.join(named)}"
            + (f" and {more} more" if more else "")
        )


def open_images(name: str, seed: int = 0, streaming: bool = True) -> ImageSet:
    """Images by the name that a user types.

    Args:
        name: A folder with images, in subfolders too; a data set in a folder or on the hub, of
            which the split `train` is read; or `package:NAME`, the images that an installed package
            ships.
        seed: Of the order.
        streaming: Read a data set of the hub as it comes, without downloading it first.

    Raises:
        InputError: It is neither, or holds no images.
        MissingInputError: There is no such folder or package.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _from_folder(_package_folder(name.removeprefix(PACKAGE_PREFIX)), name, seed)
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json")):
            with explained(path, "is no data set of images"):
                found = load_from_disk(str(path))
                dataset = found["train"] if isinstance(found, DatasetDict) else found
            return _from_dataset(dataset, name, seed)
        return _from_folder(path, name, seed)
    if name.startswith((".", "/", "~")):
        raise MissingInputError(f"there is no folder of images {path}")
    with explained(
        f"the data set {name!r}",
        "cannot be read",
        "name a folder of images, a data set on the hub, or package:skimage (--images)",
    ):
        dataset = load_dataset(name, split="train", streaming=streaming)
    return _from_stream(dataset, name, seed) if streaming else _from_dataset(dataset, name, seed)


def _package_folder(package: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError(
            f"the package {package!r} is not installed; package:skimage is of scikit-image"
        )
    return Path(spec.submodule_search_locations[0])


def _permuted(n: int, seed: int, passes: int) -> list[int]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + passes)
    return torch.randperm(n, generator=generator).tolist()


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _from_folder(folder: Path, name: str, seed: int) -> ImageSet:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _ENDINGS and f.is_file())
    if not files:
        raise InputError(
            f"{folder} holds no images; expected files that end in {', '.join(_ENDINGS)}"
        )
    names = [str(file.relative_to(folder)) for file in files]

    def order(passes: int) -> Iterator[tuple[int, str, Callable[[], Image.Image]]]:
        for number in _permuted(len(files), seed, passes):
            yield number, names[number], partial(_read, files[number])

    # sizes in place of contents: image sets are large
    identity = fingerprint([], [[n, f.stat().st_size] for n, f in zip(names, files, strict=True)])
    return ImageSet(name, len(files), identity, order)


def _undecoded(dataset: Any, name: str) -> tuple[Any, str]:
    """A data set that gives images as files, and the column that they are in."""
    features = dataset.features or {}
    columns = [column for column, kind in features.items() if isinstance(kind, ImageFeature)]
    if len(columns) != 1:
        raise InputError(
            f"the data set {name!r} has the columns {sorted(features)}, expected one of images"
        )
    return dataset.cast_column(columns[0], ImageFeature(decode=False)), columns[0]


def _decoded(file: dict[str, Any]) -> Image.Image:
    source = file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])
    with Image.open(source) as image:
        return image.convert("RGB")


def _from_dataset(dataset: Any, name: str, seed: int) -> ImageSet:
    rows, column = _undecoded(dataset, name)

    def order(passes: int) -> Iterator[tuple[int, str, Callable[[], Image.Image]]]:
        for number in _permuted(len(rows), seed, passes):
            yield number, f"{name}[{number}]", lambda i=number: _decoded(rows[i][column])

    identity = fingerprint([], [name, len(rows), getattr(dataset, "_fingerprint", None)])
    return ImageSet(name, len(rows), identity, order)


def _from_stream(dataset: Any, name: str, seed: int) -> ImageSet:
    files, column = _undecoded(dataset, name)

    def order(passes: int) -> Iterator[tuple[int, str, Callable[[], Image.Image]]]:
        shuffled = files.shuffle(seed=1_000_003 * seed + passes, buffer_size=_SHUFFLED)
        for number, row in enumerate(shuffled):
            yield number, f"{name}[{number}]", partial(_decoded, row[column])

    return ImageSet(name, None, fingerprint([], name), order)
