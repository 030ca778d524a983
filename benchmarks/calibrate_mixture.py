"""The parameters of the mixture, which the paper does not give: AbsTopK's row of Table 1 decides.

    python benchmarks/calibrate_mixture.py [--clusters 64 96 128 160]

The paper says 'a mixture of Gaussians projected onto the unit sphere'. With equal isotropic
components two numbers are free: how many there are, and the cosine of two atoms of one of them. The
paper's R_aRIP of 0.229 is the mean of (2k - 1) cos^2 over pairs of atoms, which fixes
cosine^2 / clusters; what is left is how many. The candidate is taken whose AbsTopK comes nearest to
the paper's in MSE, R_aRIP, DCS and the oracle's IoU: by the mean of |log(ours / paper)|.

AbsTopK is trained as before anything of the recipe was tuned: the dead-latent loss alone, a latent
dead after 10 steps without firing, learning rate 1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from parallel import measure_missing
from provenance import provenance
from sae_lens.synthetic import SyntheticModel
from synthetic_study import COLUMNS, D_IN, PAPER, SETTING, SIZES, K, compare, train

from sae_lens_isae.synthetic import mixture_synthetic_model, signed_synthetic_model

SEEDS = (0, 1)
JUDGED_BY = ("mse", "r_arip", "dcs", "oracle_iou")


def similarity_for(n_clusters: int) -> float:
    """The cosine within a cluster that gives the paper's R_aRIP: 1 pair in n_clusters is in one."""
    r_arip = PAPER["mixture"]["AbsTopK"][COLUMNS.index("r_arip")]
    return ((r_arip / (2 * K - 1) - 1 / D_IN) * n_clusters) ** 0.5


def distance(row: dict[str, Any]) -> float:
    """Of a candidate's row from the paper's."""
    paper = dict(zip(COLUMNS, PAPER["mixture"]["AbsTopK"], strict=True))
    return fmean(abs(math.log(row[name] / paper[name])) for name in JUDGED_BY)


def data_with(n_clusters: int, device: str) -> SyntheticModel:
    """The mixture, or for 0 clusters the i.i.d. data."""
    if n_clusters == 0:
        return signed_synthetic_model(**SIZES, device=device)
    similarity = similarity_for(n_clusters)
    return mixture_synthetic_model(
        **SIZES, n_clusters=n_clusters, similarity=similarity, device=device
    )


def measure(n_clusters: int, n_steps: int, device: str) -> dict[str, Any]:
    """AbsTopK's row on one candidate."""
    data = data_with(n_clusters, device)
    saes = {
        str(seed): train(
            data, "AbsTopK", seed, n_steps, {"resample_until": 0}, {"dead_feature_window": 10}
        ).eval()
        for seed in SEEDS
    }
    similarity = similarity_for(n_clusters) if n_clusters else None
    row = compare("AbsTopK", saes, data)
    return {"clusters": n_clusters, "similarity": similarity, **row, "made": provenance()}


def main() -> None:
    """All candidates, several at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clusters", type=int, nargs="+", default=[0, 64, 96, 128, 160, 192, 256], help="0: i.i.d."
    )
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--jobs", type=int, default=3 * max(torch.cuda.device_count(), 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=2, metavar=("CLUSTERS", "FILE"))
    args = parser.parse_args()
    if args.one:
        n_clusters, file = args.one
        Path(file).write_text(json.dumps(measure(int(n_clusters), args.steps, args.device)))
        return
    rows = measure_missing(
        "calibrate_mixture",
        "clusters",
        args.clusters,
        {**SETTING, "steps": args.steps},
        args.jobs,
        order=range(SIZES["num_features"]),
    )
    print("| clusters | cosine | " + " | ".join(COLUMNS) + " | distance |")
    for name, clusters in (("iid", 0), ("mixture", "?")):
        paper = " | ".join(f"{value:.3f}" for value in PAPER[name]["AbsTopK"])
        print(f"| paper, {name} ({clusters}) | | {paper} | |")
    for row in rows:
        found = " | ".join(f"{row[c]:.3f}" for c in COLUMNS)
        print(
            f"| {row['clusters']} | {row['similarity'] or 0:.3f} | {found} | {distance(row):.3f} |"
        )


if __name__ == "__main__":
    main()
