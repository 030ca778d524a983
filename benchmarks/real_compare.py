"""What a table says of the SAEs of one cell."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE

from sae_lens_isae import LinearSAE, PairwiseReport, pairwise_identifiability, refit
from sae_lens_isae.identifiability.code_agreement import CodeComparison
from sae_lens_isae.identifiability.latents import cosine_by_firing_rate

N_ORACLE = 1024


def compare(
    saes: Mapping[str, SAE[Any]],
    x: Float[torch.Tensor, "tokens d_in"],
    whole: Float[torch.Tensor, "tokens d_in"],
) -> dict[str, Any]:
    """The columns of Table 2, and what they become after least squares on the same supports.

    Args:
        x: What the SAEs see of held-out activations.
        whole: These activations; errors are relative to them.
    """
    torch.set_float32_matmul_precision("highest")
    report = pairwise_identifiability(
        saes, x, n_oracle_samples=N_ORACLE, chance=False, progress=False
    )
    row = columns(report)
    if x is not whole:
        row["mse"] = mean(error(LinearSAE(sae), x, whole) for sae in saes.values())
    if not next(iter(saes.values())).cfg.architecture().endswith("_ls"):
        row["refit"] = after_refit(saes, report, x, whole)
    return row


@torch.no_grad()
def error(linear: LinearSAE, x: torch.Tensor, whole: torch.Tensor) -> float:
    """The mean over tokens of |x - x'|^2 / |whole|^2."""
    errors: list[float] = []
    for seen, token in zip(x.split(1024), whole.split(1024), strict=True):
        code = linear.encode(seen)
        rest = seen.to(code.codes.device) - linear.decode(code.codes, code.offset)
        errors += (rest.square().sum(-1) / token.to(rest).square().sum(-1)).tolist()
    return mean(errors)


@torch.no_grad()
def after_refit(
    saes: Mapping[str, SAE[Any]], report: PairwiseReport, x: torch.Tensor, whole: torch.Tensor
) -> dict[str, float]:
    """Error and agreement with coefficients by least squares; the dictionaries stay matched."""
    linear = {name: LinearSAE(refit(sae)) for name, sae in saes.items()}
    comparisons = {(pair.a, pair.b): CodeComparison(pair.match) for pair in report.pairs}
    for batch in x.split(1024):
        codes = {name: sae.encode(batch).codes for name, sae in linear.items()}
        for (a, b), comparison in comparisons.items():
            comparison.add(codes[a], codes[b])
    found = [comparison.agreement(np.random.default_rng(0)) for comparison in comparisons.values()]
    return {
        "mse": mean(error(sae, x, whole) for sae in linear.values()),
        "sae_iou": mean(each.iou.value for each in found if each),
        "sae_l2": mean(each.l2.value for each in found if each),
    }


def columns(report: PairwiseReport) -> dict[str, Any]:
    """A row of Table 2."""
    latents = report.latents
    return {
        **report.table1_row("").to_dict(),
        "found": float((latents["min_cosine"] >= report.found_cosine).mean()),
        "cosine_by_firing_rate": [round(value, 4) for value in cosine_by_firing_rate(latents)],
        "n_dead": [sae.n_dead for sae in report.saes],
        "d_sae": [sae.d_sae for sae in report.saes],
        "each": {
            "mse": [sae.mse for sae in report.saes],
            "dcs": [pair.dcs for pair in report.pairs],
            "sae_iou": [pair.sae.iou.value for pair in report.pairs],
            "sae_l2": [pair.sae.l2.value for pair in report.pairs],
        },
    }
