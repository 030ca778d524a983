"""Time and memory of one training step beside SAELens' own `topk` and `abstopk`.

    python benchmarks/train_step.py [--latents 4096 16384 65536] [--dead 0 0.05]

Every step is the whole of SAELens' `SAETrainer.step`: forward, backward, gradient clipping, Adam,
firing statistics; 2048 samples of 768 dimensions, k = 40, batches drawn beforehand. The contestants
of one size and precision take turns, and every ratio is taken within a turn. Two times are given:
`ms`, from step to step, which contains the host's work, and `gpu_ms`, in which the device was busy
(the profiler's sum over kernels), which is what remains on a faster host.

`floor_ms` counts what a step cannot do without: products with every latent (the encoder's, for each
of its T steps), the arithmetic of the k-sparse rest, and the bytes of parameters, moments,
gradients and pre-activations, each moved once, over the rates that a large product and a large copy
reached here.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise, repeat
from statistics import median
from typing import Any

import torch
from provenance import write_result
from sae_lens import (
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from torch.profiler import ProfilerActivity, profile

from sae_lens_isae import (
    ISAELSTrainingSAE,
    ISAELSTrainingSAEConfig,
    ISAEMETrainingSAE,
    ISAEMETrainingSAEConfig,
    ISAETrainingSAE,
    ISAETrainingSAEConfig,
)

D_IN, K, BATCH, T = 768, 40, 2048, 5
_WARM_UP = 12
"""Steps before the clock runs: kernels are compiled and a graph is captured in them."""

CONTESTANTS: dict[str, Callable[..., TrainingSAE[Any]]] = {
    "stock topk": lambda **s: TopKTrainingSAE(TopKTrainingSAEConfig(**s)),
    "stock abstopk": lambda **s: AbsTopKTrainingSAE(AbsTopKTrainingSAEConfig(**s)),
    "TopK": lambda **s: ISAETrainingSAE(
        ISAETrainingSAEConfig(activation="topk", arip_weight=0.0, **s)
    ),
    "AbsTopK": lambda **s: ISAETrainingSAE(ISAETrainingSAEConfig(arip_weight=0.0, **s)),
    "iSAE": lambda **s: ISAETrainingSAE(ISAETrainingSAEConfig(**s)),
    "iSAE-ME full": lambda **s: ISAEMETrainingSAE(
        ISAEMETrainingSAEConfig(step_matrix="full", encoder_steps=T, **s)
    ),
    "iSAE-ME tied": lambda **s: ISAEMETrainingSAE(
        ISAEMETrainingSAEConfig(step_matrix="tied", encoder_steps=T, **s)
    ),
    "iSAE-ME tied, m = 4": lambda **s: ISAEMETrainingSAE(
        ISAEMETrainingSAEConfig(step_matrix="tied", encoder_steps=T, candidates=4, **s)
    ),
    "iSAE-LS": lambda **s: ISAELSTrainingSAE(ISAELSTrainingSAEConfig(**s)),
    "iSAE-LS, m = 1.5": lambda **s: ISAELSTrainingSAE(ISAELSTrainingSAEConfig(candidates=1.5, **s)),
}
_FULL_UP_TO = 16_384
"""S with its moments and gradient has 16 d_sae^2 bytes: 69 GB at 65,536."""


_N_LONGEST, _NAME_LENGTH = 30, 160
"""Kernels that a row lists, and characters of their names: C++ templates have thousands."""


class Contestant:
    """One SAE in SAELens' trainer, stepped on batches that were drawn beforehand."""

    def __init__(self, name: str, latents: int, dead: float, autocast: bool) -> None:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        sae = CONTESTANTS[name](d_in=D_IN, d_sae=latents, k=K, device="cuda")
        cfg = SAETrainerConfig(
            total_training_samples=10**12,
            train_batch_size_samples=BATCH,
            lr=1e-4,
            lr_end=1e-4,
            autocast=autocast,
            device="cuda",
        )
        self.trainer = SAETrainer(cfg, sae, repeat(torch.zeros(0)))
        self.batches = [torch.randn(BATCH, D_IN, device="cuda") for _ in range(4)]
        self.dead = torch.arange(latents, device="cuda") < dead * latents
        for _ in range(_WARM_UP):
            self.step()
        torch.cuda.synchronize()
        self.peak_gb = (torch.cuda.max_memory_allocated() - before) / 1e9

    def step(self) -> None:
        """One step, with the first latents declared dead."""
        trainer = self.trainer
        trainer.n_forward_passes_since_fired.masked_fill_(self.dead, 1e9)
        trainer.step(self.batches[trainer.n_training_steps % len(self.batches)])
        trainer.n_training_steps += 1

    def time_steps(self, n_steps: int) -> float:
        """Median milliseconds from step to step."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self.step()
            mark.record()
        torch.cuda.synchronize()
        return median(a.elapsed_time(b) for a, b in pairwise(marks))

    def kernel_ms(self, n_steps: int = 5) -> dict[str, float]:
        """Milliseconds per step of every kernel and copy on the device, by name."""
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(n_steps):
                self.step()
            torch.cuda.synchronize()
        kernels = [
            e
            for e in trace.key_averages()
            # torch's range around an optimizer's step stands beside its kernels
            if e.device_type.name == "CUDA" and "Optimizer.step" not in e.key
        ]
        return {e.key: e.self_device_time_total / n_steps / 1e3 for e in kernels}


def measured_rates() -> dict[str, float]:
    """FLOP/s of a large product in TF32 and bfloat16, and bytes/s of a large copy."""

    def best_ms(function: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(10):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop))
        return min(times)

    n = 8192
    a, b = torch.randn(2, n, n, device="cuda")
    low_a, low_b = a.bfloat16(), b.bfloat16()
    big = torch.randn(2**28, device="cuda")
    out = torch.empty_like(big)
    return {
        "tf32_flops": 2 * n**3 / best_ms(lambda: a @ b) * 1e3,
        "bf16_flops": 2 * n**3 / best_ms(lambda: low_a @ low_b) * 1e3,
        "bytes": 2 * big.nbytes / best_ms(lambda: out.copy_(big)) * 1e3,
    }


def floor_ms(name: str, latents: int, autocast: bool, rates: dict[str, float]) -> float:
    """Least time of a step by operations or bytes, whichever is more."""
    tied, full, solved = (
        name.startswith(kind) for kind in ("iSAE-ME tied", "iSAE-ME full", "iSAE-LS")
    )
    candidates = {"iSAE-ME tied, m = 4": 4, "iSAE-LS, m = 1.5": 1.5}.get(name)
    arip = name.startswith("iSAE")
    encodes = T if tied and candidates is None else 1
    size = 2 if autocast else 4
    dense = encodes * 2 * BATCH * D_IN * latents
    # decoding, its two gradients and the encoder's: k rows each, for every encoder step
    sparse = encodes * 4 * 2 * BATCH * K * D_IN
    # aRIP: D_S n, its products with D_S, and the same backwards with two terms for the dictionary
    sparse += 5 * 2 * BATCH * 2 * K * D_IN if arip else 0
    if tied and candidates is not None:
        sparse += (T - 1) * 4 * BATCH * candidates * K * D_IN
    if solved:
        # the systems; what the encoder chose is decoded, too, with the gradient of that
        proposed = (candidates or 1) * K
        sparse += min(2 * latents**2, 2 * BATCH * proposed**2) * D_IN
        sparse += 2 * BATCH * proposed**2 * proposed + 2 * 2 * BATCH * K * D_IN
    n_parameters = 2 * latents * D_IN + D_IN
    if full:
        n_parameters += latents**2
        sparse += (T - 1) * 2 * BATCH * K * latents + (T - 1) * 4 * BATCH * K**2
    # Adam reads weight, gradient and moments and writes weight and moments; the gradient is written
    # once and read once more by the clipping
    moved = n_parameters * 4 * (7 + 2)
    # pre-activations are written and read; SAELens reads dense codes for its statistics
    steps = T if full or (tied and candidates is None) else 1
    moved += steps * 2 * BATCH * latents * size + 2 * BATCH * latents * 4
    flops = rates["bf16_flops" if autocast else "tf32_flops"]
    return 1e3 * max((dense + sparse) / flops, moved / rates["bytes"])


def compare(
    latents: int, dead: float, autocast: bool, turns: int, steps: int, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """All contestants of one size and precision, taking turns."""
    names = [n for n in CONTESTANTS if n != "iSAE-ME full" or latents <= _FULL_UP_TO]
    contestants = {name: Contestant(name, latents, dead, autocast) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, contestant in contestants.items():
            times[name].append(contestant.time_steps(steps))
    rows: list[dict[str, Any]] = []
    kernels = {name: contestant.kernel_ms() for name, contestant in contestants.items()}
    busy = {name: sum(ms.values()) for name, ms in kernels.items()}
    for name, contestant in contestants.items():
        ratios = sorted(a / b for a, b in zip(times[name], times["stock topk"], strict=True))
        rows.append(
            {
                "latents": latents,
                "dead": dead,
                "precision": "bf16" if autocast else "tf32",
                "name": name,
                "ms": median(times[name]),
                "ratio": median(ratios),
                "ratio_range": [ratios[0], ratios[-1]],
                "gpu_ms": busy[name],
                "gpu_ratio": busy[name] / busy["stock topk"],
                "peak_gb": contestant.peak_gb,
                "floor_ms": floor_ms(name, latents, autocast, rates),
                "longest": _longest(kernels[name]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _longest(kernels: dict[str, float]) -> dict[str, float]:
    """The kernels that take most of a step, by the start of their names."""
    by_name: dict[str, float] = defaultdict(float)
    for name, ms in kernels.items():
        by_name[name[:_NAME_LENGTH]] += ms
    by_time = sorted(by_name.items(), key=lambda kernel: -kernel[1])
    return {name: round(ms, 4) for name, ms in by_time[:_N_LONGEST]}


def main() -> None:
    """All sizes, shares of dead latents and precisions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--dead", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each contestant in each turn")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    rates = measured_rates()
    rows: list[dict[str, Any]] = []
    for latents in args.latents:
        for dead in args.dead:
            for autocast in (False, True):
                rows += compare(latents, dead, autocast, args.turns, args.steps, rates)
                gc.collect()
                torch.cuda.empty_cache()
    setting = {"d_in": D_IN, "k": K, "batch": BATCH, "encoder_steps": T, "turns": args.turns}
    write_result("train_step", {"setting": setting, "rates": rates, "rows": rows})


if __name__ == "__main__":
    main()
