"""Samples on which a latent is active: the strongest, and some of middling strength."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int

N_STRONGEST = 5
"""Of each sign."""
N_MIDDLING = 3
_N_SAMPLED = 16


class Example(NamedTuple):
    """A sample that a latent is active on."""

    row: int
    """Number of the sample."""
    activation: float


class LatentExamples:
    """Collected over a stream of codes.

    Args:
        seed: Of the draw among the samples of middling strength.
    """

    def __init__(self, d_sae: int, seed: int = 0) -> None:
        self._positive = _Largest(N_STRONGEST, d_sae)
        self._negative = _Largest(N_STRONGEST, d_sae)
        self._sampled = _Largest(_N_SAMPLED, d_sae)
        self._generator = torch.Generator().manual_seed(seed)

    def add(
        self, codes: Float[torch.Tensor, "batch d_sae"], rows: Int[torch.Tensor, " batch"]
    ) -> None:
        """Look at a batch of codes, whose samples have these numbers."""
        self._positive.add(codes.clamp(min=0), codes, rows)
        self._negative.add(-codes.clamp(max=0), codes, rows)
        # the largest of random keys are a uniform draw among the samples that have one
        drawn = torch.rand(codes.shape, generator=self._generator).to(codes.device)
        self._sampled.add(torch.where(codes != 0, drawn + 1, 0.0), codes, rows)

    def of(self, latent: int) -> list[Example]:
        """From the largest activation to the smallest: the strongest of each sign, and between them
        those of the sampled that are nearest to half of the strongest."""
        strongest = self._positive.of(latent) + self._negative.of(latent)
        if not strongest:
            return []
        half = max(abs(example.activation) for example in strongest) / 2
        others = [example for example in self._sampled.of(latent) if example not in strongest]
        others.sort(key=lambda example: abs(abs(example.activation) - half))
        return sorted(strongest + others[:N_MIDDLING], key=lambda e: -e.activation)


class _Largest:
    """For each latent the samples with the largest keys above 0."""

    def __init__(self, n: int, d_sae: int) -> None:
        self._keys = torch.zeros(n, d_sae)
        self._codes = torch.zeros(n, d_sae)
        self._rows = torch.zeros(n, d_sae, dtype=torch.long)

    def add(
        self,
        keys: Float[torch.Tensor, "batch d_sae"],
        codes: Float[torch.Tensor, "batch d_sae"],
        rows: Int[torch.Tensor, " batch"],
    ) -> None:
        n = len(self._keys)
        # one latent after the other in memory: many times as fast on a CPU
        best, index = keys.T.contiguous().topk(min(n, len(keys)), dim=1)
        best, index = best.T, index.T
        found = (best.cpu(), codes.gather(0, index).cpu(), rows.to(index.device)[index].cpu())
        parts = (self._keys, self._codes, self._rows)
        keys, codes, rows = (torch.cat(pair) for pair in zip(parts, found, strict=True))
        self._keys, order = keys.topk(n, dim=0)
        self._codes, self._rows = codes.gather(0, order), rows.gather(0, order)

    def of(self, latent: int) -> list[Example]:
        n = int((self._keys[:, latent] > 0).sum())
        rows, codes = self._rows[:n, latent].tolist(), self._codes[:n, latent].tolist()
        return [Example(row, code) for row, code in zip(rows, codes, strict=True)]
