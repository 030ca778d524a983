"""Gradient descent with an adaptive l1 penalty ('GD-sparse'): 'Which Sparse Code?', Algorithm 3."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch.optim import Adam
from tqdm.auto import tqdm

from sae_lens_isae.progress import progress_bar
from sae_lens_isae.solvers.codes import (
    SparseCodes,
    check_problem,
    keep_largest,
    unit_atoms,
)

_FIRST_PENALTY = 1e-3
_ADAPT_EVERY = 50
_START_SCALE = 0.01
_CHUNK_NUMBERS = 2**27


@torch.no_grad()
def gd_sparse(
    x: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int | Int[torch.Tensor, " samples"],
    *,
    lr: float = 1e-3,
    n_iterations: int = 500,
    signed: bool = False,
    seed: int = 0,
    progress: str | None = None,
) -> SparseCodes:
    """Adam on |x - D z|^2 + lambda |z|_1, then the k largest coefficients.

    Every sample has its own lambda: each 50 steps it grows by half where more than 1.2 k
    coefficients are non-zero, and shrinks to 0.7 of itself where fewer than 0.8 k are. It costs
    4 samples d_sae d_in flops a step, independent of the sparsity.

    Args:
        x: Signals, the decoder's bias subtracted.
        dictionary: Atoms; they are normalised here, and coefficients refer to unit-norm atoms.
        k: Atoms per sample, one number or one for each (which may be 0).
        signed: Let coefficients be negative: they start on both sides of 0, and a step that
            crosses 0 ends there, which is what makes the l1 penalty sparse without the bound at 0.
        seed: Of the random start, |x| / 100 / sqrt(d_sae) at most.
        progress: Label of a progress bar; none without it.

    Raises:
        InputError: k is out of range, or shapes differ.
    """
    k_each = check_problem(x, dictionary, k).to(dictionary.device)
    atoms = unit_atoms(dictionary)
    x = x.to(atoms.device, atoms.dtype)
    generator = torch.Generator().manual_seed(seed)
    chunks = torch.arange(len(x)).split(max(1, _CHUNK_NUMBERS // len(atoms)))
    bar = progress_bar(
        total=len(chunks) * n_iterations,
        desc=progress,
        disable=progress is None,
        unit="step",
        leave=False,
    )
    width = int(k_each.max()) if len(x) else 0
    indices = torch.zeros(len(x), width, dtype=torch.long, device=x.device)
    values = x.new_zeros(len(x), width)
    for rows in chunks:
        start = torch.rand(len(rows), len(atoms), generator=generator).to(x.device, x.dtype)
        if signed:
            start = 2 * start - 1
        at = rows.to(x.device)
        z = _START_SCALE * x[at].norm(dim=-1, keepdim=True) / len(atoms) ** 0.5 * start
        z = _descend(x[at], atoms, k_each[at], z, lr, n_iterations, signed, bar)
        found, used = keep_largest(z.abs() if signed else z, k_each[at])
        indices[at, : found.shape[1]], values[at, : found.shape[1]] = (
            found,
            z.gather(1, found) * used,
        )
    bar.close()
    return SparseCodes(indices, values, len(atoms))


def _descend(
    x: Float[torch.Tensor, "samples d_in"],
    atoms: Float[torch.Tensor, "d_sae d_in"],
    k: Int[torch.Tensor, " samples"],
    start: Float[torch.Tensor, "samples d_sae"],
    lr: float,
    n_iterations: int,
    signed: bool,
    bar: tqdm[Any],
) -> Float[torch.Tensor, "samples d_sae"]:
    z = torch.nn.Parameter(start)
    penalty = x.new_full((len(x), 1), _FIRST_PENALTY)
    optimizer = Adam([z], lr=lr)
    for step in range(1, n_iterations + 1):
        before = z.sign()
        gradient = (z @ atoms - x).mul_(2) @ atoms.T
        gradient.add_(before * penalty)
        # each sample's gradient is clipped to norm 1
        gradient.div_(gradient.norm(dim=-1, keepdim=True).clamp_min(1))
        z.grad = gradient
        optimizer.step()
        if signed:
            z.masked_fill_(z.sign() == -before, 0)
        else:
            z.clamp_min_(0)
        if step % _ADAPT_EVERY == 0:
            active = (z != 0).sum(-1)
            penalty[active > 1.2 * k] *= 1.5
            penalty[active < 0.8 * k] *= 0.7
        bar.update()
    return z.detach()
