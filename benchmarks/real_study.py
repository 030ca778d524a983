"""Training and comparing SAEs on cached activations of SmolLM2; measures nothing itself.

A cell is one variant with one setting, trained with several seeds. Every GPU keeps the activations
once and several processes share them there: one alone keeps no large GPU busy.
"""

from __future__ import annotations

import json
import queue
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.multiprocessing as mp
from sae_lens import SAE, AbsTopKSAE, AbsTopKSAEConfig, SAETrainer, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from sae_lens_isae import (
    ISAELSTrainingSAEConfig,
    ISAEMETrainingSAEConfig,
    ISAETrainingSAEConfig,
    LinearSAE,
    PairwiseReport,
    pairwise_identifiability,
    refit,
)
from sae_lens_isae.architectures.schedule import LanguageModelSchedule
from sae_lens_isae.identifiability.chance import random_directions
from sae_lens_isae.identifiability.code_agreement import CodeComparison
from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME, ActivationCache
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.training.cached import ShuffledActivations, load_rows
from sae_lens_isae.training.seeds import Vary, seeded_sae, seeds_of_runs

BATCH = 2048
N_ORACLE = 1024
Variant = Literal[
    "TopK", "AbsTopK", "iSAE", "iSAE-ME", "iSAE-LS", "isotropic", "covariance", "tokens"
]
"""The last three are not trained: random directions, random directions with the covariance of the
activations, and centred activations themselves as atoms, of AbsTopK SAEs with tied weights."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant with one setting."""

    name: str
    variant: Variant
    lr: float
    n_tokens: float = 41e6
    n_seeds: int = 2
    d_sae: int = 4096
    k: int = 40
    batch: int = BATCH
    vary: Vary = "both"
    sae: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the SAE that differ from the variant's."""

    def sae_config(self, d_in: int) -> TrainingSAEConfig:
        """The training config."""
        cls, settings = _VARIANTS[self.variant]
        sizes = {"d_in": d_in, "d_sae": self.d_sae, "k": self.k}
        normalization = {"normalize_activations": "expected_average_only_in"}
        return cls(**{**sizes, **normalization, **settings, **self.sae})

    def trainer_config(self, device: str) -> SAETrainerConfig:
        """The schedule for language models, at this learning rate."""
        n_steps = int(self.n_tokens / self.batch)
        return SAETrainerConfig(
            total_training_samples=n_steps * self.batch,
            train_batch_size_samples=self.batch,
            **{**LanguageModelSchedule(n_steps).trainer_settings(self.variant), "lr": self.lr},
            n_batches_for_norm_estimate=100,
            device=device,
        )


_VARIANTS: dict[Variant, tuple[type[TrainingSAEConfig], dict[str, Any]]] = {
    "TopK": (ISAETrainingSAEConfig, {"activation": "topk", "arip_weight": 0.0}),
    "AbsTopK": (ISAETrainingSAEConfig, {"arip_weight": 0.0}),
    "iSAE": (ISAETrainingSAEConfig, {"arip_weight": 0.01}),
    "iSAE-ME": (ISAEMETrainingSAEConfig, {"arip_weight": 0.0, "encoder_steps": 5}),
    "iSAE-LS": (ISAELSTrainingSAEConfig, {"arip_weight": 0.01}),
}


def train_seed(cell: Cell, number: int, rows: torch.Tensor, out: Path) -> None:
    """Train one SAE through SAELens' trainer, in TF32, and keep it."""
    torch.set_float32_matmul_precision("high")
    device = str(rows.device)
    if cell.variant not in _VARIANTS:
        untrained(cell, number, rows).save_model(out)
        (out / "seconds.json").write_text("0")
        return
    seeds = list(seeds_of_runs(0, cell.n_seeds, cell.vary).values())[number]
    sae = seeded_sae(replace(cell.sae_config(rows.shape[1]), device=device), seeds.init)
    data = ShuffledActivations(rows, {"": seeds.data}, cell.batch, {})
    start = time.perf_counter()
    SAETrainer(cell.trainer_config(device), sae, (batch[""] for batch in data)).fit()
    seconds = time.perf_counter() - start
    sae.save_inference_model(out)
    (out / "seconds.json").write_text(json.dumps(seconds))


def untrained(cell: Cell, seed: int, rows: torch.Tensor) -> SAE[Any]:
    """What the numbers of a table are by chance."""
    d_in = rows.shape[1]
    generator = torch.Generator().manual_seed(seed)
    some = rows[torch.randint(len(rows), (8 * cell.d_sae,), generator=generator)].float().cpu()
    mean = some.mean(0)
    if cell.variant == "isotropic":
        atoms = torch.randn(cell.d_sae, d_in, generator=generator)
    elif cell.variant == "covariance":
        atoms = random_directions(some, cell.d_sae, generator)
    else:
        atoms = some[: cell.d_sae] - mean
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=d_in, d_sae=cell.d_sae, k=cell.k))
    sae.W_dec.data = torch.nn.functional.normalize(atoms, dim=-1)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_dec.data = mean
    return sae


def compare(saes: Mapping[str, SAE[Any]], held_out: torch.Tensor) -> dict[str, Any]:
    """The columns of Table 2, and what they become after least squares on the same supports."""
    torch.set_float32_matmul_precision("highest")
    report = pairwise_identifiability(saes, held_out, n_oracle_samples=N_ORACLE, progress=False)
    row = columns(report)
    if not next(iter(saes.values())).cfg.architecture().endswith("_ls"):
        row["refit"] = after_refit(saes, report, held_out)
    return row


