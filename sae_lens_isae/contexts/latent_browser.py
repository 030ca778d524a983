"""Latents for a page: their numbers, what they are active on, what they promote, their partners."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_isae.contexts.examples import Example, LatentExamples
from sae_lens_isae.contexts.promoted import PromotedTokens
from sae_lens_isae.inputs.patch_images import Origin, PatchImages
from sae_lens_isae.inputs.token_text import TokenText
from sae_lens_isae.report.browser import Browser, Column

FIRES = Column("firing_rate", "fires", "share of the activations on which the latent is not 0", 4)
MAGNITUDE = Column("mean_magnitude", "|code|", "mean |code| where it is not 0", 2)
_CONTEXTS = (
    "Contexts: the largest activations of either sign, and some of middling size between them. "
    "Colour says the sign, the mark the token."
)
_PATCHES = (
    "Patches: the largest activations of either sign, and some of middling size between them, each "
    "in its image as the model saw it. Colour says the sign, the frame the patch."
)
_NO_CONTEXTS = (
    "These activations come without tokens, so latents are shown with the numbers of samples. "
    "`isae train` and `isae cache` keep tokens or images beside activations, and where the model "
    "runs they are known."
)
_PARTNER_COLUMNS = ("partner", "sign", "cosine", "code_iou")
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class ShownSAE:
    """One SAE of a table of latents."""

    name: str
    latents: pd.DataFrame
    """One row per latent that is shown, with its number, `latent`, and the columns of the table."""
    examples: LatentExamples
    partners: Mapping[str, pd.DataFrame] = field(default_factory=dict[str, pd.DataFrame])
    """For other SAEs of the table, which show all of their latents: `partner`, `sign`, `cosine` and
    `code_iou`, a row per latent."""
    promoted: PromotedTokens | None = None
    neuronpedia_id: str | None = None


def about_contexts(origin: Origin | None) -> str:
    """What a reader sees of the samples that a latent is active on."""
    if origin is None:
        return _NO_CONTEXTS
    return _PATCHES if isinstance(origin, PatchImages) else _CONTEXTS


def latent_browser(
    saes: Sequence[ShownSAE],
    columns: Sequence[Column],
    origin: Origin | None,
    filter_by: tuple[str, Sequence[str]] | None = None,
) -> Browser:
    """A table of the latents of one or more SAEs.

    Args:
        origin: Of the samples. Without it examples are numbers of samples.
        filter_by: A column of words, and its words in the order in which they are sorted.
    """
    found = [[sae.examples.of(int(latent)) for latent in sae.latents["latent"]] for sae in saes]
    places = _Places([example for of_sae in found for each in of_sae for example in each], origin)
    names = [column.name for column in columns]
    return Browser(
        {
            "columns": [column._asdict() for column in columns],
            "filter": None if filter_by is None else [filter_by[0], list(filter_by[1])],
            "saes": [
                {
                    "name": sae.name,
                    "neuronpedia_id": sae.neuronpedia_id,
                    "latents": sae.latents["latent"].tolist(),
                    "values": _columns(sae.latents, names),
                    "partners": [
                        {"sae": other, **_columns(table, _PARTNER_COLUMNS)}
                        for other, table in sae.partners.items()
                    ],
                    "examples": [[places.of(example) for example in latent] for latent in of_sae],
                    "promoted": sae.promoted and sae.promoted.of(sae.latents["latent"].tolist()),
                }
                for sae, of_sae in zip(saes, found, strict=True)
            ],
            "text": places.text(),
            "images": places.images(),
        }
    )


def _columns(table: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    rounded = {
        name: table[name].round(_DIGITS) if table[name].dtype == float else table[name]
        for name in names
    }
    return {
        name: column.astype(object).where(column.notna(), None).tolist()
        for name, column in rounded.items()
    }


class _Places:
    """Where examples stand in those contexts, or images, that any of them needs."""

    def __init__(self, examples: Sequence[Example], origin: Origin | None) -> None:
        self._origin = origin
        if origin is None:
            return
        of_images = isinstance(origin, PatchImages)
        rows = [example.row for example in examples]
        self._size = origin.n_patches if of_images else origin.token_ids.shape[1]
        self._places = origin.places.numpy()
        self._contexts = np.unique(self._places[np.unique(rows)] // self._size) if rows else []

    def of(self, example: Example) -> list[float]:
        """Activation and place, or without an origin activation and number of the sample."""
        activation = float(f"{example.activation:.4g}")
        if self._origin is None:
            return [activation, example.row]
        context, position = divmod(int(self._places[example.row]), self._size)
        return [activation, int(np.searchsorted(self._contexts, context)) * self._size + position]

    def text(self) -> dict[str, Any] | None:
        """The contexts, as tokens and how they are written."""
        if not isinstance(self._origin, TokenText):
            return None
        token_ids = self._origin.token_ids[self._contexts]
        used = token_ids.unique().tolist()
        return {
            "size": self._size,
            "token_ids": token_ids.reshape(-1).tolist(),
            "strings": {i: self._origin.strings[i] for i in used},
        }

    def images(self) -> dict[str, Any] | None:
        """The images, as a page embeds them."""
        if not isinstance(self._origin, PatchImages):
            return None
        jpegs = [self._origin.thumbnails[i] for i in self._contexts]
        return {
            "grid": list(self._origin.grid),
            "names": [self._origin.names[i] for i in self._contexts],
            "urls": [f"data:image/jpeg;base64,{base64.b64encode(j).decode()}" for j in jpegs],
        }
