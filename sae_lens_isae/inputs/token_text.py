"""The tokens behind activations, so that a report can show what a latent is active on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from safetensors import safe_open

_STRINGS = "token_strings"
"""Entry of a safetensors file's metadata."""


class Excerpt(NamedTuple):
    """One token and its context."""

    before: str
    token: str
    after: str


@dataclass(frozen=True)
class TokenText:
    """Which token each of some activations belongs to, and how tokens are written."""

    token_ids: Int[torch.Tensor, "contexts context"]
    places: Int[torch.Tensor, " activations"]
    """In the flattened `token_ids`."""
    strings: Mapping[int, str]
    """Of every token in `token_ids`."""

    def excerpt(self, row: int) -> Excerpt:
        """The context of one activation, split at its token."""
        context, position = divmod(int(self.places[row]), self.token_ids.shape[1])
        pieces = [self.strings[i] for i in self.token_ids[context].tolist()]
        after = "".join(pieces[position + 1 :])
        return Excerpt("".join(pieces[:position]), pieces[position], after)

    def first(self, n: int) -> TokenText:
        """The tokens of the first `n` activations."""
        return replace(self, places=self.places[:n])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a safetensors file holds of it, beside `metadata`."""
        return {"token_ids": self.token_ids.int().contiguous(), "places": self.places.int()}

    def metadata(self) -> dict[str, str]:
        """What the metadata of a safetensors file hold of it."""
        return {_STRINGS: json.dumps(self.strings)}


def text_of_file(file: safe_open) -> TokenText | None:
    """The text in an open safetensors file, None if it holds none."""
    strings = (file.metadata() or {}).get(_STRINGS)
    if strings is None:
        return None
    return TokenText(
        file.get_tensor("token_ids"),
        file.get_tensor("places"),
        {int(key): string for key, string in json.loads(strings).items()},
    )


def token_text(
    tokenizer: Any,
    token_ids: Int[torch.Tensor, "contexts context"],
    places: Int[torch.Tensor, " activations"],
) -> TokenText | None:
    """Tokens as the tokenizer writes them, None without one."""
    if tokenizer is None:
        return None
    ids: list[int] = token_ids.unique().tolist()
    pieces = tokenizer.convert_ids_to_tokens(ids)
    texts = tokenizer.batch_decode([[i] for i in ids])
    strings = {
        # SentencePiece writes a space before a word as a mark, and drops it when it decodes one
        i: f" {text}" if str(piece).startswith("\u2581") and not text.startswith(" ") else text
        for i, piece, text in zip(ids, pieces, texts, strict=True)
    }
    return TokenText(token_ids.cpu(), places.cpu(), strings)


def kept_places(
    tokens: Int[torch.Tensor, "contexts context"],
    positions: slice,
    excluded: Int[torch.Tensor, " tokens"] | None,
) -> tuple[Int[torch.Tensor, " kept"], Int[torch.Tensor, " kept"]]:
    """Which tokens have an activation in a run.

    Args:
        tokens: On the CPU.
        positions: Of a context that the run looks at.
        excluded: Special tokens that it leaves out.

    Returns:
        Places in the flattened tokens; and which of the activations at `positions` they are.
    """
    places = torch.arange(tokens.numel()).view_as(tokens)[:, positions].reshape(-1)
    kept = torch.arange(len(places))
    if excluded is not None:
        kept = kept[torch.isin(tokens.reshape(-1)[places], excluded).logical_not()]
    return places[kept], kept
