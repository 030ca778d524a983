"""Activations of a language model at an SAE's hook, through SAELens' store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.util import get_special_token_ids

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activation_source import DEFAULT_N_SAMPLES, ActivationSource
from sae_lens_isae.inputs.shared_model import load_shared_model
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX, load_package_text
from sae_lens_isae.inputs.token_text import TokenText, kept_places, token_text
from sae_lens_isae.inputs.vision_activations import from_images
from sae_lens_isae.inputs.vision_models import VISION_CLASS

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_PROMPTS = 8


def from_model(
    sae: SAE[Any],
    n_samples: int | None = None,
    *,
    model_name: str | None = None,
    text: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> ActivationSource:
    """Activations of a language model at the SAE's hook, through SAELens' `ActivationsStore`.

    What is not given comes from the SAE's metadata: model, data set, context size, special tokens.
    Of an SAE on an image model they are those of images, see `from_images`.

    Args:
        model_name: A hub name, a local folder, or `gguf:...` (see `inputs.gguf`).
        text: A data set on the hub or in a folder, or `package:...`; images for an image model.

    Raises:
        InputError: The metadata lacks something that was not given; the message says what.
    """
    metadata = sae.cfg.metadata
    if metadata.model_class_name == VISION_CLASS:
        return from_images(
            sae,
            n_samples,
            model_name=model_name,
            images=text,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    model_name = model_name or metadata.model_name
    text = text or metadata.dataset_path
    missing = [
        what
        for what, value in {
            "a model (--model)": model_name,
            "text (--text)": text,
            "hook_name in its metadata": metadata.hook_name,
            "context_size in its metadata": metadata.context_size,
            "prepend_bos in its metadata": metadata.prepend_bos,
        }.items()
        if value is None
    ]
    if missing:
        raise InputError(
            "this SAE does not say where its activations come from: it needs "
            f"{', '.join(missing)}; or give activations (--activations)"
        )
    assert model_name is not None
    assert text is not None
    n_samples = n_samples or DEFAULT_N_SAMPLES

    @cache
    def load() -> HookedRootModule:
        return load_shared_model([sae], model_name, device, trust_remote_code=trust_remote_code)[1]

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def chunks() -> Iterator[torch.Tensor]:
        seen.clear()
        store = text_store(sae, load(), text, device, n_samples)
        excluded = store.exclude_special_tokens
        while True:
            tokens = store.get_batch_tokens()
            activations = store.get_activations(tokens).reshape(-1, sae.cfg.d_in).cpu()
            tokens = tokens.cpu()
            places, kept = kept_places(
                tokens, slice(*store.seqpos_slice), None if excluded is None else excluded.cpu()
            )
            seen.append((tokens, places))
            yield activations[kept]

    def tokens_seen() -> TokenText | None:
        starts = itertools.accumulate((tokens.numel() for tokens, _ in seen), initial=0)
        places = [places + start for (_, places), start in zip(seen, starts, strict=False)]
        tokens = torch.cat([tokens for tokens, _ in seen])
        return token_text(load().tokenizer, tokens, torch.cat(places))

    description = f"{model_name} at {metadata.hook_name} on {text}"
    return ActivationSource(n_samples, sae.cfg.d_in, description, chunks, tokens_seen, load)


def with_model(
    source: ActivationSource,
    sae: SAE[Any],
    model_name: str | None = None,
    device: str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> ActivationSource:
    """Activations that are there, with the model that they are of: it says what latents promote.

    Args:
        sae: Whose metadata name the model and where the activations are.
        model_name: In place of the one in the metadata.
    """

    @cache
    def load() -> HookedRootModule:
        return load_shared_model([sae], model_name, device, trust_remote_code=trust_remote_code)[1]

    return replace(source, model=load)


def text_store(
    sae: SAE[Any],
    model: HookedRootModule,
    text: str,
    device: str,
    n_samples: int = 10**9,
    context_size: int | None = None,
) -> ActivationsStore:
    """SAELens' store of tokens and activations at an SAE's hook, as the SAE was trained.

    Args:
        text: A data set on the hub or in a folder, or `package:...`.
        n_samples: How many activations will be asked for.
        context_size: In place of the one in the SAE's metadata.
    """
    metadata = sae.cfg.metadata
    packaged = text.startswith(PACKAGE_PREFIX)
    dataset = load_package_text(text.removeprefix(PACKAGE_PREFIX)) if packaged else text
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset,
        streaming=not packaged and not Path(text).exists(),
        context_size=context_size,
        store_batch_size_prompts=_PROMPTS,
        total_tokens=n_samples,
        device=device,
        disable_concat_sequences=bool(metadata.disable_concat_sequences),
    )
    # from_sae does not pass on which tokens the SAE was trained without
    excluded: Any = metadata.exclude_special_tokens
    if excluded is True:
        tokenizer: Any = model.tokenizer
        excluded = get_special_token_ids(tokenizer)
    if excluded:
        store.exclude_special_tokens = torch.tensor(excluded, dtype=torch.long, device=device)
    return store
