"""Language models by the names that a user types, and what they say of themselves."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from sae_lens.load_model import load_model
from transformer_lens.HookedTransformer import Output
from transformer_lens.utils import lm_cross_entropy_loss
from transformers import AutoTokenizer

from sae_lens_isae._private import allow_local_model
from sae_lens_isae.checks import check_device
from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.inputs.gguf import GGUF_PREFIX, convert_gguf
from sae_lens_isae.inputs.vision_models import VISION_CLASS

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

ModelClass = Literal["HookedTransformer", "TransformerBridge", "AutoModelForCausalLM"]


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
        from_pretrained_kwargs: They can name code to run: pass on what comes from a checkpoint
            through `harmless_model_kwargs` only.

    Raises:
        InputError: There is no such model, or the class does not know its architecture; the message
            says what to do.
    """
    check_device(device)
    if name.startswith(GGUF_PREFIX):
        file = name.removeprefix(GGUF_PREFIX)
        return load_gguf_model(
            file, cast(Any, model_class_name), device, hook_names, from_pretrained_kwargs
        )
    return _load(name, name, model_class_name, device, hook_names, from_pretrained_kwargs or {})


def load_tokenizer(name: str) -> Any:
    """A model's tokenizer by the model's name; None where it is not to be had."""
    is_gguf = name.startswith(GGUF_PREFIX)
    try:
        return AutoTokenizer.from_pretrained(
            str(convert_gguf(name.removeprefix(GGUF_PREFIX))) if is_gguf else name
        )
    except (OSError, ValueError, MissingInputError):
        return None


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
    if model_class_name == VISION_CLASS:
        raise InputError(
            f"{name} is an image model (model_class_name {VISION_CLASS}), and this needs a "
            "language model; measure its SAEs on activations of images (--activations)"
        )
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


def check_hook(model: HookedRootModule, hook_name: str) -> None:
    """Refuse a hook that a model lacks.

    Raises:
        InputError: The message names the nearest ones.
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
        InputError: There is none.
    """
    found = re.search(r"\d+", hook_name)
    if found is None:
        raise InputError(
            f"the hook {hook_name!r} names no block; SAEBench stops the model after the SAE's block"
        )
    return int(found.group())


def gains_from_bfloat16(device: torch.device | str) -> bool:
    """Whether a model is faster under autocast there: on a CPU without AVX-512 it takes several
    times as long."""
    slow = ("NO AVX", "DEFAULT", "AVX2")
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.device(device).type != "cpu" or capability not in slow


def in_bfloat16(model: HookedRootModule) -> HookedRootModule:
    """Let a model's forward pass run under autocast, and still return float32.

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
    from_pretrained_kwargs: dict[str, Any] | None = None,
) -> HookedRootModule:
    """Load a GGUF file as a model for SAELens' runners, without a network.

    The file is converted to the Hugging Face format once (float32) and kept in the cache folder.

    Args:
        source: Name of an installed package that ships one GGUF file, or a path to a file.
        model_class_name: As for `load_language_model`.
        hook_names: As for `load_language_model`.
        from_pretrained_kwargs: As for `load_language_model`.

    Raises:
        InputError: The model class is unknown, or does not know the architecture.
        MissingInputError: Package or file are missing; the message says what to install.
    """
    folder = str(convert_gguf(source))
    if model_class_name == "HookedTransformer":
        allow_local_model(folder)
    return _load(
        GGUF_PREFIX + source,
        folder,
        model_class_name,
        device,
        hook_names,
        from_pretrained_kwargs or {},
    )
