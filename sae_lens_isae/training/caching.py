"""Activations of a model written to disk, to train from them later."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig, logger

from sae_lens_isae.errors import InputError
from sae_lens_isae.files import output_folder
from sae_lens_isae.inputs.activation_cache import (
    CACHE_FILENAME,
    HELD_OUT_FILENAME,
    ActivationCache,
    TokenActivations,
)
from sae_lens_isae.inputs.activation_files import save_activations
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.training.contexts import Contexts
from sae_lens_isae.training.image_batches import ImageBatches
from sae_lens_isae.training.images import image_batches
from sae_lens_isae.training.llm_batches import LLMBatches, TokenBatches, joined
from sae_lens_isae.training.preparation import is_vision, model_and_text, source_of

StoredAs = Literal["bfloat16", "float16", "float32"]

_N_HELD_OUT = 16384
_N_PER_FILE = 1 << 17


def cache_activations(
    cfg: LanguageModelSAERunnerConfig[Any],
    folder: Path,
    stored_as: StoredAs | None = None,
    n_held_out: int = _N_HELD_OUT,
    n_per_file: int = _N_PER_FILE,
) -> ActivationCache:
    """Write `cfg.training_tokens` activations of the model, and before them some that are held out.

    What is there of the same activations is kept, so that a run that was cut off goes on. The text
    is read once: where it ends, so does the cache.

    Args:
        cfg: Its `sae` is not looked at but for `d_in`.
        stored_as: By default float32, or bfloat16 where the model runs in it.
        n_held_out: At least so many activations are held out.
        n_per_file: At least so many go into one file.

    Raises:
        InputError: The folder holds other activations, or an activation does not fit the precision.
    """
    if stored_as is not None and stored_as not in get_args(StoredAs):
        raise InputError(
            f"stored_as must be one of {', '.join(get_args(StoredAs))}, got {stored_as!r}"
        )
    with output_folder(folder, "--out"):
        model_kwargs: Mapping[str, Any] = cfg.model_from_pretrained_kwargs or {}
        half = cfg.autocast_lm or "bfloat16" in str(model_kwargs.get("dtype"))
        source = {**source_of(cfg), "stored_as": stored_as or ("bfloat16" if half else "float32")}
        cache = _begun(folder, source, cfg)
        if cache.n_activations >= cache.n_planned:
            cache.save()
            return cache
        with _read_once(cfg) as batches:
            _write(cache, batches, n_held_out, n_per_file)
    return cache


@contextlib.contextmanager
def _read_once(
    cfg: LanguageModelSAERunnerConfig[Any],
) -> Generator[LLMBatches | ImageBatches]:
    """The activations of the model, until its text or its images end."""
    if is_vision(cfg):
        batches = image_batches(cfg, once=True)
        try:
            yield batches
        finally:
            batches.close()
        return
    overrides = model_and_text(cfg)
    store = ActivationsStore.from_config(
        overrides["override_model"], cfg, overrides.get("override_dataset")
    )
    contexts = Contexts(store)
    try:
        yield LLMBatches(store, contexts, once=True)
    finally:
        contexts.close()


def _begun(
    folder: Path, source: Mapping[str, Any], cfg: LanguageModelSAERunnerConfig[Any]
) -> ActivationCache:
    if not (folder / CACHE_FILENAME).exists():
        return ActivationCache(
            folder=folder, source=source, d_in=cfg.sae.d_in, n_planned=cfg.training_tokens
        )
    cache = ActivationCache.read(folder)
    cache.check_source(source)
    cache.n_planned = cfg.training_tokens
    return cache


def _write(
    cache: ActivationCache, batches: LLMBatches | ImageBatches, n_held_out: int, n_per_file: int
) -> None:
    if cache.files:
        batches.seek(cache.files[-1].position)
    else:
        _hold_out(cache, batches, n_held_out)
    with progress_bar(
        total=cache.n_planned,
        initial=cache.n_activations,
        desc="Caching activations",
        unit=" token",
        unit_scale=True,
    ) as progress:
        while (missing := cache.n_planned - cache.n_activations) > 0:
            found = _next_file(batches, min(n_per_file, missing), cache.dtype)
            if found is None:
                break
            cache.add(found, batches.position())
            progress.update(len(found.activations))
    if not cache.files:
        raise InputError(
            f"the data are too short: there is no activation beside the {n_held_out} that are held "
            "out; use more text or more images"
        )
    if missing > 0:
        logger.warning(
            f"the text ends after {cache.n_activations:,} of {cache.n_planned:,} activations, and "
            "so does the cache"
        )
        cache.n_planned = cache.n_activations
        cache.save()


def _hold_out(cache: ActivationCache, batches: LLMBatches | ImageBatches, n: int) -> None:
    if isinstance(batches, ImageBatches):
        held_out = batches.held_out(n, cache.dtype)
        if held_out is not None:
            _check_finite(held_out.activations)
            save_activations(cache.folder / HELD_OUT_FILENAME, *held_out)
        return
    found = _next_file(batches, n, cache.dtype)
    if found is not None:
        text = batches.text_of(found)
        cache.write(HELD_OUT_FILENAME, found, text.metadata() if text else None)


def _next_file(batches: TokenBatches, n: int, dtype: torch.dtype) -> TokenActivations | None:
    """At least `n` activations in whole contexts, fewer where the data end, None at their end."""
    found = joined(batches, n, dtype, n_ahead=2)
    if found is not None:
        _check_finite(found.activations)
    return found


def _check_finite(activations: torch.Tensor) -> None:
    if not activations.isfinite().all():
        raise InputError(
            f"an activation is NaN, Inf or does not fit {activations.dtype}; store them in another "
            "precision (--stored-as bfloat16 or float32)"
        )
