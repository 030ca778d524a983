"""The report of `isae recode`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from typing_extensions import override

from sae_lens_isae.contexts.latent_browser import about_contexts
from sae_lens_isae.files import TableFormat, json_records, write_json, write_table
from sae_lens_isae.recoding import tables
from sae_lens_isae.recoding.cost import cost_table
from sae_lens_isae.recoding.plots import lines, robustness
from sae_lens_isae.recoding.results import SCHEMA, RecodedSAE, RecodeSettings
from sae_lens_isae.recoding.shown import ShownLatents
from sae_lens_isae.report.glossary import RECODE
from sae_lens_isae.report.page import Section, numbers_section
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table

_TABLES = ("latents", "latents_by_chance", "picks")
"""Too long for JSON data."""


@dataclass(frozen=True, repr=False, kw_only=True)
class RecodingReport(Report):
    """The recoding study on one or more SAEs."""

    saes: list[RecodedSAE]
    settings: RecodeSettings
    n_prompts: int | None = None
    n_correct: int | None = None
    activations: str = "tensor"
    device: str = "cpu"
    seeds: list[str] = field(default_factory=list[str])
    """What tells the SAEs apart, if they are seeds."""
    shown: ShownLatents | None = field(default=None, repr=False)
    """The latents with what they are active on, for the page."""

    @property
    def latents(self) -> pd.DataFrame:
        """One row per SAE and latent that its encoder uses, see `LatentPicks`."""
        return self._of_all_saes("latents")

    @property
    def picks(self) -> pd.DataFrame:
        """One row per SAE, latent and method, see `LatentPicks`."""
        return self._of_all_saes("picks")

    @property
    @override
    def title(self) -> str:
        return "Would another algorithm have picked the same features?"

    @override
    def summary(self) -> str:
        said: list[str] = []
        for sae in self.saes:
            on_template = tables.n_on_template(sae)
            besides = f"; {on_template} more fire on one template of prompts" if on_template else ""
            said.append(
                f"{sae.name}: {tables.shared_picks(sae.latents):.1%} of the encoder's picks are "
                f"shared by OMP and IHT (by chance {tables.shared_picks(sae.latents_by_chance):.1%}"
                f"), and {tables.n_robust(sae)} of {len(sae.latents)} latents in use are robust "
                f"(by chance {tables.n_robust_by_chance(sae)}{besides})."
            )
        return " ".join(said)

    @override
    def tables(self) -> list[Table]:
        return [
            tables.methods_table(self.saes),
            tables.ablation_table(self.saes, self.settings),
            tables.robust_table(self.saes),
        ]

    @override
    def notes(self) -> list[str]:
        of_saes = [f"{sae.name}: {note}" for sae in self.saes for note in sae.notes]
        return [*self.seeds, *of_saes]

    @override
    def plot(self) -> go.Figure:
        return robustness(self.saes)

    @override
    def sections(self) -> list[Section]:
        more = tables.more_tables(self.saes, self.settings)
        methods, ablated, robust = self.tables()
        folded = [
            Section(table.title, [table], folded=True)
            for table in (methods, ablated, *more, cost_table(self.saes))
            if table.rows
        ]
        return [
            Section(
                "Which features depend on the algorithm?",
                [
                    "For the latents that the encoder uses: in which share of these samples OMP "
                    "and both IHT use them too.",
                    self.plot(),
                    *(
                        table
                        for sae in self.saes
                        for table in (tables.robust_features(sae), tables.robust_prompts(sae))
                        if table.rows
                    ),
                ],
            ),
            Section("What was coded", [self._about(), robust, self.notes()]),
            *self._ablation(),
            *self._latents(),
            *folded,
            Section(
                "Is a code stable under noise?",
                [
                    "Overlap of the supports of an activation and of the same with Gaussian noise. "
                    "A method that stays high has a solution of its own; where methods are stable "
                    "and disagree, there are several.",
                    lines(self.saes, "noise", "sigma", "jaccard", log=True),
                ],
                folded=True,
            ),
            Section(
                "Do the codes determine the decoder?",
                [
                    "Cosine of atoms refitted to a method's codes with the SAE's own. Few samples "
                    "leave atoms undetermined for any codes: compare methods, not with 1.",
                    lines(self.saes, "decoders", "k", "cosine", log=True),
                ],
                folded=True,
            ),
            numbers_section(RECODE),
        ]

    def _latents(self) -> list[Section]:
        if self.shown is None:
            return []
        said = [
            "robust: OMP and both IHT pick it in 90% of the samples in which the encoder does.",
            "on a template: so, but it fires on one template of prompts, and may say no more.",
            "seldom used: the encoder uses it in fewer than 5 samples.",
            about_contexts(self.shown.origin),
        ]
        return [Section("All latents in use", [self.shown.browser(), said], folded=True)]

    def _ablation(self) -> list[Section]:
        if all(sae.ablation is None for sae in self.saes):
            return []
        return [
            Section(
                "Do the features matter to the model?",
                [
                    "Share of correctly answered prompts that break without a method's largest "
                    "features at the last position. By chance: without features of another prompt, "
                    "as long as this one's.",
                    lines(self.saes, "ablation", "features", "breaking_rate"),
                ],
                folded=len(self.settings.ablation_k) == 1,
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without the tables of latents."""
        saes: list[dict[str, Any]] = []
        for sae in self.saes:
            fields: dict[str, Any] = {}
            for name, value in vars(sae).items():
                if isinstance(value, pd.DataFrame):
                    if name not in _TABLES:
                        fields[name] = json_records(value)
                else:
                    fields[name] = value
            fields |= {
                "shared_picks": tables.shared_picks(sae.latents),
                "shared_picks_by_chance": tables.shared_picks(sae.latents_by_chance),
                "n_robust": tables.n_robust(sae),
                "n_robust_by_chance": tables.n_robust_by_chance(sae),
                "n_on_template": tables.n_on_template(sae),
            }
            saes.append(fields)
        own = {**vars(self), "saes": saes, "settings": asdict(self.settings)}
        del own["shown"]
        return {"schema": SCHEMA, **own}

    def save(self, folder: str | Path, table_format: TableFormat = "parquet") -> list[Path]:
        """Write `recode.html`, `recode.json` and the two tables of latents.

        Returns:
            The files, the page first.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers = folder / "recode.html", folder / "recode.json"
        write_json(numbers, self.to_dict())
        written = [
            write_table(folder / "latents", self.latents, table_format),
            write_table(folder / "picks", self.picks, table_format),
        ]
        self.to_html(page)
        return [page, numbers, *written]

    def _of_all_saes(self, name: str) -> pd.DataFrame:
        parts = [getattr(sae, name).assign(sae=sae.name) for sae in self.saes]
        table = pd.concat(parts, ignore_index=True)
        return table.loc[:, ["sae", *(column for column in table.columns if column != "sae")]]

    def _about(self) -> list[str]:
        said = [f"Activations: {self.activations}."]
        if self.n_prompts is not None:
            said.append(f"{self.n_correct} of {self.n_prompts} prompts are answered correctly.")
        return said + [
            f"{sae.name}: {sae.architecture}, {sae.d_sae} latents, {sae.n_samples} samples, "
            f"{sae.mean_k:.1f} latents per sample."
            for sae in self.saes
        ]
