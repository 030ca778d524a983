"""The tables of 'Which Sparse Code?', for the terminal and the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sae_lens_isae.recoding.algorithms import ENCODER, GD, IHT, OMP, Algorithm, omp_without
from sae_lens_isae.recoding.results import RecodedSAE, RecodeSettings
from sae_lens_isae.report.tables import Table

_SHORT = {ENCODER: "Enc", OMP: "OMP", IHT: "IHT", GD: "GD"}
"""Column heads."""
_MEASURES = {"jaccard": "Jacc", "r2": "R2", "cosine": "Cos", "cca": "CCA", "procrustes": "Proc"}
Saes = Sequence[RecodedSAE]
BY_CHANCE = "by chance"
"""In place of a method: the encoder's features of another sample, as long as this one's."""
_AT_LEAST = 5
_MANY = 0.9


def more_tables(saes: Saes, settings: RecodeSettings) -> list[Table]:
    """The tables of the study that a terminal does not show, those without rows left out."""
    found = [
        _reconstruction_table(saes),
        _agreement_table(saes),
        _reach_table(saes),
        _exclusion_table(saes, settings),
        _noise_table(saes),
        _decoder_table(saes),
        _decoder_pair_table(saes),
        _breaking_table(saes, settings),
    ]
    return [table for table in found if table.rows]


def _reconstruction_table(saes: Saes) -> Table:
    """Table 1."""
    methods = (OMP, IHT, GD)
    measures = {"reconstruction": "recon", "jaccard": "Jacc", "r2": "R2"}
    return Table(
        "Codes against the encoder's",
        [
            "SAE",
            "samples",
            "k",
            *(f"{_SHORT[m]} {name}" for m in methods for name in measures.values()),
        ],
        [
            [
                sae.name,
                str(sae.n_samples),
                f"{sae.mean_k:.0f}",
                *_cells(sae.agreement, methods, list(measures)),
            ]
            for sae in saes
        ],
    )


def _agreement_table(saes: Saes) -> Table:
    """Table 2."""
    methods = (OMP, IHT, GD)
    return Table(
        "Agreement with the encoder",
        ["SAE", *(f"{_SHORT[m]} {name}" for m in methods for name in _MEASURES.values())],
        [[sae.name, *_cells(sae.agreement, methods, list(_MEASURES))] for sae in saes],
    )


def methods_table(saes: Saes) -> Table:
    """Every method, a row each."""
    rows = [
        [
            sae.name,
            str(row["method"]),
            _text(row["reconstruction"]),
            *(_with_chance(row, measure) for measure in _MEASURES),
        ]
        for sae in saes
        for row in sae.agreement.to_dict(orient="records")
    ]
    headers = ["SAE", "method", "recon", *_MEASURES.values()]
    return Table("All methods, in brackets what it is by chance", headers, rows)


def _with_chance(row: Mapping[Any, Any], measure: str) -> str:
    value = _text(row[measure])
    return value if value == "-" else f"{value} ({_text(row[f'chance_{measure}'])})"


def _reach_table(saes: Saes) -> Table:
    """What appendix D warns of, and what the paper has no column for."""
    columns = {
        "n_samples": "samples",
        "retained": "retained",
        "chance_r2": "chance",
        "r2_weighted": "R2 weighted",
        "disparity": "disparity",
        "shared_correlation": "shared corr",
        "starts": "two starts",
    }
    return _by_method("How far these numbers carry", saes, columns)


def _by_method(title: str, saes: Saes, columns: Mapping[str, str]) -> Table:
    return Table(
        title,
        ["SAE", "method", *columns.values()],
        [
            [sae.name, str(row["method"]), *(_text(row[c]) for c in columns)]
            for sae in saes
            for row in sae.agreement.to_dict(orient="records")
        ],
    )


def _exclusion_table(saes: Saes, settings: RecodeSettings) -> Table:
    """Table 3."""
    methods = {"free": OMP, **{f"without {n}": omp_without(n) for n in settings.exclude}}
    return Table(
        "OMP without the encoder's largest features",
        ["SAE", "OMP", *_MEASURES.values(), "recon"],
        [
            [
                sae.name,
                label,
                *_cells(sae.agreement, [method], [*_MEASURES, "reconstruction"]),
            ]
            for sae in saes
            for label, method in methods.items()
        ],
    )


def _noise_table(saes: Saes) -> Table:
    """Table 4."""
    methods = (ENCODER, OMP, IHT, GD)
    return Table(
        "Overlap with the code of the clean activation, under noise",
        ["SAE", "sigma", *(_SHORT[m] for m in methods)],
        [
            [sae.name, f"{sigma:g}", *_cells(at, methods, ["jaccard"])]
            for sae in saes
            for sigma, at in sae.noise.groupby("sigma")
        ],
    )


def _decoder_table(saes: Saes) -> Table:
    """Table 5."""
    methods = (ENCODER, OMP, IHT, GD)
    return Table(
        "Cosine of refitted atoms to the SAE's own",
        ["SAE", "k", *(_SHORT[m] for m in methods)],
        [
            [sae.name, str(k), *_cells(at, methods, ["cosine"])]
            for sae in saes
            for k, at in sae.decoders.groupby("k")
        ],
    )


def _decoder_pair_table(saes: Saes) -> Table:
    """Table 6."""
    pairs = list(itertools.combinations((ENCODER, OMP, IHT, GD), 2))
    rows: list[list[str]] = []
    for sae in saes:
        mean = sae.decoder_pairs.astype({"cosine": float}).groupby(["method", "other"])["cosine"]
        found = mean.mean().to_dict()
        rows.append([sae.name, *(_text(found.get((a.name, b.name))) for a, b in pairs)])
    return Table(
        "Cosine of atoms refitted to two methods' codes, shared latents, mean over k",
        ["SAE", *(f"{_SHORT[a]}-{_SHORT[b]}" for a, b in pairs)],
        rows if any(len(sae.decoder_pairs) for sae in saes) else [],
    )


def ablation_table(saes: Saes, settings: RecodeSettings) -> Table:
    """Table 7, for five features where these were ablated."""
    features = 5 if 5 in settings.ablation_k else next(iter(settings.ablation_k), 0)
    rows: list[list[str]] = []
    for sae in saes:
        if sae.ablation is None:
            continue
        agreement = sae.agreement.set_index("method")
        at = sae.ablation.loc[sae.ablation["features"] == features]
        for row in at.to_dict(orient="records"):
            method = row["method"]
            same: tuple[Any, Any] = (1.0, 1.0) if method == ENCODER.name else (None, None)
            if method in agreement.index:
                same = (agreement.loc[method, "jaccard"], agreement.loc[method, "reconstruction"])
            numbers = [f"{row['breaking_rate']:.1%}", f"{row['probability_drop']:.3f}"]
            rows.append([sae.name, str(method), str(row["n_prompts"]), *numbers, *map(_text, same)])
    return Table(
        f"Without the {features} largest features",
        ["SAE", "method", "prompts", "breaking rate", "prob drop", "Jacc", "recon"],
        rows,
    )


def _breaking_table(saes: Saes, settings: RecodeSettings) -> Table:
    """Table 8."""
    sizes = settings.ablation_k
    rows: list[list[str]] = []
    for sae in saes:
        if sae.ablation is not None:
            rates = sae.ablation.pivot(index="method", columns="features", values="breaking_rate")
            rows += [
                [sae.name, str(method), *(f"{rates.loc[method, k]:.1%}" for k in sizes)]
                for method in sae.ablation["method"].unique()
            ]
    return Table("Breaking rate", ["SAE", "method", *(f"k = {k}" for k in sizes)], rows)


def robust_table(saes: Saes) -> Table:
    """How many features do not depend on the algorithm."""
    return Table(
        "Features that OMP and IHT pick too",
        [
            "SAE",
            "used",
            f"in {_AT_LEAST}+",
            f"robust ({_MANY:.0%})",
            "on a template",
            "robust by chance",
            "shared picks",
            "by chance",
        ],
        [
            [
                sae.name,
                str(len(sae.latents)),
                str(len(_often(sae))),
                str(n_robust(sae)),
                str(n_on_template(sae)),
                str(n_robust_by_chance(sae)),
                f"{shared_picks(sae.latents):.1%}",
                f"{shared_picks(sae.latents_by_chance):.1%}",
            ]
            for sae in saes
        ],
    )


def n_robust(sae: RecodedSAE) -> int:
    """Latents that all agreeing algorithms nearly always pick where the encoder does, of those that
    it uses often; those that fire on a template of prompts are left out."""
    return int((kind_of_latents(sae.latents) == "robust").sum())


def n_robust_by_chance(sae: RecodedSAE) -> int:
    """The same where the other algorithms coded another sample; of whatever template."""
    return int((kind_of_latents(sae.latents_by_chance) == "robust").sum())


def n_on_template(sae: RecodedSAE) -> int:
    """Latents that would be robust, and fire on a template rather than on what it says."""
    return int((kind_of_latents(sae.latents) == "on a template").sum())


KINDS = ("robust", "on a template", "not robust", "seldom used")


def kind_of_latents(latents: pd.DataFrame) -> pd.Series:
    """Of every latent that the encoder uses, which of `KINDS` it is."""
    robust = latents["picked_by_all"] >= _MANY
    kind = pd.Series("not robust", index=latents.index)
    kind[robust] = "robust"
    kind[robust & _on_template(latents)] = "on a template"
    kind[latents["n_encoder"] < _AT_LEAST] = "seldom used"
    return kind


def _on_template(latents: pd.DataFrame) -> pd.Series:
    if "on_template" not in latents:
        return pd.Series(False, index=latents.index)
    return latents["on_template"].astype(bool)


def shared_picks(latents: pd.DataFrame) -> float:
    """Share of the encoder's picks that all agreeing algorithms make too."""
    shared = (latents["picked_by_all"] * latents["n_encoder"]).sum()
    return float(shared / latents["n_encoder"].sum())