@torch.no_grad()
def after_refit(
    saes: Mapping[str, SAE[Any]], report: PairwiseReport, held_out: torch.Tensor
) -> dict[str, float]:
    """Error and agreement with coefficients by least squares; the dictionaries stay matched."""
    linear = {name: LinearSAE(refit(sae)) for name, sae in saes.items()}
    comparisons = {(pair.a, pair.b): CodeComparison(pair.match) for pair in report.pairs}
    errors: list[float] = []
    for x in held_out.split(1024):
        codes = {name: sae.encode(x) for name, sae in linear.items()}
        for (a, b), comparison in comparisons.items():
            comparison.add(codes[a].codes, codes[b].codes)
        for name, code in codes.items():
            rest = x.to(code.codes.device) - linear[name].decode(code.codes, code.offset)
            scale = x.to(rest).square().sum(-1)
            errors += (rest.square().sum(-1) / scale).tolist()
    found = [comparison.agreement(np.random.default_rng(0)) for comparison in comparisons.values()]
    return {
        "mse": mean(errors),
        "sae_iou": mean(each.iou.value for each in found if each),
        "sae_l2": mean(each.l2.value for each in found if each),
    }


def columns(report: PairwiseReport) -> dict[str, Any]:
    """A row of Table 2."""
    latents = report.latents
    active = latents[latents["firing_rate"] > 0]
    quintile = pd.qcut(active["firing_rate"].rank(method="first"), 5, labels=False)
    return {
        **report.table1_row("").to_dict(),
        "found": float((latents["min_cosine"] >= report.found_cosine).mean()),
        "cosine_by_firing_rate": active.groupby(quintile)["mean_cosine"].mean().round(4).tolist(),
        "n_dead": [sae.n_dead for sae in report.saes],
        "each": {
            "mse": [sae.mse for sae in report.saes],
            "dcs": [pair.dcs for pair in report.pairs],
            "sae_iou": [pair.sae.iou.value for pair in report.pairs],
            "sae_l2": [pair.sae.l2.value for pair in report.pairs],
        },
    }


def measure(
    cells: Sequence[Cell],
    cache: ActivationCache,
    work: Path,
    n_workers: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train what the work folder lacks, and keep a row for each cell as soon as it is there.

    Args:
        n_workers: Processes on each GPU.
    """
    torch.set_float32_matmul_precision("high")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices = devices or [torch.device("cpu")]
    names = [file.name for file in cache.files]
    context = mp.get_context("spawn")
    tasks, comparisons, done = context.Queue(), context.Queue(), context.Queue()
    held_out = cache.activations(HELD_OUT_FILENAME).float()
    workers = []
    # workers see this process's memory: it has to stay
    shared = [load_rows(cache, names, device) for device in devices]
    for rows in shared:
        for _ in range(n_workers):
            arguments = (rows, held_out, work, tasks, comparisons, done)
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            workers[-1].start()
    open_seeds = {cell.name: set(range(cell.n_seeds)) for cell in cells}
    for cell in cells:
        for number in range(cell.n_seeds):
            tasks.put((cell, number))
    try:
        _collect(open_seeds, comparisons, done, keep)
    finally:
        for worker in workers:
            worker.kill()


def _collect(
    open_seeds: dict[str, set[int]],
    comparisons: Any,
    done: Any,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Let seeds be compared once a cell has all of them, and keep the rows."""
    while open_seeds:
        what, cell, result = done.get()
        if what == "failed":
            open_seeds.pop(cell.name, None)
            print(f"{cell.name} failed: {result}", file=sys.stderr, flush=True)
        elif what == "compared":
            del open_seeds[cell.name]
            keep(result)
        elif cell.name in open_seeds:
            open_seeds[cell.name].discard(result)
            if not open_seeds[cell.name]:
                comparisons.put(cell)


def _work(
    rows: torch.Tensor, held_out: torch.Tensor, work: Path, tasks: Any, comparisons: Any, done: Any
) -> None:
    torch.set_num_threads(1 if rows.is_cuda else torch.get_num_threads())
    if rows.is_cuda:
        torch.cuda.set_device(rows.device)
    work.mkdir(parents=True, exist_ok=True)
    while True:
        cell = None
        try:
            cell = comparisons.get_nowait()
            done.put(("compared", cell, _compared(cell, work, held_out, str(rows.device))))
            continue
        except queue.Empty:
            pass
        except Exception:
            done.put(("failed", cell, traceback.format_exc()))
            continue
        try:
            cell, number = tasks.get(timeout=1)
        except queue.Empty:
            continue
        folder = work / cell.name / f"seed_{number}"
        try:
            if not (folder / "seconds.json").exists():
                train_seed(cell, number, rows, folder)
            done.put(("trained", cell, number))
        except Exception:
            done.put(("failed", cell, traceback.format_exc()))


def _compared(cell: Cell, work: Path, held_out: torch.Tensor, device: str) -> dict[str, Any]:
    folders = [work / cell.name / f"seed_{number}" for number in range(cell.n_seeds)]
    saes = {folder.name: load_sae(str(folder), device=device) for folder in folders}
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
    return {
        "cell": cell.name,
        "setting": asdict(cell),
        **compare(saes, held_out),
        "training_seconds": mean(seconds),
    }
