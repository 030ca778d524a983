"""Training through SAELens' own runners, seeded, with one or several seeds at a time."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Generator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import (
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
    TrainingSAEConfig,
    logger,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import save_file
from transformers import set_seed

from sae_lens_isae._private import MultiRunner, SingleRunner
from sae_lens_isae.checks import check_device, check_seed
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import output_folder, write_whole
from sae_lens_isae.inputs.language_models import load_language_model, width_at
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX, check_text, load_package_text
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.training.checkpoints import check_checkpoint, fit

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

ACTIVATIONS_FILENAME = "activations.safetensors"


_EVAL_PROMPTS = 8
"""Prompts in an evaluation batch: on two cores a batch of the model's own size takes minutes."""


_NOT_WITH_SEVERAL_SAES = ("from_pretrained_path", "use_cached_activations", "compile_sae")


@dataclass(frozen=True, kw_only=True)
class TrainedSAE:
    """One trained SAE and where its inference form was saved."""

    name: str
    sae: TrainingSAE[Any]
    path: Path | None
    metrics: dict[str, float]
    """CE-loss score, explained variance and L0 from SAELens' `run_evals`; empty if not asked."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training run produced."""

    saes: list[TrainedSAE]
    activations_path: Path | None
    """Activations that no SAE was trained on, for `isae pairwise`; None without output path."""


def train(
    cfg: LanguageModelSAERunnerConfig[Any],
    n_seeds: int = 1,
    n_eval_batches: int = 4,
    n_kept_activations: int = 4096,
) -> TrainingResult:
    """Train one SAE per seed and evaluate it, through SAELens' runners.

    Seeds are `cfg.seed`, `cfg.seed + 1`, ... They set the initial weights and the noise of the
    losses. Several seeds share one forward pass of the model (`MultiSAETrainingRunner`) and see the
    same batches in the same order, which `cfg.seed` sets: the first of them is the SAE that a run
    with this seed alone gives.

    Ctrl-C and SIGTERM end the run after the present step with a checkpoint, from which
    `cfg.resume_from_checkpoint` goes on to the same SAE bit for bit (on a CPU, without
    `prefetch_llm_batches`).

    Args:
        n_eval_batches: Batches of prompts for SAELens' `run_evals` after training; 0 skips it.
        n_kept_activations: Held-out activations saved beside the SAEs; 0 saves none.

    Raises:
        InputError: A setting cannot be honoured.
        MissingInputError: The model or text of a package is missing; says what to install.
    """
    if n_seeds < 1:
        raise InputError(f"seeds must be >= 1, got {n_seeds}")
    check_seed(cfg.seed)
    if n_seeds > 1:
        seeds = range(cfg.seed, cfg.seed + n_seeds)
        saes = {f"seed_{seed}": seeded_sae(cfg.sae, seed) for seed in seeds}
        return train_together(cfg, saes, n_eval_batches, n_kept_activations)
    with _prepared(cfg, [], n_eval_batches, n_kept_activations) as overrides:
        # from_pretrained_path brings its own weights
        sae = None if cfg.from_pretrained_path else seeded_sae(cfg.sae, cfg.seed)
        set_seed(cfg.seed)
        with _without_override_warnings():
            runner = SingleRunner(cfg, **overrides, override_sae=sae)
        _run(runner, cfg)
        return _finish(cfg, runner, {"": runner.sae}, n_eval_batches, n_kept_activations)


