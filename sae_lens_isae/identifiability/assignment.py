"""The best one-to-one assignment of a score matrix that is too large to hold, with a certificate.

An auction works on the best entries of every row. Its prices then bound what any assignment of the
whole matrix could reach: for prices v >= 0 on the columns no assignment exceeds

    sum_i max_j (score_ij - v_j) + sum_j v_j.

Rows whose unseen entries could matter are scored again, and those entries join the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.auction import Auction
from sae_lens_isae.progress import progress_bar

Columns = Int[torch.Tensor, " some"] | slice
Scores = Callable[[Int[torch.Tensor, " some"], Columns], Float[torch.Tensor, "some others"]]
"""The scores of some rows with some columns, on any device."""
_ALL = slice(None)

_N_CANDIDATES = 64
_BLOCK_NUMBERS = 2**26
_MAX_ROUNDS = 12
_ROUNDING = 1e-7
"""Scores are float32: two products of the same atoms may differ by so much, and no smaller step or
improvement means anything."""


@dataclass(frozen=True)
class Assignment:
    """Row i goes with column `columns[i]`, each column once."""

    columns: Int[torch.Tensor, " rows"]
    total: float
    """Sum of the scores."""
    bound: float
    """No assignment has a larger total."""


@dataclass
class _Candidates:
    """Entries that may be used, sorted by row, and what is known of all others."""

    row: Int[torch.Tensor, " entries"]
    column: Int[torch.Tensor, " entries"]
    score: Float[torch.Tensor, " entries"]
    unseen: Float[torch.Tensor, " rows"]
    """No other entry of the row is larger."""

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and scores."""
        return self.row.numpy(), self.column.numpy(), self.score.numpy()


def assign(
    scores: Scores, n_rows: int, n_columns: int, *, floor: float, tolerance: float
) -> Assignment:
    """Assign every row a column of its own so that the total score is largest.

    Args:
        scores: Computes any rows of the matrix; it is called block by block.
        floor: No score is smaller.
        tolerance: Stop as soon as bound - total is at most this much a row. After some rounds the
            best so far is returned with the bound that holds.

    Raises:
        InputError: There are more rows than columns.
    """
    if n_rows > n_columns:
        raise InputError(f"cannot give {n_rows} rows a column each, there are {n_columns}")
    candidates = _first_candidates(scores, n_rows, n_columns)
    auction = Auction(n_rows, n_columns, floor)
    best: Assignment | None = None
    n_new = _N_CANDIDATES
    for _ in range(_MAX_ROUNDS):
        auction.settle(*candidates.entries(), max(tolerance, _ROUNDING) / 2)
        prices = auction.prices
        row_value = _row_maximum(candidates, prices, n_rows).clamp_min(floor)
        # an unseen entry matters where the column costs less than this
        worth = candidates.unseen - row_value
        cheap = (prices < worth.max()).nonzero()[:, 0]
        doubtful = (worth > prices.min()).nonzero()[:, 0]
        found, reduced = _price(scores, doubtful, cheap, prices, n_new)
        bound = row_value
        if len(doubtful):
            bound = row_value.scatter_reduce(0, doubtful, reduced[:, 0], "amax")
        complete = _complete(auction.pairs, n_columns)
        total = _total(scores, candidates, complete, auction.pairs)
        current = Assignment(complete, total, float(bound.sum() + prices.sum()))
        # bounds of different prices all hold
        best = current if best is None else _better(best, current)
        if best.bound - best.total <= tolerance * n_rows:
            break
        violating = reduced > row_value[doubtful, None] + _ROUNDING
        if not violating.any():
            break
        rows = doubtful[:, None].expand_as(found)[violating]
        _add(candidates, rows, found[violating], (reduced + prices[found])[violating], n_columns)
        n_new *= 2
    assert best is not None
    return best


def _blocks(n_columns: int) -> int:
    return max(1, _BLOCK_NUMBERS // n_columns)


def _first_candidates(scores: Scores, n_rows: int, n_columns: int) -> _Candidates:
    width = min(_N_CANDIDATES, n_columns)
    found: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    blocks = torch.arange(n_rows).split(_blocks(n_columns))
    for rows in progress_bar(
        blocks, desc="Matching", unit="block", disable=len(blocks) < 8, leave=False
    ):
        top = scores(rows, _ALL).topk(width, dim=-1)
        found.append(top.indices.cpu())
        values.append(top.values.cpu().double())
    score = torch.cat(values)
    return _Candidates(
        row=torch.arange(n_rows).repeat_interleave(width),
        column=torch.cat(found).flatten(),
        score=score.flatten(),
        unseen=score[:, -1] if width < n_columns else torch.full((n_rows,), -torch.inf).double(),
    )


def _add(
    candidates: _Candidates,
    rows: Int[torch.Tensor, " new"],
    columns: Int[torch.Tensor, " new"],
    scores: Float[torch.Tensor, " new"],
    n_columns: int,
) -> None:
    row = torch.cat([candidates.row, rows])
    column = torch.cat([candidates.column, columns])
    score = torch.cat([candidates.score, scores])
    # an entry that is there already keeps its first score
    key, order = (row * n_columns + column).sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    kept = order[first]
    candidates.row, candidates.column, candidates.score = row[kept], column[kept], score[kept]


def _row_maximum(
    candidates: _Candidates, prices: Float[torch.Tensor, " columns"], n_rows: int
) -> Float[torch.Tensor, " rows"]:
    reduced = candidates.score - prices[candidates.column]
    lowest = torch.full((n_rows,), -torch.inf, dtype=torch.float64)
    return lowest.scatter_reduce(0, candidates.row, reduced, "amax")


def _price(
    scores: Scores,
    rows: Int[torch.Tensor, " doubtful"],
    columns: Int[torch.Tensor, " cheap"],
    prices: Float[torch.Tensor, " columns"],
    width: int,
) -> tuple[Int[torch.Tensor, "doubtful width"], Float[torch.Tensor, "doubtful width"]]:
    """The largest score less price in each row, over some columns, best first."""
    width = min(width, len(columns))
    found = [torch.zeros(0, width, dtype=torch.long)]
    values = [torch.zeros(0, width, dtype=torch.float64)]
    for block in rows.split(_blocks(2 * max(1, len(columns)))):
        score = scores(block, columns)
        top = (score - prices[columns].to(score.device)).topk(width, dim=-1)
        found.append(columns[top.indices.cpu()])
        values.append(top.values.cpu().double())
    return torch.cat(found), torch.cat(values)


def _complete(columns: Int[torch.Tensor, " rows"], n_columns: int) -> Int[torch.Tensor, " rows"]:
    """Give rows without column one that is free."""
    missing = (columns < 0).nonzero()[:, 0]
    free = torch.ones(n_columns, dtype=torch.bool)
    free[columns[columns >= 0]] = False
    complete = columns.clone()
    complete[missing] = free.nonzero()[: len(missing), 0]
    return complete


def _total(
    scores: Scores,
    candidates: _Candidates,
    complete: Int[torch.Tensor, " rows"],
    solved: Int[torch.Tensor, " rows"],
) -> float:
    mine = candidates.column == solved[candidates.row]
    total = float(candidates.score[mine].sum())
    for block in (solved < 0).nonzero()[:, 0].split(1024):
        score = scores(block, _ALL)
        total += float(score.gather(1, complete[block, None].to(score.device)).double().sum())
    return total


def _better(a: Assignment, b: Assignment) -> Assignment:
    winner = a if a.total >= b.total else b
    return Assignment(winner.columns, winner.total, min(a.bound, b.bound))
