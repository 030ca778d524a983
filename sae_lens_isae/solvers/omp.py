"""Orthogonal matching pursuit (Pati et al. 1993), batched: the oracle solver of paper 1."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int

from sae_lens_isae.solvers.codes import (
    SparseCodes,
    check_problem,
    combine_rows,
    gram_matrix,
    unit_atoms,
)

Selection = Literal["absolute", "signed"]

_GROUP_CPU = 4
"""Samples worked on together on a CPU: the Gram rows of their supports stay in its cache, which is
several times faster than reading them from memory at every step."""
_CHUNK_NUMBERS = 2**28
"""Correlations, or entries of gathered atoms, held at once: 1 GB in float32."""
_GRAM_BYTES = 6 * 2**30
"""A larger Gram matrix is not built; correlations are then taken with the residual itself."""


@torch.no_grad()
def omp(
    x: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int | Int[torch.Tensor, " samples"],
    *,
    selection: Selection = "absolute",
    exclude: Int[torch.Tensor, "samples excluded"] | None = None,
    gram: Float[torch.Tensor, "d_sae d_sae"] | None = None,
) -> SparseCodes:
    """Code each sample with `k` atoms: repeatedly take the atom most correlated with the residual,
    then refit all coefficients by least squares.

    The inverse Cholesky factor of the support's Gram matrix grows by one row a step, so nothing is
    refitted from scratch. An atom that depends linearly on those taken gets coefficient 0, and the
    answer stays finite.

    Args:
        x: Signals, the decoder's bias subtracted.
        dictionary: Atoms; they are normalised here, and an all-zero atom is never useful.
        k: Atoms per sample, one number or one for each (which may be 0).
        selection: `absolute` takes the largest |correlation| (paper 1's oracle), `signed` the
            largest correlation (paper 4, Algorithm 1); the least squares is unconstrained in both.
        exclude: Atoms that a sample may not use (paper 4's OMP-exclude-top-N).
        gram: `gram_matrix(dictionary)` where the caller has it. Otherwise it is built where that
            saves work and memory allows.

    Returns:
        Codes in the order of selection.

    Raises:
        ValueError: k is out of range, shapes differ, or the selection is unknown.
    """
    if selection not in ("absolute", "signed"):
        raise ValueError(f"selection must be 'absolute' or 'signed', got {selection!r}")
    n_excluded = 0 if exclude is None else exclude.shape[1]
    k_each = check_problem(x, dictionary, k, n_excluded)
    atoms = unit_atoms(dictionary)
    d_sae, d_in = atoms.shape
    width = int(k_each.max()) if len(x) else 0
    x = x.to(atoms.device, atoms.dtype)
    if gram is None:
        small = d_sae * d_sae * atoms.element_size() <= _GRAM_BYTES
        # flops of the product below against those of the residual's correlations
        if small and d_sae <= 2 * width * len(x):
            gram = gram_matrix(atoms)
    codes = SparseCodes(
        torch.zeros(len(x), width, dtype=torch.long, device=x.device),
        x.new_zeros(len(x), width),
        d_sae,
    )
    # samples of like k together, the longest first, so that finished ones can be left out
    order = k_each.argsort(descending=True)
    chunk = max(1, _CHUNK_NUMBERS // max(d_sae, width * d_in))
    group = _GROUP_CPU if x.device.type == "cpu" and gram is not None else chunk
    for rows in order.split(chunk):
        start = x[rows.to(x.device)] @ atoms.T
        for members, correlation in zip(rows.split(group), start.split(group), strict=True):
            at = members.to(x.device)
            indices, values = _pursue(
                x[at],
                correlation,
                atoms,
                gram,
                k_each[members].tolist(),
                selection,
                None if exclude is None else exclude.to(x.device)[at],
            )
            codes.indices[at, : indices.shape[1]] = indices
            codes.values[at, : indices.shape[1]] = values
    return codes


def _pursue(
    x: Float[torch.Tensor, "group d_in"],
    start: Float[torch.Tensor, "group d_sae"],
    atoms: Float[torch.Tensor, "d_sae d_in"],
    gram: Float[torch.Tensor, "d_sae d_sae"] | None,
    k_each: list[int],
    selection: Selection,
    exclude: Int[torch.Tensor, "group excluded"] | None,
) -> tuple[Int[torch.Tensor, "group width"], Float[torch.Tensor, "group width"]]:
    """OMP of a group of samples, sorted by k, the largest first."""
    n, width = len(x), max(k_each, default=0)
    rows = torch.arange(n, device=x.device)
    indices = torch.zeros(n, width, dtype=torch.long, device=x.device)
    values = x.new_zeros(n, width)
    # row i of inverse_factor writes the i-th orthonormal direction with the chosen atoms
    inverse_factor = x.new_zeros(n, width, width)
    correlation = start.clone()
    score = torch.empty_like(start) if selection == "absolute" else correlation
    # squared length of what is new in an atom; below it float arithmetic sees only rounding
    tolerance = 16 * torch.finfo(x.dtype).eps
    for step in range(width):
        m = sum(k > step for k in k_each)
        taken = indices[:m, :step]
        if selection == "absolute":
            torch.abs(correlation[:m], out=score[:m])
        score[:m].scatter_(1, taken, -torch.inf)
        if exclude is not None:
            score[:m].scatter_(1, exclude[:m], -torch.inf)
        chosen = score[:m].argmax(-1)
        indices[:m, step] = chosen
        if gram is None:
            overlap = torch.einsum("nkd,nd->nk", atoms[taken], atoms[chosen])
        else:
            overlap = gram[taken, chosen[:, None]]
        factor = inverse_factor[:m, :step, :step]
        overlap = torch.einsum("nij,nj->ni", factor, overlap)
        norm = atoms[chosen].square().sum(-1) if gram is None else gram[chosen, chosen]
        new = norm - overlap.square().sum(-1)
        inverse = torch.where(new > tolerance, new.clamp_min(tolerance).rsqrt(), 0.0)
        row = inverse_factor[:m, step]
        row[:, :step] = -torch.einsum("ni,nij->nj", overlap, factor) * inverse[:, None]
        row[:, step] = inverse
        # the residual is orthogonal to what was taken, so the new direction sees the atom alone
        gain = correlation[rows[:m], chosen] * inverse
        values[:m, : step + 1] += gain[:, None] * row[:, : step + 1]
        if step + 1 == width:
            break
        support = indices[:m, : step + 1]
        if gram is None:
            fit = combine_rows(atoms, support, values[:m, : step + 1])
            correlation[:m] = (x[:m] - fit) @ atoms.T
        else:
            torch.sub(
                start[:m],
                combine_rows(gram, support, values[:m, : step + 1]),
                out=correlation[:m],
            )
    return indices, _refined(x, atoms, indices, values, inverse_factor)


def _refined(
    x: Float[torch.Tensor, "group d_in"],
    atoms: Float[torch.Tensor, "d_sae d_in"],
    indices: Int[torch.Tensor, "group width"],
    values: Float[torch.Tensor, "group width"],
    inverse_factor: Float[torch.Tensor, "group width width"],
) -> Float[torch.Tensor, "group width"]:
    """One step of iterative refinement: the factor squares the condition number, the residual of
    the data does not."""
    residual = x - combine_rows(atoms, indices, values)
    # places past a sample's k repeat atom 0, but their rows of the factor are zero
    missed = torch.einsum("nkd,nd->nk", atoms[indices], residual)
    directions = torch.einsum("nij,nj->ni", inverse_factor, missed)
    return values + torch.einsum("ni,nij->nj", directions, inverse_factor)
