"""Sparse codes as indices and values, and what every solver needs of a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.sparse import sum_rows, to_dense


@dataclass(frozen=True)
class SparseCodes:
    """Codes held as indices and values; coefficients refer to unit-norm atoms.

    Rows with fewer than `width` entries are filled up with value 0 at an arbitrary index.
    """

    indices: Int[torch.Tensor, "samples width"]
    values: Float[torch.Tensor, "samples width"]
    d_sae: int

    @classmethod
    def from_dense(cls, codes: Float[torch.Tensor, "samples d_sae"]) -> SparseCodes:
        """The non-zero entries of dense codes, as wide as the densest row."""
        width = int((codes != 0).sum(-1).max()) if len(codes) else 0
        indices = codes.abs().topk(width, dim=-1).indices
        return cls(indices, codes.gather(-1, indices), codes.shape[-1])

    @classmethod
    def concatenate(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """Codes of several batches as those of one."""
        width = max((part.indices.shape[1] for part in parts), default=0)

        def widened(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x, (0, width - x.shape[1]))

        return cls(
            torch.cat([widened(part.indices) for part in parts]),
            torch.cat([widened(part.values) for part in parts]),
            parts[0].d_sae,
        )

    def pick(self, rows: Int[torch.Tensor, " picked"] | slice) -> SparseCodes:
        """Some of the samples."""
        return SparseCodes(self.indices[rows], self.values[rows], self.d_sae)

    def rolled(self) -> SparseCodes:
        """Every sample with the code of the one before it: what is shared then is so by chance."""
        return SparseCodes(self.indices.roll(1, 0), self.values.roll(1, 0), self.d_sae)

    def largest(self, n: int) -> SparseCodes:
        """The n largest magnitudes of every sample."""
        places = self.values.abs().topk(min(n, self.values.shape[1]), dim=-1).indices
        return SparseCodes(
            self.indices.gather(1, places), self.values.gather(1, places), self.d_sae
        )

    def to_dense(self) -> Float[torch.Tensor, "samples d_sae"]:
        """The codes with their zeros."""
        return to_dense(self.indices, self.values, self.d_sae)

    def decode(
        self, dictionary: Float[torch.Tensor, "d_sae d_in"]
    ) -> Float[torch.Tensor, "samples d_in"]:
        """The combination of atoms that the codes stand for, without bias.

        Args:
            dictionary: Atoms; they are normalised here.
        """
        return sum_rows(unit_atoms(dictionary), self.indices, self.values)


def unit_atoms(
    dictionary: Float[torch.Tensor, "d_sae d_in"],
) -> Float[torch.Tensor, "d_sae d_in"]:
    """The atoms at unit norm, in float32 or more; an all-zero atom stays zero."""
    return torch.nn.functional.normalize(_in_range(dictionary)[0], dim=-1)


def atom_norms(
    dictionary: Float[torch.Tensor, "d_sae d_in"],
) -> Float[torch.Tensor, " d_sae"]:
    """The norm of every atom, in float32 or more; 0 for an all-zero atom alone."""
    atoms, scale = _in_range(dictionary)
    return atoms.norm(dim=-1) * scale[:, 0]


def _in_range(
    dictionary: Float[torch.Tensor, "d_sae d_in"],
) -> tuple[Float[torch.Tensor, "d_sae d_in"], Float[torch.Tensor, "d_sae 1"]]:
    """Atoms whose squares neither vanish nor overflow, and what they were divided by."""
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    atoms = dictionary.detach().to(dtype)
    largest = atoms.abs().amax(-1, keepdim=True)
    extreme = (largest > 0) & ((largest < _SMALLEST_ENTRY) | (largest > _LARGEST_ENTRY))
    scale = torch.where(extreme, largest, 1.0)
    return atoms / scale, scale


_SMALLEST_ENTRY, _LARGEST_ENTRY = 1e-10, 1e15
GRAM_BYTES = 6 * 2**30
"""Largest Gram matrix that a solver builds; beyond it correlations are taken with the residual."""


def gram_fits(atoms: Float[torch.Tensor, "d_sae d_in"]) -> bool:
    """Whether a solver may build the Gram matrix of these atoms."""
    return len(atoms) ** 2 * atoms.element_size() <= GRAM_BYTES


@torch.no_grad()
def gram_matrix(
    dictionary: Float[torch.Tensor, "d_sae d_in"], block: int = 2048
) -> Float[torch.Tensor, "d_sae d_sae"]:
    """Inner products of the unit-norm atoms: 1 GB in float32 for 16,384 of them.

    Solvers take it as `gram=`, so that several of them can share one.
    """
    atoms = unit_atoms(dictionary)
    d_sae = len(atoms)
    gram = atoms.new_empty(d_sae, d_sae)
    # the half above the diagonal is copied, which saves nearly half of the arithmetic
    for start in range(0, d_sae, block):
        stop = min(start + block, d_sae)
        torch.mm(atoms[start:stop], atoms[start:].T, out=gram[start:stop, start:])
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram


def check_problem(
    x: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int | Int[torch.Tensor, " samples"],
    n_excluded: int = 0,
) -> Int[torch.Tensor, " samples"]:
    """The number of atoms for every sample, on the CPU.

    Raises:
        InputError: Shapes do not fit, or k is out of range.
    """
    d_sae, d_in = dictionary.shape
    if x.ndim != 2 or x.shape[1] != d_in:
        raise InputError(f"x must be [samples, d_in = {d_in}], got {tuple(x.shape)}")
    if isinstance(k, int):
        if not 1 <= k <= d_sae - n_excluded:
            raise InputError(_range_message(d_sae, n_excluded, str(k), at_least=1))
        return torch.full((len(x),), k)
    if k.shape != (len(x),) or k.is_floating_point():
        raise InputError(
            f"k must be an int or integers [samples = {len(x)}], got {k.dtype} {tuple(k.shape)}"
        )
    k = k.cpu().long()
    if len(k) and not (k.min() >= 0 and k.max() <= d_sae - n_excluded):
        found = f"{int(k.min())} to {int(k.max())}"
        raise InputError(_range_message(d_sae, n_excluded, found, at_least=0))
    return k


def keep_largest(
    scores: Float[torch.Tensor, "samples d_sae"], k: Int[torch.Tensor, " samples"]
) -> tuple[Int[torch.Tensor, "samples width"], Float[torch.Tensor, "samples width"]]:
    """Indices of the k largest scores of every sample, and 1 where a place is used, else 0."""
    width = int(k.max()) if len(k) else 0
    indices = scores.topk(width, dim=-1).indices
    places = torch.arange(width, device=scores.device)
    return indices, (places < k.to(scores.device)[:, None]).to(scores.dtype)


def _range_message(d_sae: int, n_excluded: int, found: str, at_least: int) -> str:
    of = f"d_sae = {d_sae}" + (f" less {n_excluded} excluded atoms" if n_excluded else "")
    return f"k must be between {at_least} and {of}, got {found}"
