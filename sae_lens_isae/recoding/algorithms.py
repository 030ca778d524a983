"""The sparse coding algorithms of 'Which Sparse Code?' on an SAE's dictionary.

`algorithms` lists them. Each codes the same samples with the encoder's own number of latents. Where
codes have signs, solvers rank magnitudes. Elsewhere they follow Algorithms 1 to 3 of the paper, in
which only OMP's least squares may come out negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.solvers import SparseCodes, gd_sparse, gram_matrix, iht, omp
from sae_lens_isae.solvers.codes import gram_fits

_BATCH = 256


@dataclass(frozen=True)
class Samples:
    """Activations and how the SAE codes them."""

    x: Float[torch.Tensor, "samples d_in"]
    target: Float[torch.Tensor, "samples d_in"]
    """What the atoms are to explain: x without the decoder's offset."""
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


@dataclass(frozen=True, kw_only=True)
class CodingProblem:
    """What every algorithm is given. Codes are in units of the unit-norm atoms."""

    samples: Samples
    atoms: Float[torch.Tensor, "d_sae d_in"]
    signed: bool
    """Codes have signs."""
    gram: Float[torch.Tensor, "d_sae d_sae"] | None
    """Of the atoms, where it fits in memory."""
    seed: int
    n_starts: int = 1
    """Random starts, for algorithms that have one."""
    progress: str | None = None
    """Label of the progress bar."""


@dataclass(frozen=True)
class Algorithm:
    """A way to code samples on a dictionary."""

    name: str
    solve: Callable[[CodingProblem], list[SparseCodes]]
    """Codes, one for every random start."""


def _encoder(problem: CodingProblem) -> list[SparseCodes]:
    return [problem.samples.codes]


def _omp(problem: CodingProblem, n_excluded: int = 0) -> list[SparseCodes]:
    samples, k, exclude = problem.samples, problem.samples.k, None
    if n_excluded:
        exclude = _largest(samples.codes, n_excluded)
        # a sample that uses nearly all latents has no others left
        k = k.clamp_max(len(problem.atoms) - exclude.shape[1])
    codes = omp(
        samples.target,
        problem.atoms,
        k,
        selection="absolute" if problem.signed else "signed",
        exclude=exclude,
        gram=problem.gram,
        progress=problem.progress,
    )
    return [codes]


def _iht(problem: CodingProblem, *, from_encoder: bool) -> list[SparseCodes]:
    samples = problem.samples
    starts = [samples.codes] if from_encoder else [None] * problem.n_starts
    return [
        iht(
            samples.target,
            problem.atoms,
            samples.k,
            init=start,
            signed=problem.signed,
            seed=problem.seed + i,
            gram=problem.gram,
            progress=problem.progress,
        )
        for i, start in enumerate(starts)
    ]


def _gd_sparse(problem: CodingProblem) -> list[SparseCodes]:
    n, n_starts = len(problem.samples), problem.n_starts
    # all starts at once: the dictionary is read as often as for one of them
    found = gd_sparse(
        problem.samples.target.repeat(n_starts, 1),
        problem.atoms,
        problem.samples.k.repeat(n_starts),
        signed=problem.signed,
        seed=problem.seed,
        progress=problem.progress,
    )
    return [found.pick(slice(i * n, (i + 1) * n)) for i in range(n_starts)]


ENCODER = Algorithm("encoder", _encoder)
OMP = Algorithm("OMP", _omp)
IHT_ENCODER = Algorithm("IHT-from-encoder", partial(_iht, from_encoder=True))
IHT = Algorithm("IHT-random", partial(_iht, from_encoder=False))
GD = Algorithm("GD-sparse", _gd_sparse)


def omp_without(n: int) -> Algorithm:
    """OMP that must do without the encoder's n largest latents of each sample."""
    return Algorithm(f"OMP-exclude-top{n}", partial(_omp, n_excluded=n))


def algorithms(exclude: Iterable[int]) -> list[Algorithm]:
    """All that are compared with the encoder.

    Args:
        exclude: Numbers of latents that OMP must do without, an algorithm each.
    """
    return [OMP, *map(omp_without, exclude), IHT_ENCODER, IHT, GD]


class Recoder:
    """Runs algorithms on the dictionary of one SAE."""

    def __init__(self, linear: LinearSAE, seed: int = 0) -> None:
        self.linear = linear
        self._seed = seed

    def encode(self, x: Float[torch.Tensor, "samples d_in"]) -> Samples:
        """The encoder's codes.

        Raises:
            InputError: An activation is NaN or Inf, or d_in differs.
        """
        if x.ndim != 2 or x.shape[1] != self.linear.d_in:
            raise InputError(
                f"activations are {tuple(x.shape)}, the SAE needs [samples, {self.linear.d_in}]"
            )
        x = x.to(self.linear.device).float()
        if not x.isfinite().all():
            raise InputError("the activations hold NaN or Inf")
        parts: list[SparseCodes] = []
        targets: list[torch.Tensor] = []
        for batch in x.split(_BATCH):
            code = self.linear.encode(batch)
            parts.append(SparseCodes.from_dense(code.codes))
            targets.append(batch - code.offset)
        codes = SparseCodes.concatenate(parts)
        return Samples(x, torch.cat(targets), codes, (codes.values != 0).sum(-1).cpu())

    def recode(
        self,
        algorithm: Algorithm,
        samples: Samples,
        n_starts: int = 1,
        progress: str | None = None,
    ) -> list[SparseCodes]:
        """Codes by one algorithm, one for every random start."""
        problem = CodingProblem(
            samples=samples,
            atoms=self.linear.atoms,
            signed=self.linear.signed,
            gram=self._gram,
            seed=self._seed,
            n_starts=n_starts,
            progress=progress,
        )
        return algorithm.solve(problem)

    @cached_property
    def _gram(self) -> Float[torch.Tensor, "d_sae d_sae"] | None:
        atoms = self.linear.atoms
        return gram_matrix(atoms) if gram_fits(atoms) else None


def _largest(codes: SparseCodes, n: int) -> Int[torch.Tensor, "samples excluded"]:
    """The latents of the n largest magnitudes; a sample with fewer repeats its largest."""
    found = codes.largest(n)
    return torch.where(found.values != 0, found.indices, found.indices[:, :1])
