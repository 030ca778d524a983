"""Prompts with known answers, from a CSV file."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
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


_ALIKE = 0.7
"""Share of the words that two prompts of a template have in common, in the same order."""


def templates_of(prompts: Sequence[Prompt]) -> list[int]:
    """Which prompts say the same of other things, as "The capital of Peru is" and "of Chile is".

    Returns:
        For every prompt the number of the first one that has its template.
    """
    first: list[int] = []
    found: list[int] = []
    # numbers are what varies
    words = [re.sub(r"\d+", "0", prompt.text).split() for prompt in prompts]
    for number, mine in enumerate(words):
        leader = next((i for i in first if _alike(words[i], mine)), number)
        if leader == number:
            first.append(number)
        found.append(leader)
    return found


def _alike(a: Sequence[str], b: Sequence[str]) -> bool:
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    # two upper bounds that cost less
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(bound() >= _ALIKE for bound in bounds)


def drawn(prompts: Sequence[Prompt], n: int | None, seed: int = 0) -> list[Prompt]:
    """So many prompts at random, from each template its share; all of them by default.

    Their order stays.
    """
    if n is None or n >= len(prompts):
        return list(prompts)
    templates = templates_of(prompts)
    numbers = list(range(len(prompts)))
    rng = random.Random(seed)
    rng.shuffle(numbers)
    # at which share of its template each prompt comes up; a template of one at a random one
    sizes = Counter(templates)
    seen = {template: rng.random() for template in sizes}
    turn: dict[int, float] = {}
    for number in numbers:
        template = templates[number]
        turn[number] = seen[template] / sizes[template]
        seen[template] += 1
    chosen = sorted(numbers, key=lambda number: turn[number])[:n]
    return [prompts[number] for number in sorted(chosen)]


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
