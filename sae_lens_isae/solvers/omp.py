"""Orthogonal matching pursuit (Pati et al. 1993), batched: the oracle solver of Nelson et al.
2026."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.inverse_factor import add_atom
from sae_lens_isae.ops.sparse import sum_rows
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.solvers.codes import (
    SparseCodes,
    check_problem,
    gram_fits,
    gram_matrix,
    unit_atoms,
)

SelectionRule = Literal["absolute", "signed"]

_GROUP_CPU = 12
"""Samples worked on together on a CPU: the Gram rows of their supports stay in its cache, which is
several times faster than reading them from memory at every step."""
_CHUNK_NUMBERS = 2**28
"""Correlations, or entries of gathered atoms, held at once: 1 GB in float32."""


class _Dictionary(NamedTuple):
    atoms: Float[torch.Tensor, "d_sae d_in"]
    gram: Float[torch.Tensor, "d_sae d_sae"] | None
    squared_norm: Float[torch.Tensor, " d_sae"]
    """1, or 0 for an all-zero atom."""


@torch.no_grad()
def omp(
    x: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    k: int | Int[torch.Tensor, " samples"],
    *,
    selection: SelectionRule = "absolute",
    exclude: Int[torch.Tensor, "samples excluded"] | None = None,
    gram: Float[torch.Tensor, "d_sae d_sae"] | None = None,
    progress: str | None = None,
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
        selection: `absolute` takes the largest |correlation|, as the oracle of Nelson et al. 2026,
            `signed` the largest correlation ('Which Sparse Code?', Algorithm 1). The least squares
            is unconstrained in both.
        exclude: Atoms that a sample may not use (OMP-exclude-top-N).
        gram: `gram_matrix(dictionary)` where the caller has it. Otherwise it is built where that
            saves work and memory allows.
        progress: Label of a progress bar; none without it.

    Returns:
        Codes in the order of selection.

    Raises:
        InputError: k is out of range, shapes differ, or the selection is unknown.

    Examples:
        >>> x = torch.tensor([[3.0, 0.0, -2.0]])
        >>> codes = omp(x, torch.eye(3), k=2)
        >>> codes.to_dense().tolist()
        [[3.0, 0.0, -2.0]]
    """
    if selection not in ("absolute", "signed"):
        raise InputError(f"selection must be 'absolute' or 'signed', got {selection!r}")
    n_excluded = 0 if exclude is None else exclude.shape[1]
    k_each = check_problem(x, dictionary, k, n_excluded)
    atoms = unit_atoms(dictionary)
    d_sae, d_in = atoms.shape
    width = int(k_each.max()) if len(x) else 0
    x = x.to(atoms.device, atoms.dtype)
    # flops of the product below against those of the residual's correlations
    if gram is None and gram_fits(atoms) and d_sae <= 2 * width * len(x):
        gram = gram_matrix(atoms)
    squared_norm = atoms.square().sum(-1) if gram is None else gram.diagonal()
    problem = _Dictionary(atoms, gram, squared_norm)
    codes = SparseCodes(
        torch.zeros(len(x), width, dtype=torch.long, device=x.device),
        x.new_zeros(len(x), width),
        d_sae,
    )
    # samples of like k together, the longest first, so that finished ones can be left out
    order = k_each.argsort(descending=True)
    chunk = max(1, _CHUNK_NUMBERS // max(d_sae, width * d_in))
    group = _GROUP_CPU if x.device.type == "cpu" and gram is not None else chunk
    bar = progress_bar(
        total=len(x), desc=progress, disable=progress is None, unit="sample", leave=False
    )
    for rows in order.split(chunk):
        start = x[rows.to(x.device)] @ atoms.T
        for members, correlation in zip(rows.split(group), start.split(group), strict=True):
            at = members.to(x.device)
            indices, values, inverse_factor = _pursue(
                x[at],
                correlation,
                problem,
                k_each[members].tolist(),
                selection,
                None if exclude is None else exclude.to(x.device)[at],
            )
            codes.indices[at, : indices.shape[1]] = indices
            codes.values[at, : indices.shape[1]] = _refined(
                x[at], atoms, indices, values, inverse_factor
            )
            bar.update(len(members))
    bar.close()
    return codes


def _pursue(
    x: Float[torch.Tensor, "group d_in"],
    start: Float[torch.Tensor, "group d_sae"],
    d: _Dictionary,
    k_each: list[int],
    selection: SelectionRule,
    exclude: Int[torch.Tensor, "group excluded"] | None,
) -> tuple[
    Int[torch.Tensor, "group width"],
    Float[torch.Tensor, "group width"],
    Float[torch.Tensor, "group width width"],
]:
    """OMP of a group of samples, sorted by k, the largest first: support, coefficients and inverse
    Cholesky factor."""
    n, width = len(x), max(k_each, default=0)
    indices = torch.zeros(n, width, dtype=torch.long, device=x.device)
    values = x.new_zeros(n, width)
    inverse_factor = x.new_zeros(n, width, width)
    correlation = start.clone()
    score = torch.empty_like(start) if selection == "absolute" else correlation
    for step in range(width):
        m = sum(k > step for k in k_each)
        if m < n:
            n = m
            x, start, correlation, score = x[:n], start[:n], correlation[:n], score[:n]
            exclude = None if exclude is None else exclude[:n]
        taken = indices[:n, :step]
        if selection == "absolute":
            torch.abs(correlation, out=score)
        else:
            score = correlation
        score.scatter_(1, taken, -torch.inf)
        if exclude is not None:
            score.scatter_(1, exclude, -torch.inf)
        chosen = _largest(score)[:, None]
        indices[:n, step] = chosen[:, 0]
        if d.gram is None:
            overlap = (d.atoms[taken] @ d.atoms[chosen].mT)[..., 0]
        else:
            overlap = d.gram[taken, chosen]
        # the residual is orthogonal to what was taken, so the new direction sees the atom alone
        values[:n, : step + 1] += add_atom(
            inverse_factor[:n],
            overlap,
            d.squared_norm[chosen[:, 0]],
            correlation.gather(1, chosen)[:, 0],
        )
        if step + 1 == width:
            break
        support = indices[:n, : step + 1]
        if d.gram is None:
            residual = sum_rows(d.atoms, support, values[:n, : step + 1], minuend=x)
            torch.mm(residual, d.atoms.T, out=correlation)
        else:
            correlation = sum_rows(d.gram, support, values[:n, : step + 1], minuend=start)
    return indices, values, inverse_factor


def _largest(score: Float[torch.Tensor, "group d_sae"]) -> Int[torch.Tensor, " group"]:
    """The place of each row's largest entry; NumPy finds it ten times as fast on a CPU."""
    if score.device.type == "cpu":
        return torch.from_numpy(score.numpy().argmax(-1))
    return score.argmax(-1)


def _refined(
    x: Float[torch.Tensor, "group d_in"],
    atoms: Float[torch.Tensor, "d_sae d_in"],
    indices: Int[torch.Tensor, "group width"],
    values: Float[torch.Tensor, "group width"],
    inverse_factor: Float[torch.Tensor, "group width width"],
) -> Float[torch.Tensor, "group width"]:
    """One step of iterative refinement: the factor squares the condition number, the residual of
    the data does not."""
    residual = sum_rows(atoms, indices, values, minuend=x)
    # places past a sample's k repeat atom 0, but their rows of the factor are zero
    missed = atoms[indices] @ residual[..., None]
    return values + (inverse_factor.mT @ (inverse_factor @ missed))[..., 0]
