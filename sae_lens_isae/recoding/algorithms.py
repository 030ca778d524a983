"""The sparse coding algorithms of paper 4 on an SAE's dictionary, each with the encoder's own k."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.solvers import SparseCodes, gd_sparse, gram_matrix, iht, omp
from sae_lens_isae.solvers.codes import gram_fits

ENCODER = "encoder"
OMP = "OMP"
OMP_EXCLUDE = "OMP-exclude-top"
"""Followed by how many of the encoder's largest features are forbidden."""
IHT_ENCODER = "IHT-from-encoder"
IHT = "IHT-random"
GD = "GD-sparse"

_BATCH = 256


@dataclass(frozen=True)
class Samples:
    """Activations and how the SAE codes them."""

    x: Float[torch.Tensor, "samples d_in"]
    target: Float[torch.Tensor, "samples d_in"]
    """What the atoms are to explain: x less what the decoder adds whatever the code."""
    codes: SparseCodes
    """The encoder's."""
    k: Int[torch.Tensor, " samples"]
    """How many latents the encoder uses."""

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, rows: Int[torch.Tensor, " picked"] | slice) -> Samples:
        """Some of the samples."""
        k = self.k[rows.cpu() if isinstance(rows, torch.Tensor) else rows]
        return Samples(self.x[rows], self.target[rows], self.codes.pick(rows), k)

    def limited_to(self, k: int) -> Samples:
        """With no more than the encoder's k largest latents."""
        return Samples(self.x, self.target, self.codes.largest(k), self.k.clamp_max(k))


class Recoder:
    """Codes on the dictionary of one SAE, in units of its unit-norm atoms.

    An SAE whose codes have signs gets solvers that rank magnitudes; else they follow Algorithms 1
    to 3, where only OMP's least squares may come out negative.
    """

    def __init__(self, model: LinearModel, seed: int = 0) -> None:
        self.model = model
        self._seed = seed

    def encode(self, x: Float[torch.Tensor, "samples d_in"]) -> Samples:
        """The encoder's codes.

        Raises:
            ValueError: An activation is NaN or Inf, or d_in differs.
        """
        if x.ndim != 2 or x.shape[1] != self.model.d_in:
            raise InputError(
                f"activations are {tuple(x.shape)}, the SAE needs [samples, {self.model.d_in}]"
            )
        x = x.to(self.model.device).float()
        if not x.isfinite().all():
            raise InputError("the activations hold NaN or Inf")
        parts: list[SparseCodes] = []
        targets: list[torch.Tensor] = []
        for batch in x.split(_BATCH):
            code = self.model.encode(batch)
            parts.append(SparseCodes.from_dense(code.codes))
            targets.append(batch - code.offset)
        codes = SparseCodes.concatenate(parts)
        return Samples(x, torch.cat(targets), codes, (codes.values != 0).sum(-1).cpu())

    def recode(
        self, method: str, samples: Samples, n_starts: int = 1, progress: str | None = None
    ) -> list[SparseCodes]:
        """Codes by one algorithm, one for every random start.

        Raises:
            ValueError: There is no such algorithm.
        """
        x, atoms, k, signed = samples.target, self.model.atoms, samples.k, self.model.signed
        selection = "absolute" if signed else "signed"
        if method == ENCODER:
            return [samples.codes]
        if method == OMP or method.startswith(OMP_EXCLUDE):
            exclude = None
            if method != OMP:
                exclude = _largest(samples.codes, int(method.removeprefix(OMP_EXCLUDE)))
                # a sample that uses nearly all latents has no others left
                k = k.clamp_max(len(atoms) - exclude.shape[1])
            return [
                omp(
                    x,
                    atoms,
                    k,
                    selection=selection,
                    exclude=exclude,
                    gram=self._gram,
                    progress=progress,
                )
            ]
        if method in (IHT_ENCODER, IHT):
            starts = [samples.codes] if method == IHT_ENCODER else [None] * n_starts
            return [
                iht(
                    x,
                    atoms,
                    k,
                    init=start,
                    signed=signed,
                    seed=self._seed + i,
                    gram=self._gram,
                    progress=progress,
                )
                for i, start in enumerate(starts)
            ]
        if method == GD:
            # all starts at once: the dictionary is read as often as for one of them
            found = gd_sparse(
                x.repeat(n_starts, 1),
                atoms,
                k.repeat(n_starts),
                signed=signed,
                seed=self._seed,
                progress=progress,
            )
            return [found.pick(slice(i * len(x), (i + 1) * len(x))) for i in range(n_starts)]
        raise InputError(f"there is no algorithm {method!r}")

    @cached_property
    def _gram(self) -> Float[torch.Tensor, "d_sae d_sae"] | None:
        atoms = self.model.atoms
        return gram_matrix(atoms) if gram_fits(atoms) else None


def _largest(codes: SparseCodes, n: int) -> Int[torch.Tensor, "samples excluded"]:
    """The latents of the n largest magnitudes; a sample with fewer repeats its largest."""
    found = codes.largest(n)
    return torch.where(found.values != 0, found.indices, found.indices[:, :1])
