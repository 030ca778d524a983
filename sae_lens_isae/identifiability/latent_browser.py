"""Every latent for a page: whether to trust it, its partners, and what it is active on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_isae.identifiability.examples import Example, LatentExamples
from sae_lens_isae.inputs.token_text import TokenText
from sae_lens_isae.report.browser import Browser

_COLUMNS = ("trust", "firing_rate", "mean_magnitude", "n_found", "mean_cosine", "mean_code_iou")
_PARTNER_COLUMNS = ("partner", "sign", "cosine", "code_iou")
_DIGITS = 4


def latent_browser(
    latents: pd.DataFrame,
    partners: pd.DataFrame,
    examples: Mapping[str, LatentExamples],
    text: TokenText | None,
    neuronpedia_ids: Mapping[str, str | None],
) -> Browser:
    """The tables of latents and their examples.

    Args:
        latents: See `LatentTables`, as `partners`.
        text: Of the samples. Without it examples are numbers of samples.
        neuronpedia_ids: Of the SAEs that are on Neuronpedia.
    """
    found = {
        name: [of_sae.of(latent) for latent in range(int((latents["sae"] == name).sum()))]
        for name, of_sae in examples.items()
    }
    places = _Places(found, text)
    saes: list[dict[str, Any]] = []
    for name, of_sae in found.items():
        here = partners[partners["sae"] == name]
        saes.append(
            {
                "name": name,
                "neuronpedia_id": neuronpedia_ids.get(name),
                "columns": _columns(latents[latents["sae"] == name], _COLUMNS),
                "partners": [
                    {"sae": other, **_columns(table, _PARTNER_COLUMNS)}
                    for other, table in here.groupby("other", sort=False)
                ],
                "examples": [[places.of(example) for example in latent] for latent in of_sae],
            }
        )
    return Browser({"saes": saes, "text": places.text()})


def _columns(table: Any, names: tuple[str, ...]) -> dict[str, list[Any]]:
    rounded = {
        name: table[name].round(_DIGITS) if table[name].dtype == float else table[name]
        for name in names
    }
    return {
        name: column.astype(object).where(column.notna(), None).tolist()
        for name, column in rounded.items()
    }


class _Places:
    """Where examples stand in those contexts that any of them needs."""

    def __init__(self, examples: Mapping[str, list[list[Example]]], text: TokenText | None) -> None:
        self._text = text
        if text is None:
            return
        rows = [example.row for of_sae in examples.values() for each in of_sae for example in each]
        self._size = text.token_ids.shape[1]
        self._places = text.places.numpy()
        self._contexts = np.unique(self._places[np.unique(rows)] // self._size) if rows else []

    def of(self, example: Example) -> list[float]:
        """Activation and place, or without text activation and number of the sample."""
        activation = float(f"{example.activation:.4g}")
        if self._text is None:
            return [activation, example.row]
        context, position = divmod(int(self._places[example.row]), self._size)
        return [activation, int(np.searchsorted(self._contexts, context)) * self._size + position]

    def text(self) -> dict[str, Any] | None:
        """The contexts, as tokens and how they are written."""
        if self._text is None:
            return None
        token_ids = self._text.token_ids[self._contexts]
        used = token_ids.unique().tolist()
        return {
            "size": self._size,
            "token_ids": token_ids.reshape(-1).tolist(),
            "strings": {i: self._text.strings[i] for i in used},
        }
