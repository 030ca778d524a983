"""Training on the patches of images, through SAELens' trainers.

SAELens' runners want a language model, its tokenizer and an `ActivationsStore`. What they add to
the trainers is here: metadata, Weights & Biases, the files of a finished run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import wandb
from jaxtyping import Float
from sae_lens import LanguageModelSAERunnerConfig, SAETrainer, TrainingSAE
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from transformers import set_seed

from sae_lens_isae.distributed import n_ranks, rank
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import whole_folder
from sae_lens_isae.inputs.image_sets import open_images
from sae_lens_isae.inputs.vision_models import load_vision_model
from sae_lens_isae.training.activation_stream import MixedActivations
from sae_lens_isae.training.checkpoints import fit
from sae_lens_isae.training.data import TrainingData, mixed, next_activations, opened_cache
from sae_lens_isae.training.held_out import HeldOut
from sae_lens_isae.training.image_batches import ImageBatches
from sae_lens_isae.training.preparation import Options, check_buffer, prepared
from sae_lens_isae.training.results import TrainingResult, finish

_METADATA = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "dataset_path",
)


def image_batches(cfg: LanguageModelSAERunnerConfig[Any], once: bool = False) -> ImageBatches:
    """The activations that a config for images names, this process's share of them.

    Args:
        once: End with the images, in place of reading them again.

    Raises:
        InputError: The model has no patch tokens there, or the images cannot be read.
        MissingInputError: There is no such model, or no such images.
    """
    model = load_vision_model(
        cfg.model_name,
        cfg.hook_name,
        cfg.sae.d_in,
        str(cfg.llm_device),
        cfg.model_from_pretrained_kwargs,
    )
    return ImageBatches(
        model,
        open_images(cfg.dataset_path, cfg.seed, cfg.streaming),
        cfg.store_batch_size_prompts,
        _device(cfg),
        (rank(), n_ranks()),
        once,
    )


def train_on_images(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: dict[str, TrainingSAE[Any]],
    seeds: Mapping[str, int],
    options: Options,
) -> TrainingResult:
    """Train SAEs on the patches of images.

    Args:
        cfg: `model_class_name` is that of images, `model_name` a backbone, `dataset_path` images.
        saes: By name; the only one of a run is `""`.
        seeds: Of the order in which each sees the activations, by name.

    Raises:
        InputError: A setting cannot be honoured.
        MissingInputError: There is no such model, or no such images.
    """
    for name in ("from_pretrained_path", "use_cached_activations", "compile_sae"):
        if getattr(cfg, name):
            raise InputError(f"{name} is not supported on images; leave it out")
    with prepared(cfg, [name for name in saes if name], options) as setup:
        set_seed(cfg.seed)
        for name, sae in saes.items():
            for field in _METADATA:
                setattr(sae.cfg.metadata, field, getattr(cfg, field))
            sae.cfg.metadata.data_seed = seeds[name]
        with contextlib.ExitStack() as opened:
            if setup.cache is not None:
                device = _device(cfg)
                cached = opened_cache(cfg, device, seeds, setup.cache, options.in_memory)
                data = opened.enter_context(cached)
            else:
                data = opened.enter_context(_opened_images(cfg, seeds))
            _fit(cfg, saes, data, setup.resume_from)
            return finish(cfg, saes, data, options.n_kept_activations, _evaluate)


@contextlib.contextmanager
def image_data_provider(
    model_name: str,
    images: str,
    layer: int,
    *,
    batch_size: int = 2048,
    buffer_size: int = 500_000,
    images_at_once: int = 32,
    seed: int = 0,
    device: str = "cpu",
) -> Generator[Iterator[Float[torch.Tensor, "batch d_in"]]]:
    """Mixed activations of image patches, as SAELens' `SAETrainer` takes them.

    Args:
        model_name: An image backbone of transformers, on the hub or in a folder.
        images: See `open_images`.
        layer: Block or stage, from 0, whose output is taken.
        buffer_size: Activations among which batches are drawn; refilled when half of them are used.
        images_at_once: In one forward pass.
        seed: Of the order of images and activations.

    Raises:
        InputError: The model has no patch tokens there, or the images cannot be read.
        MissingInputError: There is no such model, or no such images.
    """
    model = load_vision_model(model_name, f"layer.{layer}", device=device)
    place = torch.device(device)
    batches = ImageBatches(model, open_images(images, seed), images_at_once, place)
    try:
        mixed_ones = MixedActivations(batches, {"": seed}, batch_size, buffer_size, 0.5, place, {})
        yield (batch[""] for batch in mixed_ones)
    finally:
        batches.close()


def _device(cfg: LanguageModelSAERunnerConfig[Any]) -> torch.device:
    """Of the buffer."""
    return torch.device(cfg.act_store_device or cfg.device)


@contextlib.contextmanager
def _opened_images(
    cfg: LanguageModelSAERunnerConfig[Any], seeds: Mapping[str, int]
) -> Generator[TrainingData]:
    batches = image_batches(cfg)
    check_buffer(cfg, batches.model.n_patches, "patches of an image")
    settings = {
        "images": batches.images.identity,
        "hook_name": batches.model.hook_name,
        "grid": batches.model.grid,
        "store_batch_size_prompts": cfg.store_batch_size_prompts,
        "train_batch_size_tokens": cfg.train_batch_size_tokens,
        "n_batches_in_buffer": cfg.n_batches_in_buffer,
        "activations_mixing_fraction": cfg.activations_mixing_fraction,
    }
    device = _device(cfg)
    stream = mixed(cfg, seeds, batches, device, settings, batches.model.n_patches)
    try:
        yield TrainingData(
            seeds=dict(seeds),
            stream=stream,
            held_out=partial(next_activations, batches),
        )
    finally:
        batches.close()


def _fit(
    cfg: LanguageModelSAERunnerConfig[Any],
    saes: dict[str, TrainingSAE[Any]],
    data: TrainingData,
    resume_from: Path | None,
) -> None:
    logger = cfg.logger
    if logger.log_to_wandb:
        wandb.init(
            project=logger.wandb_project,
            entity=logger.wandb_entity,
            config=cfg.to_dict(),
            name=logger.run_name,
            id=logger.wandb_id,
        )
    settings: dict[str, Any] = {
        "cfg": cfg.to_sae_trainer_config(),
        "data_provider": iter(()),
        "save_checkpoint_fn": lambda checkpoint_path: _write_config(cfg, checkpoint_path),
    }
    if list(saes) == [""]:
        trainer = SAETrainer(sae=saes[""], **settings)
    else:
        trainer = MultiSAETrainer(saes=saes, hook_names={name: name for name in saes}, **settings)
    fit(trainer, data.stream, resume_from, data.load_elsewhere)
    if logger.log_to_wandb:
        wandb.finish()
    if cfg.output_path is None or rank():
        return
    with whole_folder(Path(cfg.output_path)) as scratch:
        for name, sae in saes.items():
            sae.save_inference_model(scratch / name)
        _write_config(cfg, scratch)


def _write_config(cfg: LanguageModelSAERunnerConfig[Any], folder: str | Path | None) -> None:
    if folder is not None:
        (Path(folder) / RUNNER_CFG_FILENAME).write_text(json.dumps(cfg.to_dict()))


@torch.no_grad()
def _evaluate(sae: TrainingSAE[Any], held_out: HeldOut | None) -> dict[str, float]:
    """Explained variance and L0 on held-out activations."""
    if held_out is None:
        return {}
    sae.eval()
    x = held_out.activations.to(sae.device)
    codes = sae.encode(x)
    error = (x - sae.decode(codes)).square().sum()
    return {
        "explained_variance": float(1 - error / (x - x.mean(0)).square().sum()),
        "l0": float((codes != 0).float().sum(-1).mean()),
    }
