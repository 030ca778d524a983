"""Labelled text without a hub, in SAEBench's formats: from sae-probes' files or a CSV file.

A `TextSet` has texts by class, for probing and TPP. `TwoLabelTexts` have two labels each, for SCR:
a probe is trained on texts where both agree, and ablation should cure it of one of them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import file_stem, fingerprint
from sae_lens_isae.saebench.installed import probes_folder

_FEWEST = 8
"""With fewer texts in a class, no probe can be trained and tested."""


@dataclass(frozen=True)
class TextSet:
    """Texts by class, in random order."""

    name: str
    classes: dict[str, list[str]]

    def sizes(self, train: int, test: int) -> tuple[int, int]:
        """Sizes as SAEBench counts them (twice the texts of a class), lowered to what there is."""
        most_train, most_test = _train_test_sizes(min(map(len, self.classes.values())))
        return 2 * min(train // 2, most_train), 2 * min(test // 2, most_test)

    def split(self, train: int, test: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Texts for training and for testing, none of them in both."""
        n_train, n_test = (size // 2 for size in self.sizes(train, test))
        start, _ = _train_test_sizes(min(map(len, self.classes.values())))
        return (
            {name: texts[:n_train] for name, texts in self.classes.items()},
            {name: texts[start : start + n_test] for name, texts in self.classes.items()},
        )


@dataclass(frozen=True)
class TwoLabelTexts:
    """Texts with two labels, in SAEBench's format of `bias_in_bios`, which its name must contain.

    The biased probe sees texts on which both labels are their first value, and texts on which both
    are their second.
    """

    name: str
    first: tuple[str, str]
    """The values of the label that stands where SAEBench has the profession."""
    second: tuple[str, str]
    """Where SAEBench has the gender."""
    texts: dict[tuple[str, str], list[str]]
    """By both labels, in random order."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What SAEBench keeps of a data set under its name."""
        return {
            "text_column_name": "text",
            "column1_name": "first",
            "column2_name": "second",
            "column1_mapping": {value: value for value in self.first},
            "column2_mapping": {value: value for value in self.second},
        }

    @property
    def quadrant(self) -> int:
        """How many texts of each quadrant there are for training and testing together."""
        (a, b), (c, d) = self.first, self.second
        agree = min(len(self.texts[a, c]), len(self.texts[b, d]))
        differ = min(len(self.texts[a, d]), len(self.texts[b, c]))
        # SAEBench wants more than twice as many where the labels agree, in both parts
        return min(differ, (agree - 2) // 2)

    def sizes(self, train: int, test: int) -> tuple[int, int]:
        """Sizes as SAEBench counts them (four quadrants), lowered to what there is."""
        most_train, most_test = _train_test_sizes(self.quadrant)
        return 4 * min(train // 4, most_train), 4 * min(test // 4, most_test)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The parts, as the hub's data set would give them."""
        share, _ = _train_test_sizes(self.quadrant)
        parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
        for (first, second), texts in self.texts.items():
            agree = self.first.index(first) == self.second.index(second)
            cut = 2 * share + 1 if agree else share
            for part, some in (("train", texts[:cut]), ("test", texts[cut:])):
                parts[part] += [{"text": t, "first": first, "second": second} for t in some]
        return {part: pd.DataFrame(rows) for part, rows in parts.items()}


def _train_test_sizes(n: int) -> tuple[int, int]:
    """How many of n texts are for training and for testing; an even number for training, so that
    texts that take turns are balanced in both."""
    train = max(1, round(0.6 * n / 2) * 2)
    return train, n - train


def labelled_texts(source: str) -> dict[str, str]:
    """Labels by text, of a data set of sae-probes or a CSV file with columns prompt and target.

    Texts that occur with several labels are left out.

    Raises:
        MissingInputError: There is no such data set or file; the message says which there are.
        InputError: The columns are not those, or all labels are equal.
    """
    path = Path(source)
    if path.suffix == ".csv":
        if not path.is_file():
            raise MissingInputError(f"there is no file of labelled texts {path}")
    else:
        path = probes_folder() / f"{source}.csv.zst"
        if not path.is_file():
            known = sorted(file.name.removesuffix(".csv.zst") for file in path.parent.glob("*.zst"))
            raise MissingInputError(
                f"sae-probes has no data set {source!r}; it has {', '.join(known)}; "
                "or name a .csv file with the columns prompt,target"
            )
    return _read(path)


def text_set(source: str, most_classes: int = 5) -> TextSet:
    """The texts of a data set by class, the largest classes of those that have many.

    Raises:
        InputError: As `labelled_texts`, or a class has too few texts.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for text, label in labelled_texts(source).items():
        by_label[label].append(text)
    # of classes of one size the first by name
    names = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[:most_classes]
    largest = {name: by_label[name] for name in names}
    few = {label: len(texts) for label, texts in largest.items() if len(texts) < _FEWEST}
    if few:
        raise InputError(
            f"{source}: the class {next(iter(few))!r} has {next(iter(few.values()))} texts, "
            f"{_FEWEST} are needed at least"
        )
    name = source
    if source.endswith(".csv"):
        # SAEBench knows data sets by name: a file must not stand for another of that name
        name = f"{file_stem(Path(source).stem)}-{fingerprint([], sorted(by_label.items()))[:8]}"
    return TextSet(name, {label: _shuffled(texts) for label, texts in largest.items()})


def two_label_texts(name: str, draw: int = 0) -> TwoLabelTexts:
    """The texts that two data sets of sae-probes share, by both labels.

    Args:
        name: One of `TWO_LABEL_SETS`.
        draw: Which texts are for training and which for testing.

    Raises:
        MissingInputError: sae-probes is not installed.
    """
    first_source, second_source, first, second = TWO_LABEL_SETS[name]
    of_second = labelled_texts(second_source)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text, label in labelled_texts(first_source).items():
        if text in of_second:
            found[first[label], second[of_second[text]]].append(text)
    texts = {labels: _shuffled(some, draw) for labels, some in found.items()}
    one, other = first.values()
    # which two quadrants are the biased ones is free: those that leave most texts
    candidates = [
        TwoLabelTexts(
            f"sae_probes/{name}_{draw}_as_bias_in_bios", order, _pair(second.values()), texts
        )
        for order in ((one, other), (other, one))
    ]
    return max(candidates, key=lambda found: found.quadrant)


def two_label_sets() -> list[TwoLabelTexts]:
    """All of `TWO_LABEL_SETS`; SCR averages over two draws of those that have few texts."""
    first = [two_label_texts(name) for name in TWO_LABEL_SETS]
    again = [
        two_label_texts(name, draw=1)
        for name, found in zip(TWO_LABEL_SETS, first, strict=True)
        if found.quadrant < _FEW
    ]
    return [*first, *again]


def _pair(names: Iterable[str]) -> tuple[str, str]:
    one, other = names
    return one, other


def occupations() -> TextSet:
    """Texts about people by occupation, as many about men as about women in each: the crossed
    labels in SAEBench's format of TPP, where the other label must not tell classes apart."""
    gender = labelled_texts("56_wikidatasex_or_gender")
    people = {
        job: {text for text, label in labelled_texts(source).items() if label == "1"}
        for job, source in _OCCUPATIONS.items()
    }
    classes: dict[str, list[str]] = {}
    for job, texts in people.items():
        only = texts.difference(*(others for other, others in people.items() if other != job))
        women, men = (
            _shuffled([text for text in only if gender.get(text) == value])
            for value in ("female", "male")
        )
        # in turn, so that every part of even length is balanced
        classes[job] = list(chain.from_iterable(zip(women, men, strict=False)))
    return TextSet("occupation_x_gender", classes)


PROBING_SETS = (
    "5_hist_fig_ismale",
    "7_hist_fig_ispolitician",
    "26_headline_isfrontpage",
    "92_glue_sst2",
    "96_spam_is",
    "97_news_class",
    "105_click_bait",
    "110_aimade_humangpt3",
    "157_amazon_5star",
    "159_code_Python",
)
"""Of sae-probes, for sparse probing: names, headlines, reviews, messages, news, questions, code."""

SAE_PROBES_SETS = (
    "5_hist_fig_ismale",
    "7_hist_fig_ispolitician",
    "21_headline_istrump",
    "96_spam_is",
    "105_click_bait",
    "114_nyc_borough_Manhattan",
    "126_art_type_book",
    "154_athlete_sport_football",
)
"""For the sae-probes eval, which reads every text of a set to its end: those that are short."""

TPP_SETS = ("97_news_class", "99_sci_cat", "27_art_type")
"""Beside `occupations`."""

_FEW = 100
"""With fewer texts in a quadrant, a pair of data sets is drawn twice."""

_OCCUPATIONS = {
    "actor": "61_wikidata_occupation_isactor",
    "journalist": "59_wikidata_occupation_isjournalist",
    "politician": "62_wikidata_occupation_ispolitician",
    "singer": "63_wikidata_occupation_issinger",
}

_NAMES = {"1": "male", "0": "female"}
_TEXTS = {"male": "male", "female": "female"}
TWO_LABEL_SETS: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {
    "politician_x_gender": (
        "7_hist_fig_ispolitician",
        "5_hist_fig_ismale",
        {"1": "politician", "0": "no_politician"},
        _NAMES,
    ),
    "american_x_gender": (
        "6_hist_fig_isamerican",
        "5_hist_fig_ismale",
        {"1": "american", "0": "no_american"},
        _NAMES,
    ),
    "occupation_x_gender": (
        "62_wikidata_occupation_ispolitician",
        "56_wikidatasex_or_gender",
        {"1": "politician", "0": "no_politician"},
        _TEXTS,
    ),
    "living_x_gender": (
        "57_wikidatais_alive",
        "56_wikidatasex_or_gender",
        {"True": "living", "False": "dead"},
        _TEXTS,
    ),
    "verdict_x_length": (
        "48_cm_correct",
        "49_cm_isshort",
        {"1": "right", "0": "wrong"},
        {"True": "short", "False": "long"},
    ),
}
"""Pairs of data sets of sae-probes that share texts, and the names of their labels. Not among them:
pairs whose biased probe is as good as another (SCR divides by the difference), e.g. headlines."""


@cache
def _read(path: Path) -> dict[str, str]:
    with explained(path, "cannot be read as CSV", "save it as UTF-8 with a comma between cells"):
        # a byte order mark, as Excel writes it, is no part of the first column's name
        table = pd.read_csv(path, encoding="utf-8-sig")
    missing = {"prompt", "target"} - set(table.columns)
    if missing:
        raise InputError(
            f"{path} has no column {' and no column '.join(sorted(missing))}; it needs prompt and "
            "target"
        )
    rows = table[["prompt", "target"]].dropna().astype(str)
    labels: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(rows["prompt"], rows["target"], strict=True):
        labels[text].add(label)
    sure = {text: next(iter(found)) for text, found in labels.items() if len(found) == 1}
    if len(set(sure.values())) < 2:
        raise InputError(
            f"{path}: all {len(sure)} texts have one label, {next(iter(sure.values()), None)!r}; a "
            "probe needs two classes"
        )
    return sure


def _shuffled(texts: Iterable[str], seed: int = 0) -> list[str]:
    ordered = sorted(texts)
    random.Random(seed).shuffle(ordered)
    return ordered
