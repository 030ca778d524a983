"""A table of latents on a page that a reader sorts, filters, searches, opens and downloads."""

from __future__ import annotations

from typing import Any, NamedTuple


class Column(NamedTuple):
    """A number or a word of every latent."""

    name: str
    label: str
    """Its head."""
    title: str
    """What the head says when a pointer rests on it."""
    digits: int = 0


class Browser(NamedTuple):
    """What `templates/browser.js` shows.

    `columns` are those of the table, `filter` names one of them and its values, or is None. `saes`
    is a list with, for each SAE, its `name`; `neuronpedia_id`, or None; `latents`, the numbers of
    the rows; `values`, lists with a value per row for each column; `partners`, for each other `sae`
    lists of `partner`, `sign`, `cosine`, `code_iou`; `examples`, for each row a list of activation
    and place; `promoted`, for each row the tokens that it promotes and those that it suppresses, or
    None. `text` is None, or has the `token_ids` of contexts of a `size`, in which places are
    counted, and the `strings` of tokens. `images` is None, or has the `urls` and `names` of images
    and the `grid` of their patches, rows and columns, in which places are counted then.
    """

    data: dict[str, Any]
