"""The log of the recipe: one change at a time, on the synthetic data of Table 1.

    python benchmarks/recipe.py                        # every trial that results/recipe.json lacks
    python benchmarks/recipe.py --trials base "T 3"    # some of them
    python benchmarks/recipe.py --print

Every trial trains one SAE (seed 0) and compares it with the concepts: MSE, mean |cosine| after
matching, concepts below 0.9 ('lost'), and pairs of latents with |cosine| above 0.9 ('twins').
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
from synthetic_study import SETTING, SIZES, against_truth, held_out_samples, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sae_lens_isae import ISAEMETrainingSAE
from sae_lens_isae.architectures.recipe import unit_norm_mse
from sae_lens_isae.synthetic import GENERATORS

Trial = dict[str, dict[str, Any]]
"""Changes of the SAE's settings, of the trainer's, and which variant and data."""


def trial(
    variant: str = "iSAE-ME", data: str = "iid", steps: int = 10_000, **changes: Any
) -> Trial:
    """Fields of SAELens' trainer are told from those of the SAE by name, and two that are neither:
    `S_solves_from`, the step before which S is set to I - W_dec W_enc, and `ema`, the decay of
    averaged weights, which are what is compared."""
    trainer = {"lr", "lr_end", "lr_decay_steps", "lr_warm_up_steps", "dead_feature_window"}
    own = {"S_solves_from", "ema"}
    return {
        "run": {"variant": variant, "data": data, "steps": steps},
        "trainer": {k: v for k, v in changes.items() if k in trainer},
        "own": {k: v for k, v in changes.items() if k in own},
        "sae": {k: v for k, v in changes.items() if k not in trainer | own},
    }


TRIALS: dict[str, Trial] = {
    "base": trial(),
    "base, 20k steps": trial(steps=20_000),
    "lr 5e-4": trial(lr=5e-4),
    "lr 2e-3": trial(lr=2e-3),
    "no decay of lr": trial(lr_end=1e-3, lr_decay_steps=0),
    "no decay of lr, EMA 0.999": trial(lr_end=1e-3, lr_decay_steps=0, ema=0.999),
    "EMA 0.99": trial(ema=0.99),
    "dead after 25 steps": trial(dead_feature_window=25),
    "dead after 1000 steps": trial(dead_feature_window=1000),
    "resample every 200": trial(resample_every=200),
    "no resampling": trial(resample_until=0),
    "no dead-latent loss": trial(aux_loss_coefficient=0.0),
    "neither": trial(resample_until=0, aux_loss_coefficient=0.0),
    "T = 1 for 300 steps": trial(encoder_warm_up_steps=300),
    "T = 1 for 3000 steps": trial(encoder_warm_up_steps=3000),
    "T = 3": trial(encoder_steps=3),
    "T = 10": trial(encoder_steps=10),
    "no aRIP": trial(arip_weight=0.0),
    "aRIP 0.01": trial(arip_weight=0.01),
    "full S": trial(step_matrix="full"),
    "full S, no aRIP": trial(step_matrix="full", arip_weight=0.0),
    "full S, started at I - W_dec W_enc": trial(step_matrix="full", S_solves_from=0),
    "full S, T = 1 for 3000 steps": trial(step_matrix="full", encoder_warm_up_steps=3000),
    "full S, T = 1 for 3000 steps, then I - W_dec W_enc": trial(
        step_matrix="full", encoder_warm_up_steps=3000, S_solves_from=3000
    ),
    "TopK with five steps": trial(activation="topk"),
    "TopK": trial("TopK"),
    "AbsTopK": trial("AbsTopK"),
    "AbsTopK, 20k steps": trial("AbsTopK", steps=20_000),
    "AbsTopK, no resampling": trial("AbsTopK", resample_until=0),
    "mixture": trial(data="mixture"),
    "mixture, 20k steps": trial(data="mixture", steps=20_000),
    "mixture, T = 10": trial(data="mixture", encoder_steps=10),
    "mixture, no aRIP": trial(data="mixture", arip_weight=0.0),
    "mixture, full S": trial(data="mixture", step_matrix="full"),
    "mixture, full S, 20k steps": trial(data="mixture", step_matrix="full", steps=20_000),
    "mixture, full S, T = 10": trial(data="mixture", step_matrix="full", encoder_steps=10),
    "mixture, full S, no aRIP": trial(data="mixture", step_matrix="full", arip_weight=0.0),
    "mixture, full S, aRIP 0.01": trial(data="mixture", step_matrix="full", arip_weight=0.01),
    "mixture, full S, lr 5e-4": trial(data="mixture", step_matrix="full", lr=5e-4),
    "mixture, full S, lr 2e-3": trial(data="mixture", step_matrix="full", lr=2e-3),
    "mixture, full S, no resampling": trial(data="mixture", step_matrix="full", resample_until=0),
    "mixture, full S, T = 1 for 3000 steps": trial(
        data="mixture", step_matrix="full", encoder_warm_up_steps=3000
    ),
    "mixture, full S, started at I - W_dec W_enc": trial(
        data="mixture", step_matrix="full", S_solves_from=0
    ),
    "mixture, TopK": trial("TopK", data="mixture"),
    "mixture, AbsTopK": trial("AbsTopK", data="mixture"),
    "mixture, AbsTopK, 20k steps": trial("AbsTopK", data="mixture", steps=20_000),
    "mixture, AbsTopK, no resampling": trial("AbsTopK", data="mixture", resample_until=0),
    "mixture, iSAE": trial("iSAE", data="mixture"),
}


class Tracked:
    """What a trial does to an SAE between steps."""

    def __init__(
        self,
        data: SyntheticModel,
        n_steps: int,
        S_solves_from: int | None = None,
        ema: float | None = None,
    ) -> None:
        self._concepts = data.feature_dict.feature_vectors
        self._every = n_steps // 10
        self._S_solves_from, self._ema = S_solves_from, ema
        self.course: list[int] = []
        """Concepts without an atom near them, after each tenth of the run."""
        self._averaged: AveragedModel | None = None

    @torch.no_grad()
    def before_step(self, sae: TrainingSAE[Any], step: int) -> None:
        if step == self._S_solves_from:
            identity = torch.eye(sae.cfg.d_sae, device=sae.W_dec.device)
            cast(ISAEMETrainingSAE, sae).S.copy_(identity - sae.W_dec @ sae.W_enc)
        if step and step % self._every == 0:
            atoms = torch.nn.functional.normalize(sae.W_dec, dim=-1)
            nearest = (atoms @ self._concepts.T).abs().amax(0)
            self.course.append(int((nearest < 0.9).sum()))
        if self._ema is not None:
            if self._averaged is None:
                average = get_ema_multi_avg_fn(self._ema)
                self._averaged = AveragedModel(sae, multi_avg_fn=average)
            self._averaged.update_parameters(sae)

    def compared(self, sae: TrainingSAE[Any]) -> TrainingSAE[Any]:
        """The averaged weights if there are any."""
        return sae if self._averaged is None else cast(TrainingSAE[Any], self._averaged.module)


@torch.no_grad()
def run_trial(name: str, device: str) -> dict[str, Any]:
    """Train, and compare with the concepts."""
    chosen = TRIALS[name]
    variant, steps = chosen["run"]["variant"], chosen["run"]["steps"]
    data = GENERATORS[chosen["run"]["data"]](**SIZES, device=device)
    start = time.perf_counter()
    tracked = Tracked(data, steps, **chosen["own"])
    with torch.enable_grad():
        sae = train(data, variant, 0, steps, chosen["sae"], chosen["trainer"], tracked.before_step)
    sae = tracked.compared(sae).eval()
    seconds = time.perf_counter() - start
    x = held_out_samples(data)
    atoms = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    twins = ((atoms @ atoms.T).abs() > 0.9).sum() - len(atoms)
    return {
        "trial": name,
        **chosen["run"],
        "changes": {**chosen["sae"], **chosen["trainer"], **chosen["own"]},
        "mse": unit_norm_mse(sae(x), x).item(),
        **against_truth(sae, data),
        "twins": int(twins) // 2,
        "course": tracked.course,
        "seconds": seconds,
        "made": provenance(),
    }


def print_log(rows: list[dict[str, Any]]) -> None:
    """The log as a table."""
    print("| trial | data | steps | MSE | DCS to truth | lost | twins |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        found = f"{r['mse']:.5f} | {r['dcs_to_truth']:.4f} | {r['lost']} | {r['twins']}"
        print(f"| {r['trial']} | {r['data']} | {r['steps']} | {found} |")


def main() -> None:
    """What is missing, several at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS), metavar="TRIAL"
    )
    parser.add_argument("--data", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
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