def train_together(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: dict[str, TrainingSAE[Any]],
    n_eval_batches: int = 4,
    n_kept_activations: int = 4096,
) -> TrainingResult:
    """Train several SAEs on one shared forward pass of the model (`MultiSAETrainingRunner`).

    Args:
        cfg: Everything but the SAEs; its own `sae` is not trained.
        saes: By name; each is saved to `<output_path>/<name>`.

    Raises:
        InputError: SAELens cannot do it with several SAEs at once.
    """
    for name in _NOT_WITH_SEVERAL_SAES:
        if getattr(cfg, name):
            raise InputError(
                f"{name} is not supported by SAELens' MultiSAETrainingRunner, which trains several "
                "SAEs at once; train them one by one (--seed 0, --seed 1, ...)"
            )
    shared = {
        f.name: getattr(cfg, f.name)
        for f in fields(MultiSAETrainingRunnerConfig)
        if f.init and hasattr(cfg, f.name)
    }
    multi_cfg = MultiSAETrainingRunnerConfig(
        **shared,
        saes={name: sae.cfg for name, sae in saes.items()},
        hook_names=cfg.hook_name,
        hook_head_indices=cfg.hook_head_index,
    )
    # both configs append a unique id when they are made
    multi_cfg.checkpoint_path = cfg.checkpoint_path
    with _prepared(cfg, list(saes), n_eval_batches, n_kept_activations) as overrides:
        set_seed(cfg.seed)
        with _without_override_warnings():
            runner = MultiRunner(multi_cfg, **overrides, override_saes=saes)
        _run(runner, multi_cfg)
        return _finish(cfg, runner, saes, n_eval_batches, n_kept_activations)


def seeded_sae(sae_cfg: TrainingSAEConfig, seed: int) -> TrainingSAE[Any]:
    """A training SAE whose initial weights and loss noise depend on `seed`."""
    # deepcopy: the config holds the metadata, which SAELens writes to
    sae_cfg = copy.deepcopy(sae_cfg)
    _key_noise(sae_cfg, seed)
    set_seed(seed)
    return get_sae_training_class(sae_cfg.architecture())[0](sae_cfg)


def evaluate(
    sae: TrainingSAE[Any], store: ActivationsStore, model: HookedRootModule, n_batches: int
) -> dict[str, float]:
    """CE-loss score, explained variance and L0 from SAELens' `run_evals`."""
    sae.eval()
    metrics, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(
            batch_size_prompts=_EVAL_PROMPTS,
            n_eval_reconstruction_batches=n_batches,
            n_eval_sparsity_variance_batches=n_batches,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        exclude_special_tokens=(
            store.exclude_special_tokens.tolist()
            if store.exclude_special_tokens is not None
            else False
        ),
    )
    return {
        "ce_loss_score": metrics["model_performance_preservation"]["ce_loss_score"],
        "explained_variance": metrics["reconstruction_quality"]["explained_variance"],
        "l0": metrics["sparsity"]["l0"],
    }


@contextlib.contextmanager
def _prepared(
    cfg: LanguageModelSAERunnerConfig[Any],
    names: list[str],
    n_eval_batches: int,
    n_kept_activations: int,
) -> Generator[dict[str, Any]]:
    """Everything that can be found wrong before training; model and text for SAELens' runners."""
    _check_settings(cfg, n_eval_batches, n_kept_activations)
    if cfg.resume_from_checkpoint is not None:
        check_checkpoint(Path(cfg.resume_from_checkpoint), names)
    with contextlib.ExitStack() as folders:
        if cfg.output_path is not None:
            folders.enter_context(output_folder(Path(cfg.output_path), "--output_path"))
        if cfg.checkpoint_path is not None:
            folders.enter_context(output_folder(Path(cfg.checkpoint_path), "--checkpoint_path"))
        yield _model_and_text(cfg)


def _check_settings(
    cfg: LanguageModelSAERunnerConfig[Any], n_eval_batches: int, n_kept_activations: int
) -> None:
    least = {
        "context_size": 1,
        "train_batch_size_tokens": 1,
        "store_batch_size_prompts": 1,
        "n_batches_in_buffer": 1,
        "n_batches_for_norm_estimate": 1,
        "training_tokens": cfg.train_batch_size_tokens,
        "n_checkpoints": 0,
        "lr_warm_up_steps": 0,
        "lr_decay_steps": 0,
    }
    values = {name: (getattr(cfg, name), at_least) for name, at_least in least.items()}
    values |= {"eval_batches": (n_eval_batches, 0), "keep_activations": (n_kept_activations, 0)}
    for name, (value, at_least) in values.items():
        if value < at_least:
            raise InputError(f"{name} must be >= {at_least}, got {value}")
    if not (math.isfinite(cfg.lr) and cfg.lr > 0):
        raise InputError(f"lr must be a number > 0, got {cfg.lr}")
    if not 0 <= cfg.activations_mixing_fraction <= 1:
        raise InputError(
            "activations_mixing_fraction must be between 0 and 1, got "
            f"{cfg.activations_mixing_fraction}"
        )
    buffer_size = cfg.n_batches_in_buffer * cfg.context_size
    if buffer_size < cfg.train_batch_size_tokens:
        raise InputError(
            f"n_batches_in_buffer * context_size = {buffer_size} tokens do not fill a batch of "
            f"train_batch_size_tokens = {cfg.train_batch_size_tokens}; raise n_batches_in_buffer"
        )
    check_device(cfg.device)
    check_seed(cfg.seed)


