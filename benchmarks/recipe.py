"""The log of the recipe: one change at a time, on the synthetic data of Table 1.

    python benchmarks/recipe.py                        # every trial that results/recipe.json lacks
    python benchmarks/recipe.py --trials "iid: base" "mixture: T = 3"
    python benchmarks/recipe.py --print

Every trial trains one SAE (seed 0) and compares it with the concepts: MSE, mean |cosine| after
matching, concepts below 0.9 ('lost'), and pairs of latents with |cosine| above 0.9 ('near pairs').
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from parallel import measure_missing
from provenance import provenance
from sae_lens import TrainingSAE
from sae_lens.synthetic import SyntheticModel
from synthetic_study import PAPER, SETTING, SIZES, against_truth, held_out_samples, train
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sae_lens_isae import ISAEMETrainingSAE
from sae_lens_isae.architectures.recipe import unit_norm_mse
from sae_lens_isae.architectures.schedule import SyntheticSchedule
from sae_lens_isae.synthetic import GENERATORS

Trial = dict[str, dict[str, Any]]
"""Changes of the SAE's settings, of the schedule's, and which variant and data."""


def trial(data: str, variant: str = "iSAE-ME", steps: int = 10_000, **changes: Any) -> Trial:
    """Fields of the schedule are told from those of the SAE by name, and two that are neither:
    `S_solves` starts S at I - W_dec W_enc, and `ema` is the decay of averaged weights, which are
    what is compared."""
    schedule = {"lr", "dead_feature_window", "whitened_share"}
    own = {"S_solves", "ema"}
    return {
        "run": {"variant": variant, "data": data, "steps": steps},
        "schedule": {k: v for k, v in changes.items() if k in schedule},
        "own": {k: v for k, v in changes.items() if k in own},
        "sae": {k: v for k, v in changes.items() if k not in schedule | own},
    }


CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "no whitening": {"whitened_share": 0.0},
    "half whitened": {"whitened_share": 0.5},
    "5k steps": {"steps": 5_000},
    "20k steps": {"steps": 20_000},
    "lr 5e-4": {"lr": 5e-4},
    "lr 2e-3": {"lr": 2e-3},
    "EMA 0.999": {"ema": 0.999},
    "EMA 0.99": {"ema": 0.99},
    "dead after 25 steps": {"dead_feature_window": 25},
    "dead after 1000 steps": {"dead_feature_window": 1000},
    "resample every 200": {"resample_every": 200},
    "no resampling": {"resample_until": 0},
    "no dead-latent loss": {"aux_loss_coefficient": 0.0},
    "neither": {"resample_until": 0, "aux_loss_coefficient": 0.0},
    "T = 1 for 3000 steps": {"encoder_warm_up_steps": 3000},
    "T = 3": {"encoder_steps": 3},
    "T = 7": {"encoder_steps": 7},
    "T = 10": {"encoder_steps": 10},
    "T = 10, T = 1 for 3000 steps": {"encoder_steps": 10, "encoder_warm_up_steps": 3000},
    "no aRIP": {"arip_weight": 0.0},
    "aRIP 0.001": {"arip_weight": 0.001},
    "aRIP 0.1": {"arip_weight": 0.1},
    "full S": {"step_matrix": "full"},
    "full S, no aRIP": {"step_matrix": "full", "arip_weight": 0.0},
    "full S, no resampling": {"step_matrix": "full", "resample_until": 0},
    "full S, no whitening": {"step_matrix": "full", "whitened_share": 0.0},
    "full S, started at I - W_dec W_enc": {"step_matrix": "full", "S_solves": True},
    "full S, T = 1 for 3000 steps": {"step_matrix": "full", "encoder_warm_up_steps": 3000},
    "TopK with five steps": {"activation": "topk"},
    "TopK": {"variant": "TopK"},
    "TopK, no whitening": {"variant": "TopK", "whitened_share": 0.0},
    "TopK, half whitened": {"variant": "TopK", "whitened_share": 0.5},
    "TopK, lr 5e-4": {"variant": "TopK", "lr": 5e-4},
    "TopK, lr 2e-3": {"variant": "TopK", "lr": 2e-3},
    "TopK, no resampling": {"variant": "TopK", "resample_until": 0},
    "TopK, no dead-latent loss": {"variant": "TopK", "aux_loss_coefficient": 0.0},
    "AbsTopK": {"variant": "AbsTopK"},
    "AbsTopK, no whitening": {"variant": "AbsTopK", "whitened_share": 0.0},
    "AbsTopK, no resampling": {"variant": "AbsTopK", "resample_until": 0},
    "iSAE": {"variant": "iSAE"},
    "iSAE, aRIP 0.1": {"variant": "iSAE", "arip_weight": 0.1},
}
TRIALS: dict[str, Trial] = {
    f"{data}: {name}": trial(data, **changes) for name, changes in CHANGES.items() for data in PAPER
}


class Own:
    """What a trial does to an SAE that no setting does."""

    def __init__(self, S_solves: bool = False, ema: float | None = None) -> None:
        self._S_solves, self._ema = S_solves, ema
        self._averaged: AveragedModel | None = None

    @torch.no_grad()
    def before_training(self, sae: TrainingSAE[Any]) -> None:
        """Set S, or begin to average the weights."""
        if self._S_solves:
            identity = torch.eye(sae.cfg.d_sae, device=sae.W_dec.device)
            cast(ISAEMETrainingSAE, sae).S.copy_(identity - sae.W_dec @ sae.W_enc)
        if self._ema is not None:
            averaged = AveragedModel(sae, multi_avg_fn=get_ema_multi_avg_fn(self._ema))

            def after_step(*_: Any) -> None:
                # weights for whitened activations have no part in the average: it starts after them
                if sae.cfg.normalize_activations == "none":
                    averaged.update_parameters(sae)

            register_optimizer_step_post_hook(after_step)
            self._averaged = averaged

    @torch.no_grad()
    def after_training(self, sae: TrainingSAE[Any]) -> None:
        """Put the averages in the places of the weights."""
        if self._averaged is not None:
            averages = self._averaged.module.parameters()
            for weight, average in zip(sae.parameters(), averages, strict=True):
                weight.copy_(average)


def run_trial(name: str, device: str) -> dict[str, Any]:
    """Train, and compare with the concepts."""
    chosen = TRIALS[name]
    data = GENERATORS[chosen["run"]["data"]](**SIZES, device=device)
    own = Own(**chosen["own"])
    schedule = SyntheticSchedule(chosen["run"]["steps"], **chosen["schedule"])
    start = time.perf_counter()
    sae = train(data, chosen["run"]["variant"], 0, schedule, chosen["sae"], own.before_training)
    seconds = time.perf_counter() - start
    own.after_training(sae)
    return {
        "trial": name,
        **chosen["run"],
        "changes": {**chosen["sae"], **chosen["schedule"], **chosen["own"]},
        **measure(sae.eval(), data),
        "seconds": seconds,
        "made": provenance(),
    }


@torch.no_grad()
def measure(sae: TrainingSAE[Any], data: SyntheticModel) -> dict[str, float]:
    """Reconstruction, and how the atoms lie to the concepts and to each other."""
    x = held_out_samples(data)
    atoms = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    near_pairs = ((atoms @ atoms.T).abs() > 0.9).sum() - len(atoms)
    return {
        "mse": unit_norm_mse(sae(x), x).item(),
        **against_truth(sae, data),
        "near_pairs": int(near_pairs) // 2,
    }


def print_log(rows: list[dict[str, Any]]) -> None:
    """The log as a table."""
    print("| trial | steps | MSE | DCS to truth | lost | near pairs |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        mse = f"{r['mse']:.5f}" if r["mse"] < 10 else f"{r['mse']:.1e}"
        found = f"{mse} | {r['dcs_to_truth']:.4f} | {r['lost']} | {r['near_pairs']}"
        print(f"| {r['trial']} | {r['steps']} | {found} |")


def main() -> None:
    """What is missing, several at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="TRIAL"
    )
    parser.add_argument("--data", nargs="+", choices=list(PAPER), default=list(PAPER))
    parser.add_argument("--jobs", type=int, default=3 * max(torch.cuda.device_count(), 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--print", action="store_true", help="print the log and stop")
    parser.add_argument("--one", nargs=2, metavar=("TRIAL", "FILE"))
    args = parser.parse_args()
    if args.one:
        Path(args.one[1]).write_text(json.dumps(run_trial(args.one[0], args.device)))
        return
    chosen = [name for name in args.trials if TRIALS[name]["run"]["data"] in args.data]
    wanted = [] if args.print else chosen
    rows = measure_missing("recipe", "trial", wanted, SETTING, args.jobs, order=list(TRIALS))
    print_log(rows)


if __name__ == "__main__":
    main()
