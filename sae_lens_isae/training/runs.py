"""Training through SAELens' own runners, seeded, with one or several seeds at a time."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import (
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
    logger,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.training.activation_scaler import ActivationScaler
from transformers import set_seed

from sae_lens_isae._private import MultiRunner, SingleRunner
from sae_lens_isae.errors import InputError
from sae_lens_isae.training.checkpoints import fit
from sae_lens_isae.training.data import TrainingData, opened_data
from sae_lens_isae.training.data_parallel import Parallel, together
from sae_lens_isae.training.held_out import HeldOut
from sae_lens_isae.training.images import train_on_images
from sae_lens_isae.training.preparation import Options, is_vision, prepared
from sae_lens_isae.training.results import TrainingResult, finish
from sae_lens_isae.training.seeds import Seeds, Vary, seeded_sae, seeds_of_runs

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_EVAL_PROMPTS = 8
"""Prompts in an evaluation batch: on two cores a batch of the model's own size takes minutes."""


_NOT_WITH_SEVERAL_SAES = ("from_pretrained_path", "use_cached_activations", "compile_sae")


def train(
    cfg: LanguageModelSAERunnerConfig[Any],
    n_seeds: int = 1,
    n_eval_batches: int = 4,
    n_kept_activations: int = 4096,
    vary: Vary = "both",
    parallel: Parallel = "auto",
    activations: str | Path | None = None,
    in_memory: bool | None = None,
) -> TrainingResult:
    """Train one SAE per seed and evaluate it, through SAELens' runners.

    Seeds are `cfg.seed`, `cfg.seed + 1`, ... Several of them share one forward pass of the model
    (`MultiSAETrainingRunner`), and each gives the SAE that a run with this seed alone gives.

    Ctrl-C and SIGTERM end the run after the present step with a checkpoint, from which
    `cfg.resume_from_checkpoint` goes on to the same SAE bit for bit (on a CPU). `latest` resumes
    from the last checkpoint of any run in `cfg.checkpoint_path`.

    Args:
        n_eval_batches: Batches of prompts for SAELens' `run_evals` after training; 0 skips it.
        n_kept_activations: Held-out activations saved beside the SAEs; 0 saves none.
        vary: What a seed decides: initial weights and the noise of the losses (`init`), the order
            in which the activations are mixed (`data`), or both, which makes them independent
            training runs. What it does not decide goes by `cfg.seed`.
        parallel: What the processes that `torchrun` started do: train on shares of every batch
            (`data`), or train whole seeds each (`seeds`); by default the latter where every process
            gets as many.
        activations: A folder of `isae cache` to train from; the model is run for the evaluation
            alone.
        in_memory: Whether these are kept in memory, of the GPU if there is one, and shuffled as a
            whole, or mixed from disk; by default the former if they fit.

    Returns:
        The SAEs that this process has trained; none on the others of those that share batches.

    Raises:
        InputError: A setting cannot be honoured.
        MissingInputError: The model or text of a package is missing; says what to install.
    """
    runs = seeds_of_runs(cfg.seed, n_seeds, vary)
    options = Options(
        n_eval_batches=n_eval_batches,
        n_kept_activations=n_kept_activations,
        activations=None if activations is None else Path(activations),
        in_memory=in_memory,
    )
    with together(cfg, runs, parallel) as mine:
        return _train(cfg, mine, vary if n_seeds > 1 else None, options)


def _train(
    cfg: LanguageModelSAERunnerConfig[Any],
    runs: Mapping[str, Seeds],
    vary: Vary | None,
    options: Options,
) -> TrainingResult:
    if vary is not None:
        saes = {name: seeded_sae(cfg.sae, seeds.init) for name, seeds in runs.items()}
        for sae in saes.values():
            sae.cfg.metadata.seeds_vary = vary
        order = {name: seeds.data for name, seeds in runs.items()}
        return _train_together(cfg, saes, order, options)
    if is_vision(cfg):
        return train_on_images(cfg, {"": seeded_sae(cfg.sae, cfg.seed)}, {"": cfg.seed}, options)
    with prepared(cfg, [], options) as setup:
        # from_pretrained_path brings its own weights
        sae = None if cfg.from_pretrained_path else seeded_sae(cfg.sae, cfg.seed)
        set_seed(cfg.seed)
        with _without_misleading_warnings():
            runner = SingleRunner(cfg, **setup.overrides, override_sae=sae)
        saes, seeds = {"": runner.sae}, {"": cfg.seed}
        store = runner.activations_store
        with opened_data(cfg, store, seeds, setup.cache, options.in_memory) as data:
            _run(runner, cfg, data, setup.resume_from, saes)
            return _finish(cfg, runner, saes, data, options)