def robust_features(sae: RecodedSAE, n: int = 5) -> Table:
    """The features that the algorithms agree on most, of those that the encoder uses often; those
    that fire on a template of prompts are left out."""
    often = _off_template(sae).head(n)
    picked = sae.picks.pivot(index="latent", columns="method", values="picked")
    methods = [m for m in sae.picks["method"].unique() if "exclude" not in m]
    return Table(
        f"The most robust features of {sae.name}",
        ["latent", "samples", "magnitude", *methods, "all"],
        [
            [
                str(row["latent"]),
                str(row["n_encoder"]),
                f"{row['mean_magnitude']:.2f}",
                *(_text(picked.loc[row["latent"], method]) for method in methods),
                _text(row["picked_by_all"]),
            ]
            for row in often.to_dict(orient="records")
        ],
    )


def robust_prompts(sae: RecodedSAE, n: int = 5) -> Table:
    """The prompts on which these features are strongest; no rows where there are no prompts."""
    title, headers = f"What they fire on: {sae.name}", ("latent", "strongest on")
    if "prompts" not in sae.latents:
        return Table(title, headers, [], is_text=True)
    rows = [
        [str(row["latent"]), " | ".join(str(text) for text in row["prompts"])]
        for row in _off_template(sae).head(n).to_dict(orient="records")
    ]
    return Table(title, headers, rows, is_text=True)


def _often(sae: RecodedSAE) -> pd.DataFrame:
    return sae.latents.loc[sae.latents["n_encoder"] >= _AT_LEAST, :]


def _off_template(sae: RecodedSAE) -> pd.DataFrame:
    often = _often(sae)
    return often.loc[~_on_template(often), :]


def _cells(table: pd.DataFrame, methods: Sequence[Algorithm], columns: Sequence[str]) -> list[str]:
    by_method = table.set_index("method")
    return [
        _text(by_method.loc[method.name, column]) if method.name in by_method.index else "-"
        for method in methods
        for column in columns
    ]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, int) else f"{float(value):.2f}"
