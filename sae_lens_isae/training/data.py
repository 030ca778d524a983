"""Where the activations of a training run come from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import ActivationsStore, LanguageModelSAERunnerConfig
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors.torch import load_file

from sae_lens_isae.distributed import n_ranks, rank
from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME, ActivationCache
from sae_lens_isae.training.activation_stream import (
    ActivationStream,
    MixedActivations,
    settings_of,
)
from sae_lens_isae.training.cached import (
    CachedBatches,
    ShuffledActivations,
    files_of_rank,
    fits_in_memory,
    load_rows,
)
from sae_lens_isae.training.contexts import Contexts
from sae_lens_isae.training.held_out import HeldOut
from sae_lens_isae.training.llm_batches import Batches, FreshBatches, LLMBatches, StoredBatches


def _nothing_to_load(folder: Path) -> None:
    """SAELens does not say how far it has read in a cache, and writes no checkpoints on images."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The activations of a run."""

    seeds: Mapping[str, int]
    """Of the order of every SAE, by its name."""
    stream: ActivationStream
    held_out: Callable[[int], HeldOut]
    """So many activations that no SAE was trained on, once training is over."""
    load_elsewhere: Callable[[Path], None] = _nothing_to_load
    """Go on near where a checkpoint of SAELens itself was written."""


@contextlib.contextmanager
def opened_data(
    cfg: LanguageModelSAERunnerConfig[Any],
    store: ActivationsStore,
    seeds: Mapping[str, int],
    cache: ActivationCache | None = None,
    in_memory: bool | None = None,
) -> Generator[TrainingData]:
    """The activations of a model on its text, or those of a cache.

    Args:
        store: Of the run; evaluations read on in the text where training stopped.
        seeds: Of the order of every SAE, by its name.
        cache: In place of the model.
        in_memory: Whether it is kept there as a whole; by default if it fits.
    """
    if cache is not None:
        with opened_cache(cfg, store.device, seeds, cache, in_memory) as data:
            yield data
        return
    with contextlib.ExitStack() as open_now:
        if store.cached_activation_dataset is not None:
            batches, load_elsewhere = StoredBatches(store), _nothing_to_load
        else:
            contexts = Contexts(store, (rank(), n_ranks()))
            open_now.callback(contexts.close)
            batches, load_elsewhere = LLMBatches(store, contexts), partial(_skip_texts, contexts)
        yield TrainingData(
            seeds=dict(seeds),
            stream=mixed(cfg, seeds, batches, store.device, settings_of(store)),
            held_out=partial(next_activations, batches),
            load_elsewhere=load_elsewhere,
        )


@contextlib.contextmanager
def opened_cache(
    cfg: LanguageModelSAERunnerConfig[Any],
    device: torch.device,
    seeds: Mapping[str, int],
    cache: ActivationCache,
    in_memory: bool | None,
) -> Generator[TrainingData]:
    """The activations of a cache.

    Args:
        device: Where batches, and what is kept in memory, lie.
    """
    names = files_of_rank(cache, rank(), n_ranks())
    if in_memory is None:
        in_memory = fits_in_memory(cache.n_bytes // n_ranks(), device)
    batch_size = cfg.train_batch_size_tokens
    settings = {
        "cache": dict(cache.source),
        "n_activations": cache.n_activations,
        "in_memory": in_memory,
        "train_batch_size_tokens": batch_size,
    }
    with contextlib.ExitStack() as open_now:
        if in_memory:
            rows = load_rows(cache, names, device)
            stream = ShuffledActivations(rows, seeds, batch_size // n_ranks(), settings)
        else:
            batches = CachedBatches(cache, names, cfg.seed, device)
            open_now.callback(batches.close)
            settings |= {name: getattr(cfg, name) for name in _BUFFER_SETTINGS}
            stream = mixed(cfg, seeds, batches, device, settings)
        yield TrainingData(
            seeds=dict(seeds),
            stream=stream,
            held_out=partial(held_out_of_cache, cache),
        )


_BUFFER_SETTINGS = ("context_size", "n_batches_in_buffer", "activations_mixing_fraction")


def mixed(
    cfg: LanguageModelSAERunnerConfig[Any],
    seeds: Mapping[str, int],
    batches: Batches,
    device: torch.device,
    settings: Mapping[str, Any],
    context_size: int | None = None,
) -> MixedActivations:
    """Batches from a buffer of the size that the config says.

    Args:
        context_size: Patches of an image, in place of the config's.
    """
    n_used = context_size or len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    return MixedActivations(
        batches,
        seeds,
        batch_size=cfg.train_batch_size_tokens // n_ranks(),
        buffer_size=cfg.n_batches_in_buffer * n_used // n_ranks(),
        mix_fraction=cfg.activations_mixing_fraction,
        device=device,
        settings=settings,
    )


def _skip_texts(contexts: Contexts, folder: Path) -> None:
    state = load_file(folder / ACTIVATIONS_STORE_STATE_FILENAME)
    contexts.start_at_text(int(state["n_dataset_processed"]))


def held_out_of_cache(cache: ActivationCache, n: int) -> HeldOut:
    """The first activations that are held out of a cache."""
    rows = cache.activations(HELD_OUT_FILENAME).float()
    return HeldOut(rows, cache.origin(HELD_OUT_FILENAME)).first(n)


def next_activations(batches: FreshBatches, n: int) -> HeldOut:
    """All from data after those of the training, unless the data had to be read again."""
    if batches.position()[0]:
        warnings.warn(
            "the data were read more than once, so the activations that are kept beside the SAEs "
            "were trained on",
            stacklevel=2,
        )
    found = batches.held_out(n)
    assert found is not None
    return found.first(n)
