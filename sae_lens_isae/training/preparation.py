"""What can be found wrong before training, and the model and text of a run."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig

from sae_lens_isae.checks import check_device, check_lr, check_seed
from sae_lens_isae.distributed import agreed, n_ranks, rank
from sae_lens_isae.errors import InputError, reason
from sae_lens_isae.files import output_folder
from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME, ActivationCache
from sae_lens_isae.inputs.identity import model_identity, text_identity
from sae_lens_isae.inputs.image_sets import open_images
from sae_lens_isae.inputs.language_models import load_language_model, width_at
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX, check_text, load_package_text
from sae_lens_isae.inputs.vision_models import VISION_CLASS
from sae_lens_isae.training.checkpoints import check_checkpoint, find_checkpoint
from sae_lens_isae.training.data_parallel import launched


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `train` takes beside SAELens' config."""

    n_eval_batches: int = 4
    """Of prompts for SAELens' `run_evals` after training; 0 skips it."""
    n_kept_activations: int = 4096
    """Held-out activations saved beside the SAEs; 0 saves none."""
    activations: Path | None = None
    """A folder of `isae cache` to train from; the model is run for the evaluation alone."""
    in_memory: bool | None = None
    """Whether such activations are kept in memory, of the GPU if there is one, and shuffled as a
    whole, or mixed from disk; by default the former if they fit."""


class Setup(NamedTuple):
    """What a run begins with."""

    overrides: dict[str, Any]
    """Arguments of SAELens' runners in place of what the config names; none for images."""
    resume_from: Path | None
    cache: ActivationCache | None


@contextlib.contextmanager
def prepared(
    cfg: LanguageModelSAERunnerConfig[Any], names: Sequence[str], options: Options
) -> Generator[Setup]:
    """Everything that can be found wrong before training; model and text for SAELens' runners."""
    _check_settings(cfg, options)
    resume_from = agreed(find_checkpoint(cfg.resume_from_checkpoint, cfg.checkpoint_path, names))
    if resume_from is not None:
        check_checkpoint(resume_from, names)
    cache, text = None, None
    if options.activations is not None:
        cache = ActivationCache.read(options.activations)
        cache.check_finished()
        cache.check_source(source_of(cfg))
        if not is_vision(cfg):
            # what evaluations read: contexts that no SAE was trained on
            tokens = cache.load(HELD_OUT_FILENAME).token_ids.tolist()
            text = Dataset.from_dict({"tokens": tokens})
    with contextlib.ExitStack() as folders, _memory_explained(cfg):
        # of several processes the first holds the folder for all of them
        if cfg.output_path is not None and launched().rank == 0:
            folders.enter_context(output_folder(Path(cfg.output_path), "--output_path"))
        if cfg.checkpoint_path is not None and rank() == 0:
            folders.enter_context(output_folder(Path(cfg.checkpoint_path), "--checkpoint_path"))
        overrides = {} if is_vision(cfg) else model_and_text(cfg, text)
        yield Setup(overrides, resume_from, cache)


