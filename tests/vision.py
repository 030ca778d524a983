"""Image models with random weights, and photographs that packages ship."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from skimage import data as photographs
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from sae_lens_isae.inputs.vision_models import VISION_CLASS
from tests.conftest import isae_config

WIDTH, SIDE, GRID = 16, 56, (4, 4)
N_PATCHES = GRID[0] * GRID[1]
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "moon", "brick", "grass")
"""The last five are grey."""


def save_model(folder: Path, kind: str = "dinov2") -> Path:
    """A small backbone with its processor."""
    torch.manual_seed(0)
    transformer = {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 14,
    }  # fmt: skip
    if kind == "resnet":
        stages = {"hidden_sizes": [8, WIDTH], "depths": [1, 1], "embedding_size": 8}
        model = ResNetModel(ResNetConfig(**stages, layer_type="basic"))
    elif kind == "registers":
        config = Dinov2WithRegistersConfig(**transformer, num_register_tokens=4)
        model = Dinov2WithRegistersModel(config)
    else:
        model = Dinov2Model(Dinov2Config(**transformer))
    model.save_pretrained(folder)
    processor(SIDE).save_pretrained(folder)
    return folder


def processor(side: int) -> BitImageProcessorPil:
    """DINOv2's, for smaller images."""
    return BitImageProcessorPil(
        size={"shortest_edge": side + side // 7},
        crop_size={"height": side, "width": side},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )


def save_photographs(folder: Path) -> Path:
    """Colour, grey, with alpha, in a subfolder; two that cannot be read, and one that is none."""
    (folder / "grey").mkdir(parents=True)
    for name in NAMES:
        image = Image.fromarray(getattr(photographs, name)())
        image.thumbnail((96, 96))
        if name == "coffee":
            image = image.convert("RGBA")
        image.save(folder / ("" if image.mode != "L" else "grey") / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    whole = (folder / "astronaut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 3])
    (folder / "notes.txt").write_text("no image")
    return folder


def image_config(model: Path, images: Path | str, folder: Path, **changes):
    """A run on images."""
    settings = {
        "sae": isae_config("iSAE", normalize_activations="expected_average_only_in"),
        "model_name": str(model),
        "model_class_name": VISION_CLASS,
        "hook_name": "layer.1",
        "dataset_path": str(images),
        "streaming": False,
        "training_tokens": 32 * 20,
        "train_batch_size_tokens": 32,
        "n_batches_in_buffer": 5,
        "store_batch_size_prompts": 2,
        "n_batches_for_norm_estimate": 2,
        "lr": 0.003,
        "n_checkpoints": 1,
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "out"),
        "logger": LoggingConfig(log_to_wandb=False),
        **changes,
    }
    return LanguageModelSAERunnerConfig(**settings)
