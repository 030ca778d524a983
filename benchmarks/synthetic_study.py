"""Training and comparing SAEs at the size of Nelson et al. 2026's synthetic study; measures nothing
itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from statistics import stdev
from typing import Any

import torch
from sae_lens import SAE, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import SyntheticModel
from sae_lens.synthetic.training import SyntheticActivationIterator

from sae_lens_isae.architectures.schedule import SyntheticSchedule
from sae_lens_isae.architectures.variants import paper_variants
from sae_lens_isae.identifiability import match_dictionaries, pairwise_identifiability
from sae_lens_isae.training.seeds import seeded_sae

D_IN, D_SAE, K, BATCH = 768, 4096, 40, 2048
SIZES = {"num_features": D_SAE, "hidden_dim": D_IN, "k": K}
SETTING = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "batch": BATCH}
COLUMNS = ("mse", "r_arip", "sae_iou", "sae_l2", "oracle_iou", "oracle_l2", "dcs")
PAPER = {
    "iid": {
        "TopK": (0.447, 0.098, 0.113, 0.882, 0.172, 0.786, 0.606),
        "AbsTopK": (0.318, 0.106, 0.487, 0.557, 0.914, 0.176, 0.935),
        "iSAE": (0.318, 0.101, 0.487, 0.558, 0.913, 0.177, 0.933),
        "iSAE-ME": (0.001, 0.102, 0.997, 0.020, 0.997, 0.012, 0.999),
    },
    "mixture": {
        "TopK": (0.357, 0.120, 0.149, 0.840, 0.250, 0.758, 0.633),
        "AbsTopK": (0.303, 0.229, 0.393, 0.637, 0.675, 0.427, 0.804),
        "iSAE": (0.319, 0.095, 0.497, 0.526, 0.706, 0.389, 0.843),
        "iSAE-ME": (0.040, 0.230, 0.873, 0.219, 0.877, 0.215, 0.932),
    },
}
"""The columns of Table 1 in the paper."""
L2_COLUMNS = ("sae_l2", "oracle_l2")
"""Distances over the mean norm; the paper's are on a scale smaller by sqrt(2)."""
RECIPES = {
    "ours": "whitened activations for four fifths of the steps, dead and duplicate latents placed "
    "anew for seven tenths, learning rate 1e-3, aRIP 0.01, tied S",
    "paper": "activations as they come, no latent placed anew, learning rate 4e-4 (the paper names "
    "none), aRIP 0.1, full S",
}
_CHUNK = 8
"""Batches that are drawn at once, which costs the host a fraction of drawing them singly."""
_HELD_OUT_SEED = 2**31 - 1
_N_HELD_OUT = 8192


def train(
    data: SyntheticModel,
    variant: str,
    seed: int,
    schedule: SyntheticSchedule,
    sae_changes: Mapping[str, Any] | None = None,
    prepare: Callable[[TrainingSAE[Any]], None] | None = None,
) -> TrainingSAE[Any]:
    """One SAE through SAELens' trainer, in TF32.

    Args:
        sae_changes: Settings of the SAE that differ from the recipe.
        prepare: Called with the SAE before it is trained.
    """
    torch.set_float32_matmul_precision("high")
    cfg = paper_variants(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        device=data.device,
        **schedule.sae_settings(),
    )[variant]
    # the seed decides initial weights and, from here on, the stream of samples
    sae = seeded_sae(replace(cfg, **(sae_changes or {})), seed)
    if prepare is not None:
        prepare(sae)
    chunks = SyntheticActivationIterator(
        data.feature_dict, data.activation_generator, _CHUNK * BATCH
    )
    batches = chain.from_iterable(chunk.split(BATCH) for chunk in chunks)
    for phase in schedule.phases():
        trainer_cfg = SAETrainerConfig(
            total_training_samples=phase.n_steps * BATCH,
            train_batch_size_samples=BATCH,
            device=data.device,
            **phase.trainer_settings,
        )
        SAETrainer(trainer_cfg, sae, batches).fit()
    return sae


def recipe(name: str, variant: str, n_steps: int) -> tuple[SyntheticSchedule, dict[str, Any]]:
    """Schedule and changes of the SAE's settings of one of `RECIPES`."""
    if name == "ours":
        return SyntheticSchedule(n_steps), {}
    schedule = SyntheticSchedule(
        n_steps, 4e-4, dead_feature_window=100, arip_weight=0.1, whitened_share=0, resample=False
    )
    return schedule, {"step_matrix": "full"} if variant == "iSAE-ME" else {}


@torch.no_grad()
def held_out_samples(data: SyntheticModel) -> torch.Tensor:
    """Samples that no SAE was trained on."""
    torch.manual_seed(_HELD_OUT_SEED)
    return data.sample(_N_HELD_OUT)


def against_truth(sae: SAE[Any], data: SyntheticModel) -> dict[str, float]:
    """How much of the concepts one SAE has found; below a |cosine| of 0.9 one counts as lost."""
    match = match_dictionaries(sae.W_dec, data.feature_dict.feature_vectors)
    return {"dcs_to_truth": match.dcs, "lost": int((match.cosine.abs() < 0.9).sum())}


def compare(variant: str, saes: Mapping[str, SAE[Any]], data: SyntheticModel) -> dict[str, Any]:
    """A row of Table 1, its spread, and each seed against the truth."""
    report = pairwise_identifiability(saes, held_out_samples(data))
    columns = {
        "mse": [sae.mse for sae in report.saes],
        "r_arip": [sae.r_arip for sae in report.saes],
        "sae_iou": [pair.sae.iou.value for pair in report.pairs],
        "sae_l2": [pair.sae.l2.value for pair in report.pairs],
        "oracle_iou": [pair.oracle.iou.value for pair in report.pairs if pair.oracle],
        "oracle_l2": [pair.oracle.l2.value for pair in report.pairs if pair.oracle],
        "dcs": [pair.dcs for pair in report.pairs],
    }
    return {
        **report.table1_row(variant).to_dict(),
        "each": columns,
        "spread": {name: stdev(v) if len(v) > 1 else 0.0 for name, v in columns.items()},
        "n_dead": [sae.n_dead for sae in report.saes],
        "truth": [against_truth(sae, data) for sae in saes.values()],
    }


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Ours with the spread over seeds (first two columns) or pairs, and the paper's below it."""
    lines = [
        "| data | variant | | MSE | R | IoU | l2/√2 | oracle IoU | oracle l2/√2 | DCS |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells: list[str] = []
        for column in COLUMNS:
            scale = 2**-0.5 if column in L2_COLUMNS else 1
            cells.append(f"{scale * row[column]:.4f} ± {scale * row['spread'][column]:.4f}")
        paper = " | ".join(f"{value:.3f}" for value in PAPER[row["data"]][row["variant"]])
        who = "ours" if row.get("recipe", "ours") == "ours" else "the paper's recipe, here"
        lines.append(f"| {row['data']} | {row['variant']} | {who} | {' | '.join(cells)} |")
        lines.append(f"| | | paper | {paper} |")
    lines += ["", *(f"{name}: {text}." for name, text in RECIPES.items())]
    return lines
