"""Pairs of rows and columns with the largest total score, by auction (Bertsekas 1988).

Rows bid for columns, all that have none at once. A bid is what the row would lose by its second
choice, and a step more; with the last step the total is within one step a row of the best. Then
columns that nobody has any more but that cost something bid for rows in the same way (Bertsekas and
Castañón 1992), which is what lets steps begin large where there are more columns than rows.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

_FIRST_STEP, _FINER = 1e-2, 8
"""Steps begin large, so that rows that want the same columns settle soon, and become finer."""
_FEW = 10
"""A step in between ends as soon as this times the step, as a share of the rows, still bid."""
_MOST_TURNS = 200_000
"""After so many turns who still bids stays alone."""


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


class Auction:
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
        """0 for columns that no row has, unless all turns were used up."""
        return torch.from_numpy(self.columns.gain)

    def settle(
        self,
        row: Int[np.ndarray, " entries"],
        column: Int[np.ndarray, " entries"],
        score: Float[np.ndarray, " entries"],
        last_step: float,
    ) -> None:
        """Bid until no pair and nobody alone could do better by more than `last_step`.

        What was settled before is where it starts: entries may have joined since.

        Args:
            row: Of every entry; each row has one.
            column: Of every entry.
            score: In double precision.
            last_step: Every pair may cost so much; the smaller, the longer.
        """
        self.rows.set_entries(row, column)
        self.columns.set_entries(column, row)
        # rows of atoms that repeat would all bid for the same column
        noise = np.random.default_rng(0).uniform(size=len(row))
        self._turns = _MOST_TURNS
        step = _FIRST_STEP
        while True:
            # rows that must stay alone drive prices up until they do, which only a large step can
            # afford; and the last step leaves nobody waiting
            between = last_step < step < _FIRST_STEP
            few = int(_FEW * step * len(self.rows.gain)) if between else 0
            # half of a step is for bids, half for the noise
            self._step = max(step, last_step) / 2
            self._score = score + self._step * noise
            mine = np.flatnonzero(self.rows.partner[row] == column)
            self.rows.gain[row[mine]] = self._score[mine] - self.columns.gain[column[mine]]
            alone = self._bids(self.rows, self.columns, self._discontent(), few)
            self.rows.gain[alone] = self.rows.least
            # rows bid columns up, and leave some of them dear
            dear = (self.columns.partner < 0) & (self.columns.gain > 0)
            self._bids(self.columns, self.rows, np.flatnonzero(dear), 0)
            if step <= last_step or not self._turns:
                return
            step /= _FINER

    def _discontent(self) -> np.ndarray:
        """Rows that could do better by more than a step, now without a partner."""
        everyone = np.arange(len(self.rows.gain))
        _, best, _ = self._best_two(self.rows, self.columns, everyone)
        best = best.clip(min=self.rows.least)
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
