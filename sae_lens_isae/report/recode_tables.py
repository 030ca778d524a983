"""The tables of paper 4, for the terminal and the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sae_lens_isae.recoding.algorithms import ENCODER, GD, IHT, OMP, OMP_EXCLUDE
from sae_lens_isae.recoding.results import RecodedSAE, RecodingReport
from sae_lens_isae.report.tables import Table

_SHORT = {ENCODER: "Enc", OMP: "OMP", IHT: "IHT", GD: "GD"}
_MEASURES = {"jaccard": "Jacc", "r2": "R2", "cosine": "Cos", "cca": "CCA", "procrustes": "Proc"}
_AT_LEAST = 5
_MANY = 0.9


def recode_tables(report: RecodingReport) -> list[Table]:
    """All tables of the study, those without rows left out."""
    found = [
        _reconstruction_table(report),
        _agreement_table(report),
        methods_table(report),
        _reach_table(report),
        _exclusion_table(report),
        _noise_table(report),
        _decoder_table(report),
        _decoder_pair_table(report),
        ablation_table(report),
        _breaking_table(report),
        robust_table(report),
    ]
    return [table for table in found if table.rows]


def _reconstruction_table(report: RecodingReport) -> Table:
    """Paper 4, Table 1."""
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
            for sae in report.saes
        ],
    )


def _agreement_table(report: RecodingReport) -> Table:
    """Paper 4, Table 2."""
    methods = (OMP, IHT, GD)
    return Table(
        "Agreement with the encoder",
        ["SAE", *(f"{_SHORT[m]} {name}" for m in methods for name in _MEASURES.values())],
        [[sae.name, *_cells(sae.agreement, methods, list(_MEASURES))] for sae in report.saes],
    )


def methods_table(report: RecodingReport) -> Table:
    """Every method, a row each."""
    columns = {"reconstruction": "recon", **_MEASURES}
    return _by_method("All methods", report, columns)


def _reach_table(report: RecodingReport) -> Table:
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
    return _by_method("How far these numbers carry", report, columns)


def _by_method(title: str, report: RecodingReport, columns: Mapping[str, str]) -> Table:
    return Table(
        title,
        ["SAE", "method", *columns.values()],
        [
            [sae.name, str(row["method"]), *(_text(row[c]) for c in columns)]
            for sae in report.saes
            for row in sae.agreement.to_dict(orient="records")
        ],
    )


def _exclusion_table(report: RecodingReport) -> Table:
    """Paper 4, Table 3."""
    methods = [OMP, *(f"{OMP_EXCLUDE}{n}" for n in report.settings.exclude)]
    return Table(
        "OMP without the encoder's largest features",
        ["SAE", "OMP", *_MEASURES.values(), "recon"],
        [
            [
                sae.name,
                "free" if method == OMP else f"without {method.removeprefix(OMP_EXCLUDE)}",
                *_cells(sae.agreement, [method], [*_MEASURES, "reconstruction"]),
            ]
            for sae in report.saes
            for method in methods
        ],
    )


def _noise_table(report: RecodingReport) -> Table:
    """Paper 4, Table 4."""
    methods = (ENCODER, OMP, IHT, GD)
    return Table(
        "Overlap with the code of the clean activation, under noise",
        ["SAE", "sigma", *(_SHORT[m] for m in methods)],
        [
            [sae.name, f"{sigma:g}", *_cells(at, methods, ["jaccard"])]
            for sae in report.saes
            for sigma, at in sae.noise.groupby("sigma")
        ],
    )


def _decoder_table(report: RecodingReport) -> Table:
    """Paper 4, Table 5."""
    methods = (ENCODER, OMP, IHT, GD)
    return Table(
        "Cosine of refitted atoms to the SAE's own",
        ["SAE", "k", *(_SHORT[m] for m in methods)],
        [
            [sae.name, str(k), *_cells(at, methods, ["cosine"])]
            for sae in report.saes
            for k, at in sae.decoders.groupby("k")
        ],
    )


def _decoder_pair_table(report: RecodingReport) -> Table:
    """Paper 4, Table 6."""
    pairs = list(itertools.combinations((ENCODER, OMP, IHT, GD), 2))
    rows: list[list[str]] = []
    for sae in report.saes:
        mean = sae.decoder_pairs.astype({"cosine": float}).groupby(["method", "other"])["cosine"]
        found = mean.mean().to_dict()
        rows.append([sae.name, *(_text(found.get(pair)) for pair in pairs)])
    return Table(
        "Cosine of atoms refitted to two methods' codes, shared latents, mean over k",
        ["SAE", *(f"{_SHORT[a]}-{_SHORT[b]}" for a, b in pairs)],
        rows if any(len(sae.decoder_pairs) for sae in report.saes) else [],
    )


def ablation_table(report: RecodingReport, features: int = 5) -> Table:
    """Paper 4, Table 7."""
    rows: list[list[str]] = []
    for sae in report.saes:
        if sae.ablation is None:
            continue
        agreement = sae.agreement.set_index("method")
        at = sae.ablation.loc[sae.ablation["features"] == features]
        for row in at.to_dict(orient="records"):
            method = row["method"]
            same = (1.0, 1.0)
            if method != ENCODER:
                same = (agreement.loc[method, "jaccard"], agreement.loc[method, "reconstruction"])
            numbers = [f"{row['breaking_rate']:.1%}", f"{row['probability_drop']:.3f}"]
            rows.append([sae.name, str(method), str(row["n_prompts"]), *numbers, *map(_text, same)])
    return Table(
        f"Without the {features} largest features",
        ["SAE", "method", "prompts", "breaking rate", "prob drop", "Jacc", "recon"],
        rows,
    )


def _breaking_table(report: RecodingReport) -> Table:
    """Paper 4, Table 8."""
    sizes = report.settings.ablation_k
    rows: list[list[str]] = []
    for sae in report.saes:
        if sae.ablation is not None:
            rates = sae.ablation.pivot(index="method", columns="features", values="breaking_rate")
            rows += [
                [sae.name, str(method), *(f"{rates.loc[method, k]:.1%}" for k in sizes)]
                for method in sae.ablation["method"].unique()
            ]
    return Table("Breaking rate", ["SAE", "method", *(f"k = {k}" for k in sizes)], rows)


def robust_table(report: RecodingReport) -> Table:
    """How many features do not depend on the algorithm."""
    rows: list[list[str]] = []
    for sae in report.saes:
        often = sae.latents[sae.latents["n_encoder"] >= _AT_LEAST]
        trusted = often[often["picked_by_all"] >= _MANY]
        everywhere = float((sae.latents["picked_by_all"] * sae.latents["n_encoder"]).sum())
        rows.append(
            [
                sae.name,
                str(len(sae.latents)),
                str(len(often)),
                str(len(trusted)),
                f"{everywhere / sae.latents['n_encoder'].sum():.1%}",
            ]
        )
    return Table(
        "Features that OMP and IHT pick too",
        ["SAE", "used", f"in {_AT_LEAST}+", f"robust ({_MANY:.0%})", "shared picks"],
        rows,
    )


def robust_features(sae: RecodedSAE, n: int = 20) -> Table:
    """The features that the algorithms agree on most, of those that the encoder uses often."""
    often = sae.latents.loc[sae.latents["n_encoder"] >= _AT_LEAST].head(n)
    columns = [c for c in sae.latents.columns if c.startswith("picked_") and OMP_EXCLUDE not in c]
    return Table(
        f"The most robust features of {sae.name}",
        ["latent", "samples", "magnitude", *(c.removeprefix("picked_") for c in columns)],
        [
            [
                str(row["latent"]),
                str(row["n_encoder"]),
                f"{row['mean_magnitude']:.2f}",
                *(_text(row[c]) for c in columns),
            ]
            for row in often.to_dict(orient="records")
        ],
    )


def _cells(table: pd.DataFrame, methods: Sequence[str], columns: Sequence[str]) -> list[str]:
    by_method = table.set_index("method")
    return [
        _text(by_method.loc[method, column]) if method in by_method.index else "-"
        for method in methods
        for column in columns
    ]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, int) else f"{float(value):.2f}"
