"""Which tokens a latent makes the model say: its atom seen through the last norm and the head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

N_PROMOTED = 6
_BLOCK_NUMBERS = 2**27
_IN_THE_STREAM = re.compile(
    r"hook_(resid_\w+|mlp_out|attn_out)$|blocks\.\d+\.hook_(in|out)$|\.\d+$"
)
"""Hooks whose activations have the residual stream's basis: the stream itself, what blocks add to
it, and the output of a whole block."""


@dataclass(frozen=True)
class PromotedTokens:
    """For every latent the tokens whose logits it raises most, and those that it lowers most."""

    raised: Int[torch.Tensor, "d_sae n"]
    lowered: Int[torch.Tensor, "d_sae n"]
    strings: dict[int, str]
    """How they are written."""

    def of(self, latents: Sequence[int]) -> list[list[list[str]]]:
        """The tokens raised and lowered by some latents, strongest first."""
        return [
            [[self.strings[i] for i in tokens[latent].tolist()] for tokens in self._both]
            for latent in latents
        ]

    @property
    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.raised, self.lowered


def promoted_by_all(
    source: ActivationSource, saes: Mapping[str, LinearSAE]
) -> dict[str, PromotedTokens]:
    """Of every SAE whose model is at hand."""
    if source.model is None:
        return {}
    model = source.model()
    found = {
        name: promoted_tokens(model, linear.cfg.metadata.hook_name, linear.atoms)
        for name, linear in saes.items()
    }
    return {name: tokens for name, tokens in found.items() if tokens is not None}


@torch.no_grad()
def promoted_tokens(
    model: HookedRootModule,
    hook_name: str | None,
    atoms: Float[torch.Tensor, "d_sae d_in"],
    n: int = N_PROMOTED,
) -> PromotedTokens | None:
    """The direct effect of atoms of the residual stream on the logits.

    An atom is taken through the model's last norm and its unembedding as if it were the whole
    residual stream: up to a positive factor the effect of adding a little of it, where the scale of
    the norm stays. What later blocks make of it is left out.

    Args:
        hook_name: Where the atoms are.

    Returns:
        None where the hook is not known to be in the residual stream or to add to it, and where the
        model's last norm or head are not to be found.
    """
    found = _norm_and_head(model)
    tokenizer: Any = getattr(model, "tokenizer", None)
    if found is None or tokenizer is None or not _IN_THE_STREAM.search(hook_name or ""):
        return None
    norm, head, width = found
    if width != atoms.shape[1]:
        return None
    place = next(model.parameters())

    def logits(x: torch.Tensor) -> torch.Tensor:
        return head(norm(x[None].to(place)))[0].float()

    without = logits(torch.zeros_like(atoms[:1]))
    both: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    blocks = atoms.split(max(1, _BLOCK_NUMBERS // without.shape[1]))
    for block in progress_bar(blocks, desc="Promoted tokens", unit="block", leave=False):
        effect = logits(block) - without
        for tokens, largest in zip(both, (True, False), strict=True):
            tokens.append(effect.topk(n, largest=largest).indices.cpu())
    raised, lowered = (torch.cat(tokens) for tokens in both)
    ids: list[int] = torch.cat([raised, lowered]).unique().tolist()
    strings = dict(zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True))
    return PromotedTokens(raised, lowered, strings)


def _norm_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module, int] | None:
    """The last norm, the unembedding and the width between them, of TransformerLens' models and of
    those that SAELens wraps."""
    if hasattr(model, "ln_final") and hasattr(model, "unembed"):
        return model.ln_final, model.unembed, model.cfg.d_model
    wrapped: Any = getattr(model, "model", None)
    head = wrapped.get_output_embeddings() if hasattr(wrapped, "get_output_embeddings") else None
    if head is None:
        return None
    width = head.weight.shape[1]
    norms = [
        module
        for module in wrapped.modules()
        if "norm" in type(module).__name__.lower()
        and getattr(getattr(module, "weight", None), "shape", None) == (width,)
    ]
    # the last to be registered is that after the blocks
    return (norms[-1], head, width) if norms else None
