"""Iterative hard thresholding (Blumensath & Davies 2008): 'Which Sparse Code?', Algorithm 2."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.sparse import sum_rows
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.solvers.codes import (
    SparseCodes,
    check_problem,
    gram_fits,
    gram_matrix,
    keep_largest,
    unit_atoms,
)

_RANDOM_SCALE = 0.1
"""Random starts have coefficients between 0 and this (Algorithm 2)."""
_CHUNK_NUMBERS = 2**26
_GROUP_CPU = 16


@torch.no_grad()
def iht(
    x: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int | Int[torch.Tensor, " samples"],
    *,
    init: SparseCodes | None = None,
    step_size: float = 0.05,
    n_iterations: int = 300,
    signed: bool = False,
    seed: int = 0,
    gram: Float[torch.Tensor, "d_sae d_sae"] | None = None,
    progress: str | None = None,
) -> SparseCodes:
    """Gradient steps on |x - D z|^2 / 2, each followed by keeping the k largest coefficients.

    Args:
        x: Signals, the decoder's bias subtracted.
        dictionary: Atoms; they are normalised here, and coefficients refer to unit-norm atoms.
        k: Atoms per sample, one number or one for each (which may be 0).
        init: Where to start: the encoder's code asks whether it is a local optimum. Without it
            each sample starts from k random atoms with coefficients in [0, 0.1].
        signed: Keep the largest magnitudes; otherwise coefficients stay non-negative, as in the
            paper.
        seed: Of the random start.
        gram: `gram_matrix(dictionary)` where the caller has it. Otherwise it is built where memory
            allows.
        progress: Label of a progress bar; none without it.

    Raises:
        InputError: k is out of range, shapes differ, or init belongs to another problem.
    """
    k_each = check_problem(x, dictionary, k)
    atoms = unit_atoms(dictionary)
    x = x.to(atoms.device, atoms.dtype)
    if init is None:
        init = _random_start(x, len(atoms), k_each, seed)
    elif init.d_sae != len(atoms) or len(init.indices) != len(x):
        raise InputError(
            f"init holds {len(init.indices)} codes over {init.d_sae} atoms, expected {len(x)} over "
            f"{len(atoms)}"
        )
    if gram is None and gram_fits(atoms):
        gram = gram_matrix(atoms)
    width = int(k_each.max()) if len(x) else 0
    indices = torch.zeros(len(x), width, dtype=torch.long, device=x.device)
    values = x.new_zeros(len(x), width)
    order = k_each.argsort(descending=True)
    size = max(1, _CHUNK_NUMBERS // len(atoms))
    bar = progress_bar(
        total=len(x), desc=progress, disable=progress is None, unit="sample", leave=False
    )
    # without a Gram matrix all atoms are read at every step, for many samples as for few
    grouped = x.device.type == "cpu" and gram is not None
    for rows in order.split(min(size, _GROUP_CPU) if grouped else size):
        at = rows.to(x.device)
        start = x[at] @ atoms.T
        found, z = init.indices[at], init.values[at].to(x.dtype)
        for _ in range(n_iterations):
            if gram is None:
                gradient = sum_rows(atoms, found, z, minuend=x[at]) @ atoms.T
            else:
                gradient = sum_rows(gram, found, z, minuend=start)
            moved = gradient.mul_(step_size).scatter_add_(1, found, z)
            found, used = keep_largest(moved.abs() if signed else moved, k_each[rows])
            z = moved.gather(1, found) * used
            if not signed:
                z = z.clamp_min(0)
        indices[at, : found.shape[1]], values[at, : found.shape[1]] = found, z
        bar.update(len(rows))
    bar.close()
    return SparseCodes(indices, values, len(atoms))


def _random_start(
    x: Float[torch.Tensor, "samples d_in"], d_sae: int, k: Int[torch.Tensor, " samples"], seed: int
) -> SparseCodes:
    # a sample's start depends on the seed and its row, not on k or on how many samples there are
    scores, scale = (
        torch.rand(len(x), d_sae, generator=torch.Generator().manual_seed(2 * seed + i))
        for i in range(2)
    )
    indices, used = keep_largest(scores, k)
    values = _RANDOM_SCALE * scale.gather(1, indices) * used
    return SparseCodes(indices.to(x.device), values.to(x.device, x.dtype), d_sae)
