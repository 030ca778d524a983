"""Prompts with known answers, from a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sae_lens_isae.errors import InputError, MissingInputError, explained

DEFAULT_PROMPTS = Path(str(files("sae_lens_isae.recoding") / "facts.csv"))
"""Capitals, arithmetic, opposites and the like, written for this package."""


@dataclass(frozen=True)
class Prompt:
    """A text and what should come next."""

    text: str
    answer: str


def load_prompts(path: Path) -> list[Prompt]:
    """Read a CSV file with the columns `prompt` and `answer`.

    The answer is compared by its first token. It follows after a space, unless the prompt ends
    with one (`"3 + 4 = ",7`).

    Raises:
        MissingInputError: There is no such file.
        InputError: A column is missing, a row is empty, or there are no rows.
    """
    if not path.is_file():
        raise MissingInputError(f"there is no file of prompts {path}")
    # a byte order mark, as Excel writes it, is no part of the first column's name
    with (
        path.open(newline="", encoding="utf-8-sig") as file,
        explained(path, "cannot be read as CSV", "save it as UTF-8"),
    ):
        reader = csv.DictReader(file, strict=True)
        missing = {"prompt", "answer"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{path} has no column {' and no column '.join(sorted(missing))}; its first line "
                "must be prompt,answer"
            )
        rows = list(reader)
    for line, row in enumerate(rows, start=2):
        if None in row:
            raise InputError(
                f"{path}, row {line}: more cells than columns; put a prompt with a comma in quotes"
            )
    prompts = [Prompt(row["prompt"] or "", (row["answer"] or "").strip()) for row in rows]
    for line, prompt in enumerate(prompts, start=2):
        if not prompt.text.strip() or not prompt.answer:
            raise InputError(f"{path}, row {line}: prompt or answer is empty")
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts
