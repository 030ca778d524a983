"""The latents of a recoding study for its page, with what they are active on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Int

from sae_lens_isae.contexts.examples import LatentExamples
from sae_lens_isae.contexts.latent_browser import MAGNITUDE, ShownSAE, latent_browser
from sae_lens_isae.contexts.promoted import PromotedTokens
from sae_lens_isae.inputs.patch_images import Origin
from sae_lens_isae.recoding.results import RecodedSAE
from sae_lens_isae.recoding.tables import KINDS, kind_of_latents
from sae_lens_isae.report.browser import Browser, Column
from sae_lens_isae.solvers import SparseCodes

_BATCH = 256
_COLUMNS = (
    Column("kind", "kind", "see below the table"),
    Column("n_encoder", "samples", "samples in which the encoder uses it"),
    MAGNITUDE,
    Column(
        "picked_by_all",
        "picked by all",
        "share of these samples in which OMP and both IHT use it too",
        2,
    ),
)
_TEMPLATE = Column(
    "template_share", "one template", "share of these samples that are prompts of one template", 2
)


@dataclass(frozen=True)
class ShownLatents:
    """The latents that the encoders of all SAEs use."""

    saes: Sequence[ShownSAE]
    origin: Origin | None

    def browser(self) -> Browser:
        """The table of the page."""
        of_prompts = all("template_share" in sae.latents for sae in self.saes)
        columns = (*_COLUMNS, _TEMPLATE) if of_prompts else _COLUMNS
        return latent_browser(self.saes, columns, self.origin, ("kind", KINDS))


def shown_latents(
    sae: RecodedSAE,
    codes: SparseCodes,
    rows: Int[torch.Tensor, " samples"],
    promoted: PromotedTokens | None,
    neuronpedia_id: str | None,
) -> ShownSAE:
    """One SAE of a page.

    Args:
        codes: Of its encoder.
        rows: Numbers of the samples in the text.
    """
    examples = LatentExamples(codes.d_sae)
    for part in torch.arange(len(rows)).split(_BATCH):
        at = part.to(codes.indices.device)
        examples.add(codes.pick(at).to_dense(), rows[part])
    latents: pd.DataFrame = sae.latents.assign(kind=kind_of_latents(sae.latents))
    return ShownSAE(
        name=sae.name,
        latents=latents,
        examples=examples,
        promoted=promoted,
        neuronpedia_id=neuronpedia_id,
    )