def _model_and_text(cfg: LanguageModelSAERunnerConfig[Any]) -> dict[str, Any]:
    """What SAELens' runners take in place of what the config names."""
    overrides: dict[str, Any] = {}
    dataset = cfg.dataset_path
    if dataset.startswith(PACKAGE_PREFIX):
        overrides["override_dataset"] = load_package_text(dataset.removeprefix(PACKAGE_PREFIX))
    elif not cfg.use_cached_activations:
        check_text(dataset, streaming=cfg.streaming)
    model = load_language_model(
        cfg.model_name,
        cfg.model_class_name,
        str(cfg.llm_device),
        [cfg.hook_name],
        cfg.model_from_pretrained_kwargs,
    )
    width = width_at(model, cfg.hook_name, cfg.hook_head_index)
    if width != cfg.sae.d_in:
        raise InputError(
            f"d_in is {cfg.sae.d_in}, but the model's activations at {cfg.hook_name} have {width} "
            f"dimensions; set d_in to {width} or name another hook"
        )
    return {**overrides, "override_model": model}


@contextlib.contextmanager
def _without_override_warnings() -> Generator[None]:
    """SAELens warns that a model handed over makes a run irreproducible; it is the config's own."""

    def keep(record: logging.LogRecord) -> bool:
        return "not be reproducible" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _run(
    runner: SingleRunner | MultiRunner,
    cfg: LanguageModelSAERunnerConfig[Any] | MultiSAETrainingRunnerConfig,
) -> None:
    resume_from, hook_name = cfg.resume_from_checkpoint, runner.activations_store.hook_name
    # `fit` resumes: SAELens would, without the buffer
    cfg.resume_from_checkpoint = None
    runner.fit = lambda trainer: fit(trainer, runner.activations_store, resume_from, hook_name)
    try:
        runner.run()
    finally:
        cfg.resume_from_checkpoint = resume_from


def _finish(
    cfg: LanguageModelSAERunnerConfig[Any],
    runner: SingleRunner | MultiRunner,
    saes: dict[str, TrainingSAE[Any]],
    n_eval_batches: int,
    n_kept_activations: int,
) -> TrainingResult:
    store, model = runner.activations_store, runner.model
    output = Path(cfg.output_path) if cfg.output_path is not None else None
    activations_path = None
    # before the evaluation, which restarts the text
    if output is not None and n_kept_activations > 0:
        activations_path = output / ACTIVATIONS_FILENAME
        kept = {"activations": _next_activations(store, n_kept_activations)}
        write_whole(activations_path, lambda scratch: save_file(kept, scratch))
    trained = [
        TrainedSAE(
            name=name or sae.cfg.architecture(),
            sae=sae,
            path=output / name if output is not None else None,
            metrics=evaluate(sae, store, model, n_eval_batches) if n_eval_batches else {},
        )
        for name, sae in progress_bar(saes.items(), desc="Evaluating", unit="SAE")
    ]
    return TrainingResult(saes=trained, activations_path=activations_path)


def _key_noise(sae_cfg: TrainingSAEConfig, seed: int) -> None:
    if hasattr(sae_cfg, "arip_seed"):
        sae_cfg.arip_seed = seed  # pyright: ignore[reportAttributeAccessIssue]


def _next_activations(store: ActivationsStore, n: int) -> torch.Tensor:
    """The next `n` activations of the store, all from text after the training tokens."""
    batches: list[torch.Tensor] = []
    while sum(map(len, batches)) < n:
        batches.append(store.get_filtered_llm_batch().flatten(0, -2).cpu().float())
    return torch.cat(batches)[:n].contiguous()
