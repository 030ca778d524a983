"""The best one-to-one assignment of a score matrix that is too large to hold, with a certificate.

An exact sparse solver (scipy) works on the best entries of every row. Its dual prices then bound
what any assignment of the whole matrix could reach: for prices v >= 0 on the columns no assignment
exceeds

    sum_i max_j (score_ij - v_j) + sum_j v_j.

Rows whose unseen entries could matter are scored again, and those entries join the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from sae_lens_isae.errors import InputError
from sae_lens_isae.progress import progress_bar

Scores = Callable[[Int[torch.Tensor, " chosen"]], Float[torch.Tensor, "chosen columns"]]
"""The scores of some rows, on any device."""

_N_CANDIDATES = 64
_BLOCK_NUMBERS = 2**25
_MAX_ROUNDS = 12
_ROUNDING = 1e-9
"""Improvements of a price below this are rounding of the solver's double precision."""


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
    """Entries that the solver may use, and what is known of all others."""

    row: Int[torch.Tensor, " entries"]
    column: Int[torch.Tensor, " entries"]
    score: Float[torch.Tensor, " entries"]
    unseen: Float[torch.Tensor, " rows"]
    """No other entry of the row is larger."""


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
    best: Assignment | None = None
    n_new = _N_CANDIDATES
    for _ in range(_MAX_ROUNDS):
        columns = _solve(candidates, n_rows, n_columns, floor)
        prices = _prices(candidates, columns, n_columns, floor)
        row_value = _row_maximum(candidates, prices, n_rows).clamp_min(floor)
        doubtful = (candidates.unseen > row_value + _ROUNDING).nonzero()[:, 0]
        found, reduced = _price(scores, doubtful, prices, min(n_new, n_columns))
        bound = row_value
        if len(doubtful):
            bound = row_value.scatter_reduce(0, doubtful, reduced[:, 0], "amax")
        complete = _complete(columns, n_columns)
        total = _total(scores, candidates, complete, columns)
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
        top = scores(rows).topk(width, dim=-1)
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


def _solve(
    candidates: _Candidates, n_rows: int, n_columns: int, floor: float
) -> Int[torch.Tensor, " rows"]:
    """The best assignment on the candidates; -1 for a row that is better off at the floor."""
    columns = _obvious(candidates, n_rows, n_columns, floor)
    taken = torch.zeros(n_columns, dtype=torch.bool)
    taken[columns[columns >= 0]] = True
    open_rows = (columns < 0).nonzero()[:, 0]
    if not len(open_rows):
        return columns
    kept = (columns[candidates.row] < 0) & ~taken[candidates.column]
    place = torch.zeros(n_rows, dtype=torch.long)
    place[open_rows] = torch.arange(len(open_rows))
    column_place = torch.cumsum(~taken, 0) - 1
    n_open = int((~taken).sum())
    # beside its candidates each row has a column of its own at the floor: there is always a full
    # assignment; scipy drops entries of weight 0, hence the shift
    own = torch.arange(len(open_rows))
    row = torch.cat([place[candidates.row[kept]], own])
    column = torch.cat([column_place[candidates.column[kept]], n_open + own])
    weight = torch.cat([candidates.score[kept] - floor + 1, torch.ones(len(own)).double()])
    matrix = csr_array(
        (weight.numpy(), (row.numpy().astype(np.int32), column.numpy().astype(np.int32))),
        shape=(len(own), n_open + len(own)),
    )
    _, assigned = min_weight_full_bipartite_matching(matrix, maximize=True)
    assigned = torch.from_numpy(np.asarray(assigned, dtype=np.int64))
    free = (~taken).nonzero()[:, 0]
    real = assigned < n_open
    columns[open_rows[real]] = free[assigned[real]]
    return columns


def _obvious(
    candidates: _Candidates, n_rows: int, n_columns: int, floor: float
) -> Int[torch.Tensor, " rows"]:
    """Pairs that belong to some best assignment, -1 elsewhere.

    Where an entry exceeds the sum of the next best of its row and of its column, exchanging
    partners cannot gain. They are most pairs of two good dictionaries, and leave the solver little.
    """
    row, column, score = candidates.row, candidates.column, candidates.score - floor
    row_best, row_next = _best_two(row, score, n_rows)
    column_best, column_next = _best_two(column, score, n_columns)
    fixed = (
        (score == row_best[row])
        & (score == column_best[column])
        & (score > row_next[row] + column_next[column])
    )
    columns = torch.full((n_rows,), -1)
    columns[row[fixed]] = column[fixed]
    return columns


def _best_two(
    group: Int[torch.Tensor, " entries"], score: Float[torch.Tensor, " entries"], n: int
) -> tuple[Float[torch.Tensor, " groups"], Float[torch.Tensor, " groups"]]:
    """Largest and second largest score of every group, 0 where there is none."""
    best = score.new_zeros(n).scatter_reduce(0, group, score, "amax")
    top = score == best[group]
    rest = score.new_zeros(n).scatter_reduce(0, group[~top], score[~top], "amax")
    tied = torch.bincount(group[top], minlength=n) > 1
    return best, torch.where(tied, best, rest)


def _prices(
    candidates: _Candidates, columns: Int[torch.Tensor, " rows"], n_columns: int, floor: float
) -> Float[torch.Tensor, " columns"]:
    """Dual prices of the columns: the smallest that make every row content with its column."""
    row, column, score = candidates.row, candidates.column, candidates.score
    matched = columns >= 0
    own = torch.full_like(columns, floor, dtype=torch.float64)
    mine = column == columns[row]
    own[row[mine]] = score[mine]
    at = columns.clamp_min(0)
    prices = torch.zeros(n_columns, dtype=torch.float64)
    # longest paths in the exchange graph; an optimal assignment has no gaining cycle in it
    for _ in range(len(columns) + 1):
        content = own - torch.where(matched, prices[at], 0.0)
        raised = prices.scatter_reduce(0, column, score - content[row], "amax")
        if (raised - prices).max() <= _ROUNDING:
            break
        prices = raised
    return prices


def _row_maximum(
    candidates: _Candidates, prices: Float[torch.Tensor, " columns"], n_rows: int
) -> Float[torch.Tensor, " rows"]:
    reduced = candidates.score - prices[candidates.column]
    lowest = torch.full((n_rows,), -torch.inf, dtype=torch.float64)
    return lowest.scatter_reduce(0, candidates.row, reduced, "amax")


def _price(
    scores: Scores,
    rows: Int[torch.Tensor, " doubtful"],
    prices: Float[torch.Tensor, " columns"],
    width: int,
) -> tuple[Int[torch.Tensor, "doubtful width"], Float[torch.Tensor, "doubtful width"]]:
    """The largest score less price in each row, over all columns, best first."""
    found = [torch.zeros(0, width, dtype=torch.long)]
    values = [torch.zeros(0, width, dtype=torch.float64)]
    for block in rows.split(_blocks(2 * len(prices))):
        score = scores(block)
        top = (score - prices.to(score.device)).topk(width, dim=-1)
        found.append(top.indices.cpu())
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
        score = scores(block)
        total += float(score.gather(1, complete[block, None].to(score.device)).double().sum())
    return total


def _better(a: Assignment, b: Assignment) -> Assignment:
    winner = a if a.total >= b.total else b
    return Assignment(winner.columns, winner.total, min(a.bound, b.bound))
