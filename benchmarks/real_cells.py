"""SAEs on cached activations of a language model, one for each cell and seed; measures nothing.

A cell is one variant with one setting, trained with several seeds. Where its activations are shared
by several processes, all of them read one copy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from sae_lens import SAE, AbsTopKSAE, AbsTopKSAEConfig, SAETrainer, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from sae_lens_isae import (
    ISAEMESAE,
    ISAELSTrainingSAEConfig,
    ISAEMESAEConfig,
    ISAEMETrainingSAEConfig,
    ISAETrainingSAEConfig,
    consensus_sae,
    refit,
)
from sae_lens_isae.architectures.schedule import LanguageModelSchedule
from sae_lens_isae.identifiability.chance import Null, null_atoms
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.losses.arip import ARIPLoss
from sae_lens_isae.training.cached import ShuffledActivations
from sae_lens_isae.training.refinement import refine
from sae_lens_isae.training.seeds import Vary, seeded_sae, seeds_of_runs

BATCH = 2048
PER_CONSENSUS = 3
_NORM_BATCHES = 100
_PRINCIPAL_ROWS = 1 << 18
Variant = Literal[
    "TopK",
    "AbsTopK",
    "iSAE",
    "iSAE-ME",
    "iSAE-LS",
    "isotropic",
    "covariance",
    "tokens",
    "consensus",
    "iSAE-ME, atoms fixed",
    "refit",
]
"""`isotropic` to `tokens` are not trained: random directions, random directions with the covariance
of the activations, and centred activations themselves as atoms, of AbsTopK SAEs with tied weights.
The last three are made of the SAEs of another cell: one of three seeds, an encoder for the atoms of
one, and one with coefficients by least squares."""


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
    averaged: float = 0.0
    """The share of the steps, at the end, over which weights are averaged."""
    decay: float = 0.4
    """The share of the steps, at the end, over which the learning rate falls to 0."""
    arip_ramp: float = 0.0
    """The share of the steps, at the start, over which aRIP's weight grows to the full one."""
    outside: int | None = None
    """Principal directions that are left out of what the SAE sees, with the mean; None: nothing."""
    of: str = ""
    """The cell whose SAEs this one is made of."""

    @property
    def n_steps(self) -> int:
        """Of training."""
        return int(self.n_tokens / self.batch)

    def sae_config(self, d_in: int) -> TrainingSAEConfig:
        """The training config."""
        cls, settings = _VARIANTS[self.variant]
        sizes = {"d_in": d_in, "d_sae": self.d_sae, "k": self.k}
        normalization = {"normalize_activations": "expected_average_only_in"}
        mean: dict[str, Any] = {}
        if self.averaged:
            first = self.n_steps - int(self.averaged * self.n_steps)
            mean = {"average_from": first, "average_until": self.n_steps}
        return cls(**{**sizes, **normalization, **mean, **settings, **self.sae})

    def trainer_config(self, device: str) -> SAETrainerConfig:
        """The schedule for language models, at this learning rate."""
        schedule = LanguageModelSchedule(self.n_steps).trainer_settings(self.variant)
        schedule["lr_decay_steps"] = int(self.decay * self.n_steps)
        return SAETrainerConfig(
            total_training_samples=self.n_steps * self.batch,
            train_batch_size_samples=self.batch,
            **{**schedule, "lr": self.lr},
            n_batches_for_norm_estimate=_NORM_BATCHES,
            device=device,
        )

    def inputs(self, seed: int) -> list[tuple[str, int]]:
        """The SAEs that this one is made of, as cell and seed."""
        if not self.of:
            return []
        n = PER_CONSENSUS if self.variant == "consensus" else 1
        return [(self.of, number) for number in range(n * seed, n * (seed + 1))]


_VARIANTS: dict[Variant, tuple[type[TrainingSAEConfig], dict[str, Any]]] = {
    "TopK": (ISAETrainingSAEConfig, {"activation": "topk", "arip_weight": 0.0}),
    "AbsTopK": (ISAETrainingSAEConfig, {"arip_weight": 0.0}),
    "iSAE": (ISAETrainingSAEConfig, {"arip_weight": 0.01}),
    "iSAE-ME": (ISAEMETrainingSAEConfig, {"arip_weight": 0.0, "encoder_steps": 5}),
    "iSAE-LS": (ISAELSTrainingSAEConfig, {"arip_weight": 0.01}),
}


def seed_folder(work: Path, cell: str, seed: int) -> Path:
    """Where an SAE lies."""
    return work / cell / f"seed_{seed}"


def is_finished(folder: Path) -> bool:
    """Whether the SAE of a folder is there."""
    return (folder / "seconds.json").exists()


