"""The report of `isae pairwise`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.contexts.examples import LatentExamples
from sae_lens_isae.contexts.latent_browser import ShownSAE, about_contexts, latent_browser
from sae_lens_isae.contexts.promoted import PromotedTokens
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import TableFormat, write_json, write_table
from sae_lens_isae.identifiability.chance import TITLES, Chance, Null, chance_table
from sae_lens_isae.identifiability.code_agreement import CONFIDENCE
from sae_lens_isae.identifiability.latents import TRUST, TRUST_CODE_IOU, UNIQUE_COSINE
from sae_lens_isae.identifiability.pairwise_plots import (
    MAX_POINTS,
    heat_maps,
    iou_histogram,
    sorted_cosines,
    stability,
)
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.pairwise_tables import (
    BROWSER_COLUMNS,
    by_group,
    cosine_table,
    found_everywhere,
    group_table,
    pair_notes,
    pair_table,
    sae_table,
    share_of_activations,
)
from sae_lens_isae.identifiability.table1 import TableRow, table_row
from sae_lens_isae.inputs.patch_images import Origin
from sae_lens_isae.report.browser import Browser
from sae_lens_isae.report.glossary import PAIRWISE
from sae_lens_isae.report.page import Section, numbers_section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table

SCHEMA = "sae-lens-isae/pairwise/3"
"""Written into the JSON; the number grows when a field changes its meaning or goes away."""


@dataclass(frozen=True, repr=False, kw_only=True)
class PairwiseReport(Report):
    """The comparison of all pairs of SAEs."""

    groups: dict[str, str]
    """Of every SAE; latents are looked for in the SAEs of the same one."""
    saes: list[SAESummary]
    pairs: list[PairIdentifiability]
    chance: list[Chance]
    """What the numbers of the pairs are by chance; empty if it was left out."""
    latents: pd.DataFrame = field(repr=False)
    """One row per SAE and latent; see `LatentTables`."""
    partners: pd.DataFrame = field(repr=False)
    """One row per SAE, latent and other SAE; see `LatentTables`."""
    examples: Mapping[str, LatentExamples] = field(repr=False)
    """What the latents of every SAE are active on."""
    origin: Origin | None = field(repr=False)
    """The tokens of the activations, where they are known."""
    promoted: Mapping[str, PromotedTokens] = field(repr=False)
    """Which tokens the latents of an SAE promote, where the model is at hand."""
    n_samples: int
    activations: str
    found_cosine: float
    n_zero_rows: int
    """All-zero activations, which are no tokens' and are left out."""
    differences: list[str]
    """How the SAEs differ in what they are for, and in their seeds."""

    @property
    @override
    def title(self) -> str:
        return "Would another training run have found the same features?"

    def verdict(self) -> str:
        """How many latents another training run found, and how many it would by chance."""
        found = [self._found(*each) for each in by_group(self.saes, self.groups).items()]
        by_chance = self._by_chance("covariance", "found")
        if by_chance is None:
            return " ".join(found)
        most = " at most" if max(self.latents["n_others"]) > 1 else ""
        said = f"{' '.join(found)} By chance it would be{most} {by_chance:.1%}."
        return said + self._no_better_than_chance()

    def _by_chance(self, null: Null, number: Literal["found", "dcs", "iou"]) -> float | None:
        """A number by chance; None without it."""
        return next((getattr(row, number) for row in self.chance if row.null == null), None)

    def _no_better_than_chance(self) -> str:
        by_chance = self._by_chance("covariance", "dcs")
        within = [p.dcs for p in self.pairs if self.groups[p.a] == self.groups[p.b]]
        if by_chance is None or not within or max(within) > by_chance:
            return ""
        return (
            " No two dictionaries are more alike than random directions with the activations' "
            "covariance: train longer, or with a larger learning rate."
        )

    def _found(self, group: str, members: Sequence[SAESummary]) -> str:
        found = [found_everywhere(sae.name, self.latents) for sae in members]
        active = [share_of_activations(sae.name, self.latents) for sae in members]
        sizes = sorted({sae.d_sae for sae in members})
        latents = " to ".join(f"{size:,}" for size in sizes[:: max(1, len(sizes) - 1)])
        others = "the other SAE" if len(members) == 2 else f"all {len(members) - 1} other SAEs"
        begin = f"{group}: of" if group else "Of"
        return (
            f"{begin} {latents} latents {_share(found)} were found in {others}, with "
            f"{_share(active)} of all activations."
        )

    @override
    def summary(self) -> str:
        if len(set(self.groups.values())) > 1:
            return self.verdict()
        mean = self.table1_row("mean")
        n_pairs = f"{len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''}"
        oracle = "" if mean.oracle_iou is None else f" (oracle {mean.oracle_iou:.3f})"
        return (
            f"{self.verdict()} {len(self.saes)} SAEs, {n_pairs}, {self.n_samples} activations: DCS "
            f"{mean.dcs:.3f}, IoU {mean.sae_iou:.3f}{oracle}, l2 {mean.sae_l2:.3f}."
            f"{self._chance_in_words()}"
        )

    def _chance_in_words(self) -> str:
        dcs = self._by_chance("covariance", "dcs")
        iou = self._by_chance("other samples", "iou")
        if dcs is None or iou is None:
            return ""
        return f" By chance: DCS {dcs:.3f}, IoU {iou:.3f}."

    def contexts(self, sae: str, latent: int) -> pd.DataFrame:
        """What a latent is active on, from its largest code to its smallest.

        Returns:
            `row`, the number of the activation; `code`; and where tokens are known, `before`,
            `token` and `after`.

        Raises:
            InputError: There is no such SAE or latent.
        """
        sizes = {each.name: each.d_sae for each in self.saes}
        if sae not in sizes:
            raise InputError(f"there is no SAE {sae!r}, only {list(sizes)}")
        if not 0 <= latent < sizes[sae]:
            raise InputError(f"{sae} has latents 0 to {sizes[sae] - 1}, got {latent}")
        found = self.examples[sae].of(latent)
        table = pd.DataFrame(found, columns=["row", "code"])
        if self.origin is None:
            return table
        excerpts = [self.origin.excerpt(example.row) for example in found]
        return table.join(pd.DataFrame(excerpts, columns=["before", "token", "after"]))

    def table1_row(self, variant: str) -> TableRow:
        """The SAEs as seeds of one variant: a row of Table 1 of Nelson et al. 2026."""
        return table_row(variant, self.saes, self.pairs)

    @override
    def tables(self) -> list[Table]:
        tables: list[Table] = []
        if len(set(self.groups.values())) > 1:
            tables.append(group_table(self.saes, self.pairs, self.latents, self.groups))
        tables += [
            sae_table(f"On {self.n_samples} activations", self.saes, self.latents),
            pair_table(self.saes, self.pairs, self.groups),
            cosine_table(self.latents),
        ]
        return [*tables, chance_table(self.chance)] if self.chance else tables

    @override
    def notes(self) -> list[str]:
        notes = list(self.differences)
        if self.n_zero_rows:
            notes.append(f"{self.n_zero_rows} all-zero activations are left out.")
        notes += [
            f"{TITLES[row.null].capitalize()}: {row.why_not}." for row in self.chance if row.why_not
        ]
        return notes + pair_notes(self.saes, self.pairs)

    @override
    def plot(self) -> go.Figure:
        return stability(self.latents, self.n_samples)

    @override
    def sections(self) -> list[Section]:
        sampled = ""
        if max(sae.d_sae for sae in self.saes) > MAX_POINTS:
            sampled = f"{MAX_POINTS} random latents of each SAE are shown. "
        return [
            Section(
                "Which features to trust",
                [
                    "Open a latent to see what it is active on, beside its partners.",
                    self._browser(),
                    self._trust_in_words(),
                ],
            ),
            Section(
                "SAEs and pairs",
                [f"Activations: {self.activations}.", *self.tables(), self.notes()],
            ),
            Section(
                "All pairs at a glance",
                [
                    "DCS compares dictionaries, IoU codes. Where the oracle agrees better than the "
                    "SAEs, a better encoder would find the same codes on these dictionaries.",
                    heat_maps(self.saes, self.pairs),
                ],
            ),
            Section(
                "Which atoms were found again?",
                [
                    "Every atom's cosine with its partner, best first. A curve that stays at 1 to "
                    "the right end is a dictionary that both runs found.",
                    sorted_cosines(self.pairs),
                ],
            ),
            Section(
                "How much do the supports overlap?",
                [
                    "Share of the activations by the IoU of their active latents.",
                    iou_histogram(self.pairs),
                ],
            ),
            Section(
                "Trust and firing rate",
                [
                    "Each point is a latent: how often it fires, and its mean cosine with its "
                    "partners in the other SAEs. Colour is the mean overlap of their firing. "
                    f"{sampled}The table of all latents lies beside this page.",
                    self.plot(),
                ],
            ),
            numbers_section(PAIRWISE),
        ]

    def _browser(self) -> Browser:
        shown: list[ShownSAE] = []
        for sae in self.saes:
            partners = self.partners.loc[self.partners["sae"] == sae.name, :]
            others: list[Any] = list(partners["other"].unique())
            shown.append(
                ShownSAE(
                    name=sae.name,
                    latents=self.latents.loc[self.latents["sae"] == sae.name, :],
                    examples=self.examples[sae.name],
                    partners={o: partners.loc[partners["other"] == o, :] for o in others},
                    promoted=self.promoted.get(sae.name),
                    neuronpedia_id=sae.neuronpedia_id,
                )
            )
        return latent_browser(shown, BROWSER_COLUMNS, self.origin, ("trust", TRUST))

    def _trust(self, sae: str) -> dict[str, Any]:
        of_sae = self.latents[self.latents["sae"] == sae]
        return {
            "found": found_everywhere(sae, self.latents),
            "share_of_activations": share_of_activations(sae, self.latents),
            "trust": {name: int((of_sae["trust"] == name).sum()) for name in TRUST},
        }

    def _trust_in_words(self) -> list[str]:
        return [
            f"trusted: its atom was found (cosine {self.found_cosine:g}) in every other SAE, and "
            f"on average it and its partners fire together on {TRUST_CODE_IOU:.0%} or more of the "
            "samples on which one of them does.",
            "doubtful: not found everywhere, or not together with its partners.",
            f"unique: no partner has a cosine of {UNIQUE_COSINE:.2f}. dead: never fires on these "
            "activations.",
            about_contexts(self.origin),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without the tables of latents."""
        pairs: list[dict[str, Any]] = []
        for pair in self.pairs:
            row = {k: v for k, v in vars(pair).items() if k not in ("match", "sae", "oracle")}
            row["sae"] = pair.sae.to_dict()
            row["oracle"] = None if pair.oracle is None else pair.oracle.to_dict()
            pairs.append(row)
        return {
            "schema": SCHEMA,
            "activations": self.activations,
            "n_samples": self.n_samples,
            "n_zero_rows": self.n_zero_rows,
            "differences": self.differences,
            "confidence": CONFIDENCE,
            "found_cosine": self.found_cosine,
            "groups": self.groups,
            "saes": [asdict(sae) | self._trust(sae.name) for sae in self.saes],
            "pairs": pairs,
            "chance": [asdict(row) for row in self.chance],
        }

    def save(self, folder: str | Path, table_format: TableFormat = "parquet") -> list[Path]:
        """Write `pairwise.html`, `pairwise.json`, `latents.json`, and the two tables of latents.

        Returns:
            The files, the page first.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers, as_json = (
            folder / name for name in ("pairwise.html", "pairwise.json", "latents.json")
        )
        write_json(numbers, self.to_dict())
        tables = {"latents": self.latents, "partners": self.partners}
        # pandas writes missing values as null, which plain json does not
        columns = {
            name: json.loads(str(table.to_json(orient="split", index=False)))
            for name, table in tables.items()
        }
        write_json(as_json, {"schema": SCHEMA, **columns}, indent=None)
        written = [write_table(folder / name, t, table_format) for name, t in tables.items()]
        self.to_html(page)
        return [page, numbers, as_json, *written]


def _share(shares: Sequence[float]) -> str:
    least, most = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return least if least == most else f"{least} to {most}"
