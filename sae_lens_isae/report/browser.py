"""A table of latents on a page that a reader sorts, filters, searches, opens and downloads."""

from __future__ import annotations

from typing import Any, NamedTuple


class Browser(NamedTuple):
    """What `templates/browser.js` shows.

    `saes` is a list with, for each SAE, its `name`; `neuronpedia_id`, or None; `columns`, lists
    with a value per latent: `trust`, `firing_rate`, `mean_magnitude`, `n_found`, `mean_cosine`,
    `mean_code_iou`; `partners`, the same lists for each other `sae`: `partner`, `sign`, `cosine`,
    `code_iou`; `examples`, for each latent a list of activation and place. `text` is None, or has
    the `token_ids` of contexts of a `size`, in which places are counted, and the `strings` of
    tokens.
    """

    data: dict[str, Any]
