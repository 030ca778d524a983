"""Activations that are read chunk by chunk, the same on every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.patch_images import Origin
from sae_lens_isae.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

DEFAULT_N_SAMPLES = 4096
"""Drawn from a model or a generator, which have no end of their own."""


class NumberedRows(NamedTuple):
    """Some of the activations of a source, and their numbers in it."""

    activations: Float[torch.Tensor, "batch d_in"]
    numbers: Int[torch.Tensor, " batch"]


def _unknown() -> Origin | None:
    return None


@dataclass(frozen=True)
class ActivationSource:
    """Activations that are read chunk by chunk, never all at once.

    Iterating again gives the same activations in the same order.
    """

    n_samples: int
    d_in: int
    description: str
    chunks: Callable[[], Iterator[Float[torch.Tensor, "chunk d_in"]]]
    """Chunks of any size; what exceeds `n_samples` is dropped."""
    origin: Callable[[], Origin | None] = _unknown
    """The tokens or image patches of the activations, where they are known; asked for after a whole
    pass."""
    model: Callable[[], HookedRootModule] | None = None
    """Loads the model that the activations are of; None where that is not wanted."""

    def non_zero_batches(self, size: int, description: str) -> Iterator[NumberedRows]:
        """`batches` without all-zero activations, under a progress bar: masked tokens, which any
        SAE without bias rebuilds exactly.

        Raises:
            InputError: All activations are zero.
        """
        empty = True
        n = 0
        with progress_bar(
            total=self.n_samples, desc=description, unit="sample", leave=False
        ) as progress:
            for x in self.batches(size):
                kept = (x != 0).any(-1)
                if kept.any():
                    empty = False
                    yield NumberedRows(x[kept], n + kept.nonzero()[:, 0].cpu())
                n += len(x)
                progress.update(len(x))
        if empty:
            raise InputError(f"{self.description}: all {self.n_samples} activations are zero")

    def batches(self, size: int) -> Iterator[Float[torch.Tensor, "batch d_in"]]:
        """The activations in float32, at most `size` at a time.

        Raises:
            InputError: An activation is NaN or Inf, or there are fewer than `n_samples`.
        """
        left = self.n_samples
        for chunk in self.chunks():
            for part in chunk[:left].split(size):
                batch = part.float()
                if not batch.isfinite().all():
                    raise InputError(
                        f"{self.description}: the activations hold NaN or Inf in float32"
                    )
                left -= len(batch)
                yield batch
            if left <= 0:
                return
        raise InputError(
            f"{self.description}: {self.n_samples - left} activations came, {self.n_samples} were "
            "expected"
        )
