"""Pairs of contrasting stories, and what a model makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from datasets import load_dataset
from jaxtyping import Float
from safetensors.torch import load_file, save_file

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import write_whole
from sae_lens_isae.inputs.language_models import hook_layer
from sae_lens_isae.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

PUBLISHED = "GulkoA/contrastive-stories-v4"
"""5,000 pairs on 1,000 subjects, on the hub."""

_SUBJECT = ("subject_title", "subject")
_STORIES_PER_PART = 64
_MOST_TOKENS = 1024


class StoryPair(NamedTuple):
    """Two stories about one subject, of contrasting meaning."""

    story1: str
    story2: str
    subject: str


def load_pairs(source: str | None = None, most: int | None = None) -> list[StoryPair]:
    """Read pairs from a .json, .jsonl or .csv file, by default the published ones.

    Columns are `story1`, `story2`, and `subject_title` or `subject`.

    Raises:
        MissingInputError: There is no such file, or the hub does not answer.
        InputError: A column is missing, a story is empty, or there are less than two pairs.
    """
    table = _published() if source is None else _read(Path(source))
    subject = next((name for name in _SUBJECT if name in table.columns), None)
    missing = [name for name in ("story1", "story2") if name not in table.columns]
    if subject is None:
        missing.append("subject_title")
    if missing:
        raise InputError(f"{source}: the pairs have no column {', no column '.join(missing)}")
    rows = table[["story1", "story2", subject]].fillna("").head(most).astype(str)
    pairs = [StoryPair(*row) for row in rows.itertuples(index=False, name=None)]
    for number, pair in enumerate(pairs, start=1):
        if not pair.story1.strip() or not pair.story2.strip():
            raise InputError(f"{source}: pair {number} has an empty story")
    if len(pairs) < 2:
        raise InputError(f"{source}: {len(pairs)} pairs, independence needs two at least")
    return pairs


class StoryActivations:
    """Activations of all stories at a hook, computed once and kept in a folder.

    Special tokens at the front are read by the model and left out of the activations.
    """

    def __init__(
        self,
        model: HookedRootModule,
        hook_name: str,
        pairs: Sequence[StoryPair],
        folder: Path,
        *,
        prepend_bos: bool = True,
    ) -> None:
        self.pairs = list(pairs)
        self._model = model
        self._hook_name = hook_name
        self._folder = folder
        self._prepend_bos = prepend_bos

    def __iter__(self) -> Iterator[Float[torch.Tensor, "tokens d_in"]]:
        """The stories' activations, story1 and story2 of the first pair, then of the next."""
        stories = [story for pair in self.pairs for story in (pair.story1, pair.story2)]
        self._folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(stories), _STORIES_PER_PART)
        for start in progress_bar(starts, desc="Stories", unit="part", leave=False):
            path = self._folder / f"{start}.safetensors"
            some = stories[start : start + _STORIES_PER_PART]
            if not path.exists():
                found = {str(i): self._read(story) for i, story in enumerate(some)}
                write_whole(path, lambda scratch, found=found: save_file(found, scratch))
            kept = load_file(path)
            yield from (kept[str(i)] for i in range(len(some)))

    @torch.no_grad()
    def _read(self, story: str) -> Float[torch.Tensor, "tokens d_in"]:
        tokenizer: Any = self._model.tokenizer
        tokens = tokenizer(story, add_special_tokens=False).input_ids[:_MOST_TOKENS]
        n_front = int(self._prepend_bos and tokenizer.bos_token_id is not None)
        front = [tokenizer.bos_token_id] * n_front
        batch = torch.tensor([front + tokens], device=next(self._model.parameters()).device)
        _, cache = self._model.run_with_cache(
            batch, names_filter=[self._hook_name], stop_at_layer=hook_layer(self._hook_name) + 1
        )
        return cache[self._hook_name][0, n_front:].flatten(1).float().cpu().contiguous()


def _published() -> pd.DataFrame:
    try:
        dataset: Any = load_dataset(PUBLISHED, split="train")
    except (OSError, ValueError) as error:
        raise MissingInputError(
            f"the stories {PUBLISHED} cannot be downloaded from the hub; name a file of pairs "
            "(--stories) with the columns story1, story2, subject_title"
        ) from error
    return dataset.to_pandas()


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MissingInputError(f"there is no file of stories {path}")
    with explained(path, "cannot be read", "save it as UTF-8"):
        if path.suffix == ".csv":
            return pd.read_csv(path, encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True)
        if path.suffix == ".json":
            return pd.DataFrame(json.loads(path.read_text(encoding="utf-8-sig")))
    raise InputError(f"stories must be .json, .jsonl or .csv, got {path.name}")