@contextlib.contextmanager
def _memory_explained(cfg: LanguageModelSAERunnerConfig[Any]) -> Generator[None]:
    """Say what to lower where a GPU is too small for model, buffer and SAEs."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        buffer = 4 * cfg.n_batches_in_buffer * cfg.context_size * cfg.sae.d_in / 1e9
        raise InputError(
            f"the GPU's memory is too small for this run: {reason(error)} Lower "
            f"store_batch_size_prompts ({cfg.store_batch_size_prompts} contexts go through the "
            f"model at once), n_batches_in_buffer (the buffer takes {buffer:.1f} GB for every "
            "order of the data, and three times that while it is mixed), "
            "train_batch_size_tokens, d_sae or --seeds; take activations of a cache from disk "
            "(--from-disk)"
        ) from error


_OF_THE_SOURCE = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "autocast_lm",
    "hook_name",
    "hook_head_index",
    "dataset_path",
    "context_size",
    "seqpos_slice",
    "prepend_bos",
    "exclude_special_tokens",
    "disable_concat_sequences",
    "sequence_separator_token",
    "use_chat_formatting",
)


def is_vision(cfg: LanguageModelSAERunnerConfig[Any]) -> bool:
    """Whether the model of a run sees images."""
    return cfg.model_class_name == VISION_CLASS


def source_of(cfg: LanguageModelSAERunnerConfig[Any]) -> dict[str, Any]:
    """What decides which activations a run is trained on."""
    settings = {name: getattr(cfg, name) for name in _OF_THE_SOURCE}
    kwargs = cfg.model_from_pretrained_kwargs
    identities = {
        "model_identity": model_identity(cfg.model_name, cfg.model_class_name, kwargs),
        "text_identity": (
            open_images(cfg.dataset_path, streaming=cfg.streaming).identity
            if is_vision(cfg)
            else text_identity(cfg.dataset_path)
        ),
        "d_in": cfg.sae.d_in,
    }
    return json.loads(json.dumps({**settings, **identities}, default=str))


def _check_settings(cfg: LanguageModelSAERunnerConfig[Any], options: Options) -> None:
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
    values |= {"eval_batches": (options.n_eval_batches, 0)}
    values |= {"keep_activations": (options.n_kept_activations, 0)}
    for name, (value, at_least) in values.items():
        if value < at_least:
            raise InputError(f"{name} must be >= {at_least}, got {value}")
    check_lr(cfg.lr)
    if not 0 <= cfg.activations_mixing_fraction <= 1:
        raise InputError(
            "activations_mixing_fraction must be between 0 and 1, got "
            f"{cfg.activations_mixing_fraction}"
        )
    if not is_vision(cfg):
        check_buffer(cfg, cfg.context_size, "context_size")
    if cfg.train_batch_size_tokens % n_ranks():
        raise InputError(
            f"{n_ranks()} processes cannot share steps of train_batch_size_tokens = "
            f"{cfg.train_batch_size_tokens} equally; make it a multiple of {n_ranks()}"
        )
    if cfg.use_cached_activations and n_ranks() > 1:
        raise InputError(
            "several processes cannot share SAELens' cached activations (use_cached_activations); "
            "write a cache with `isae cache` and name it with --activations"
        )
    # `cfg.total_training_steps` leaves out a last step that begins with tokens to go
    n_steps = math.ceil(cfg.training_tokens / cfg.train_batch_size_tokens)
    until = getattr(cfg.sae, "average_until", 0)
    if until not in (0, n_steps):
        raise InputError(
            f"average_until is {until}, but the weights become their mean at the end of the run, "
            f"which has {n_steps} steps: --average_from {2 * n_steps // 3} --average_until "
            f"{n_steps}, or 0 for both"
        )
    check_device(cfg.device)
    check_seed(cfg.seed)


def check_buffer(cfg: LanguageModelSAERunnerConfig[Any], n_per_context: int, name: str) -> None:
    """Refuse a buffer that does not hold a batch.

    Args:
        n_per_context: Activations of a context or an image.
        name: What that is called.
    """
    buffer_size = cfg.n_batches_in_buffer * n_per_context
    if buffer_size < cfg.train_batch_size_tokens:
        raise InputError(
            f"n_batches_in_buffer * {name} = {buffer_size} tokens do not fill a batch of "
            f"train_batch_size_tokens = {cfg.train_batch_size_tokens}; raise n_batches_in_buffer"
        )


def model_and_text(
    cfg: LanguageModelSAERunnerConfig[Any], text: Dataset | None = None
) -> dict[str, Any]:
    """What SAELens' runners take in place of what the config names.

    Args:
        text: In place of the config's.
    """
    overrides: dict[str, Any] = {}
    dataset = cfg.dataset_path
    if text is not None:
        overrides["override_dataset"] = text
    elif dataset.startswith(PACKAGE_PREFIX):
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