def make_sae(cell: Cell, number: int, rows: torch.Tensor, work: Path) -> None:
    """Make one SAE of a cell and keep it, with the seconds that it took.

    Args:
        rows: Activations [tokens, d_in] on the device that trains.
    """
    start = time.perf_counter()
    sources = [str(seed_folder(work, *source)) for source in cell.inputs(number)]
    out = seed_folder(work, cell.name, number)
    if cell.variant in _VARIANTS:
        train_sae(cell, number, rows, out)
    elif cell.variant == "consensus":
        saes = {f"seed_{i}": load_sae(s, device=str(rows.device)) for i, s in enumerate(sources)}
        refine(consensus_sae(saes, **cell.sae), rows).save_inference_model(out)
    elif cell.variant == "refit":
        refitted(load_sae(sources[0], device=str(rows.device)), cell).save_model(out)
    elif cell.variant == "iSAE-ME, atoms fixed":
        sae = multistep(load_sae(sources[0], device=str(rows.device)), cell.sae)
        refine(sae, rows, n_steps=cell.n_steps, lr=cell.lr, seed=number).save_inference_model(out)
    else:
        untrained(cell, number, rows).save_model(out)
    (out / "seconds.json").write_text(json.dumps(time.perf_counter() - start))


def train_sae(cell: Cell, number: int, rows: torch.Tensor, out: Path) -> None:
    """Train one SAE through SAELens' trainer, in TF32."""
    torch.set_float32_matmul_precision("high")
    device = str(rows.device)
    seeds = list(seeds_of_runs(0, cell.n_seeds, cell.vary).values())[number]
    sae = seeded_sae(replace(cell.sae_config(rows.shape[1]), device=device), seeds.init)
    data = ShuffledActivations(rows, {"": seeds.data}, cell.batch, {})
    batches = (batch[""] for batch in data)
    if cell.outside is not None:
        outside = Outside(rows, cell.outside)
        batches = (outside.removed_from(batch) for batch in batches)
    if cell.arip_ramp:
        batches = _ramping(batches, sae, cell)
    SAETrainer(cell.trainer_config(device), sae, batches).fit()
    sae.save_inference_model(out)


def _ramping(batches: Iterator[torch.Tensor], sae: torch.nn.Module, cell: Cell) -> Any:
    """The same batches; the weight of aRIP grows meanwhile."""
    (term,) = (module for module in sae.modules() if isinstance(module, ARIPLoss))
    full = term.weight
    for number, batch in enumerate(batches):
        step = number - _NORM_BATCHES
        term.weight = full * min(1.0, max(0, step + 1) / (cell.arip_ramp * cell.n_steps))
        yield batch


class Outside:
    """The mean of activations and the directions in which they vary most, to be left out."""

    def __init__(self, rows: Float[torch.Tensor, "tokens d_in"], n_directions: int) -> None:
        some = rows[:: max(1, len(rows) // _PRINCIPAL_ROWS)].double()
        self._mean = some.mean(0)
        _, vectors = torch.linalg.eigh((some - self._mean).T @ (some - self._mean))
        self._directions = vectors[:, vectors.shape[1] - n_directions :].float()
        self._mean = self._mean.float()

    def removed_from(
        self, x: Float[torch.Tensor, "batch d_in"]
    ) -> Float[torch.Tensor, "batch d_in"]:
        """What is left for the SAE."""
        centred = x - self._mean.to(x.device)
        directions = self._directions.to(x.device)
        return centred - centred @ directions @ directions.T


def multistep(sae: SAE[Any], settings: Mapping[str, Any]) -> SAE[Any]:
    """iSAE-ME with the weights of an SAE with a linear encoder."""
    sizes = {"d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "k": sae.cfg.k}
    result = ISAEMESAE(ISAEMESAEConfig(**sizes, **settings)).to(sae.device)
    result.load_state_dict(sae.state_dict())
    return result


def refitted(sae: SAE[Any], cell: Cell) -> SAE[Any]:
    """An SAE whose coefficients are solved for on the candidates that the cell says."""
    if not hasattr(sae.cfg, "candidates"):
        return refit(sae, **cell.sae)
    sae.cfg.candidates = cell.sae["candidates"]
    return sae


def untrained(cell: Cell, seed: int, rows: torch.Tensor) -> SAE[Any]:
    """What the numbers of a table are by chance."""
    d_in = rows.shape[1]
    generator = torch.Generator().manual_seed(seed)
    some = rows[torch.randint(len(rows), (8 * cell.d_sae,), generator=generator)].float().cpu()
    null = "activations" if cell.variant == "tokens" else cell.variant
    atoms = null_atoms(cast(Null, null), some, cell.d_sae, generator)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=d_in, d_sae=cell.d_sae, k=cell.k))
    sae.W_dec.data = torch.nn.functional.normalize(atoms, dim=-1)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_dec.data = some.mean(0)
    return sae