def train_together(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: dict[str, TrainingSAE[Any]],
    n_eval_batches: int = 4,
    n_kept_activations: int = 4096,
    data_seeds: Mapping[str, int] | None = None,
    activations: str | Path | None = None,
    in_memory: bool | None = None,
) -> TrainingResult:
    """Train several SAEs on one shared forward pass of the model (`MultiSAETrainingRunner`).

    Args:
        cfg: Everything but the SAEs; its own `sae` is not trained.
        saes: By name; each is saved to `<output_path>/<name>`.
        data_seeds: Of the order in which each SAE sees the activations, by name; by default all see
            the same batches, in the order of `cfg.seed`.
        activations: A folder of `isae cache` to train from, and `in_memory` as for `train`.

    Raises:
        InputError: SAELens cannot do it with several SAEs at once.
    """
    order = {name: cfg.seed for name in saes} if data_seeds is None else dict(data_seeds)
    options = Options(
        n_eval_batches=n_eval_batches,
        n_kept_activations=n_kept_activations,
        activations=None if activations is None else Path(activations),
        in_memory=in_memory,
    )
    return _train_together(cfg, saes, order, options)


def _train_together(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: dict[str, TrainingSAE[Any]],
    order: Mapping[str, int],
    options: Options,
) -> TrainingResult:
    if is_vision(cfg):
        return train_on_images(cfg, saes, order, options)
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
    with prepared(cfg, list(saes), options) as setup:
        set_seed(cfg.seed)
        with _without_misleading_warnings():
            runner = MultiRunner(multi_cfg, **setup.overrides, override_saes=saes)
        store = runner.activations_store
        with opened_data(cfg, store, order, setup.cache, options.in_memory) as data:
            _run(runner, multi_cfg, data, setup.resume_from, saes)
            return _finish(cfg, runner, saes, data, options)


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
def _without_misleading_warnings() -> Generator[None]:
    """SAELens warns that a model handed over makes a run irreproducible, though it is the config's
    own, and that there are fewer texts than tokens to train on."""

    def keep(record: logging.LogRecord) -> bool:
        return "not be reproducible" not in record.getMessage()

    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The training dataset contains fewer samples")
            yield
    finally:
        logger.removeFilter(keep)


def _run(
    runner: SingleRunner | MultiRunner,
    cfg: LanguageModelSAERunnerConfig[Any] | MultiSAETrainingRunnerConfig,
    data: TrainingData,
    resume_from: Path | None,
    saes: Mapping[str, TrainingSAE[Any]],
) -> None:
    for name, sae in saes.items():
        sae.cfg.metadata.data_seed = data.seeds[name]
    runner.fit = lambda trainer: fit(trainer, data.stream, resume_from, data.load_elsewhere)
    asked = cfg.resume_from_checkpoint, cfg.prefetch_llm_batches
    # `fit` resumes: SAELens would, without the buffer. The stream reads ahead by itself.
    cfg.resume_from_checkpoint, cfg.prefetch_llm_batches = None, False
    try:
        runner.run()
    finally:
        cfg.resume_from_checkpoint, cfg.prefetch_llm_batches = asked


def _finish(
    cfg: LanguageModelSAERunnerConfig[Any],
    runner: SingleRunner | MultiRunner,
    saes: dict[str, TrainingSAE[Any]],
    data: TrainingData,
    options: Options,
) -> TrainingResult:
    n_batches = options.n_eval_batches

    def evaluated(sae: TrainingSAE[Any], held_out: HeldOut | None) -> dict[str, float]:
        del held_out
        if not n_batches:
            return {}
        return evaluate(sae, runner.activations_store, runner.model, n_batches)

    return finish(cfg, saes, data, options.n_kept_activations, evaluated)
