"""The best one-to-one assignment of a score matrix that is too large to hold, with a certificate.

Rows bid for columns (Bertsekas 1988, the auction algorithm) among the best entries of each row, all
rows that have none at once. A bid raises a column's price to what the row would lose by its second
choice, plus a step; with the last step the total is within one step a row of the best. For prices
v >= 0 on the columns no assignment of the whole matrix exceeds

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
from sae_lens_isae.progress import progress_bar

Scores = Callable[[Int[torch.Tensor, " chosen"]], Float[torch.Tensor, "chosen columns"]]
"""The scores of some rows, on any device."""

_N_CANDIDATES = 64
_BLOCK_NUMBERS = 2**26
_MAX_ROUNDS = 12
_FIRST_STEP, _FINER, _FINEST_STEP = 1e-2, 4, 1e-7
"""Steps begin large, so that rows that want the same columns settle soon, and become finer."""
_MOST_TURNS = 100_000
"""Turns of bidding in a round of candidates. Rows that still have no column get one that is free,
and the certificate says what that may cost."""
_FEW = 10
"""A step ends before the last one as soon as one in so many rows waits."""
_ROUNDING = 1e-7
"""Scores are float32: two products of the same atoms may differ by so much."""


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
    auction = _Auction(n_rows, n_columns, floor)
    best: Assignment | None = None
    n_new = _N_CANDIDATES
    for _ in range(_MAX_ROUNDS):
        auction.settle(candidates, max(tolerance, _FINEST_STEP) / 2)
        prices = auction.prices
        row_value = _row_maximum(candidates, prices, n_rows).clamp_min(floor)
        doubtful = (candidates.unseen > row_value).nonzero()[:, 0]
        found, reduced = _price(scores, doubtful, prices, min(n_new, n_columns))
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


def _row_maximum(
    candidates: _Candidates, prices: Float[torch.Tensor, " columns"], n_rows: int
) -> Float[torch.Tensor, " rows"]:
    reduced = candidates.score - prices[candidates.column]
    lowest = torch.full((n_rows,), -torch.inf, dtype=torch.float64)
    return lowest.scatter_reduce(0, candidates.row, reduced, "amax")


class _Side:
    """The rows or the columns: with whom each is paired, and what it gains by that.

    Args:
        n: How many there are.
        least: What being alone gains.
    """

    def __init__(self, n: int, least: float) -> None:
        self.least = least
        self.gain = np.full(n, least)
        self.partner = np.full(n, -1)

    def set_entries(self, me: np.ndarray, others: np.ndarray) -> None:
        """Row or column of every entry, and its column or row."""
        self.entries = me.argsort(kind="stable")
        self.others = others
        self.count = np.bincount(me, minlength=len(self.gain))
        self.first = self.count.cumsum() - self.count


class _Auction:
    """Pairs of rows and columns, and what each gains: together at least the score of every entry
    less a step, and for pairs exactly their score. What columns gain is their price."""

    def __init__(self, n_rows: int, n_columns: int, floor: float) -> None:
        self.rows, self.columns = _Side(n_rows, floor), _Side(n_columns, 0.0)

    @property
    def pairs(self) -> Int[torch.Tensor, " rows"]:
        """Columns of the rows, -1 for one to which no candidate is worth its price."""
        return torch.from_numpy(self.rows.partner)

    @property
    def prices(self) -> Float[torch.Tensor, " columns"]:
        """0 for columns that no row has."""
        return torch.from_numpy(self.columns.gain)

    def settle(self, candidates: _Candidates, last_step: float) -> None:
        """Bid until no pair and nobody alone could do better by more than `last_step`."""
        row, column, score = (
            x.numpy() for x in (candidates.row, candidates.column, candidates.score)
        )
        self.rows.set_entries(row, column)
        self.columns.set_entries(column, row)
        # rows of atoms that repeat would all bid for the same column
        noise = np.random.default_rng(0).uniform(size=len(row))
        self._turns = _MOST_TURNS
        step = _FIRST_STEP
        while True:
            few = int(_FEW * step * len(self.rows.gain)) if step > last_step else 0
            self._step = max(step, last_step) / 2
            self._score = score + self._step * noise
            mine = np.flatnonzero(self.rows.partner[row] == column)
            self.rows.gain[row[mine]] = self._score[mine] - self.columns.gain[column[mine]]
            alone = self._bids(self.rows, self.columns, self._discontent(), few)
            self.rows.gain[alone] = self.rows.least
            # rows bid columns up, and leave some of them dear
            dear = (self.columns.partner < 0) & (self.columns.gain > 0)
            self._bids(self.columns, self.rows, np.flatnonzero(dear), 0)
            if step <= last_step:
                return
            step /= _FINER

    def _discontent(self) -> np.ndarray:
        """Rows that could do better by more than a step, now without a partner."""
        everyone = np.arange(len(self.rows.gain))
        _, best, _ = self._best_two(self.rows, self.columns, everyone)
        # a bid at the edge of what is allowed is content in spite of rounding
        rows = np.flatnonzero(best > self.rows.gain + self._step * (1 + 1e-6))
        left = self.rows.partner[rows]
        self.columns.partner[left[left >= 0]] = -1
        self.rows.partner[rows] = -1
        return rows

    def _bids(self, mine: _Side, theirs: _Side, bidders: np.ndarray, few: int) -> np.ndarray:
        """Turns until at most `few` still bid; returns them."""
        while len(bidders) > few and self._turns:
            self._turns -= 1
            bidders = self._turn(mine, theirs, bidders)
        return bidders

    def _turn(self, mine: _Side, theirs: _Side, bidders: np.ndarray) -> np.ndarray:
        """Everyone bids for the best partner: all but what the second best would leave, and a step
        more. Returns who lost or was outbid."""
        entry, best, second = self._best_two(mine, theirs, bidders)
        keen = best > mine.least
        mine.gain[bidders[~keen]] = mine.least
        gain = (second[keen] - self._step).clip(min=mine.least)
        bid = self._score[entry[keen]] - gain
        # of those that bid for the same one the last in this order stays
        order = bid.argsort(kind="stable")
        bidders, gain, bid = bidders[keen][order], gain[order], bid[order]
        target = mine.others[entry[keen]][order]
        before = theirs.partner[target]
        theirs.partner[target] = bidders
        theirs.gain[target] = bid
        won = theirs.partner[target] == bidders
        outbid = before[won]
        outbid = outbid[outbid >= 0]
        mine.partner[outbid] = -1
        mine.partner[bidders[won]] = target[won]
        mine.gain[bidders[won]] = gain[won]
        # who bid all that it had has nothing more to bid
        return np.concatenate([bidders[~won], outbid[mine.gain[outbid] > mine.least]])

    def _best_two(
        self, mine: _Side, theirs: _Side, bidders: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entry that would gain each bidder most, how much that is, and the second most."""
        count = mine.count[bidders]
        end = count.cumsum()
        first = end - count
        place = np.repeat(mine.first[bidders] - first, count) + np.arange(end[-1])
        entry = mine.entries[place]
        value = self._score[entry] - theirs.gain[mine.others[entry]]
        best = np.maximum.reduceat(value, first)
        is_best = value == np.repeat(best, count)
        at = np.maximum.reduceat(np.where(is_best, np.arange(end[-1]), -1), first)
        value[at] = -np.inf
        return entry[at], best, np.maximum.reduceat(value, first)


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
