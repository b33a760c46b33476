"""How many calls the stores of some hooks make, without a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, Op

_OPENS: Final = (Op.LAZY_ENTER, Op.LAZY_RESUME)
_CLOSES: Final = (Op.LAZY_LEAVE, Op.LAZY_PAUSE)


@dataclass(frozen=True)
class Brackets:
    """The operations in lazy MMU brackets, and those outside.

    Parameters
    ----------
    present : bool[N_OPS]
        Operations that occur.
    outside, inside : int64[N_OPS]
        How many of each, of those that count.
    kinds : int64[bracket, N_OPS]
        Different contents of brackets.
    times, closed : int64[bracket], bool[bracket]
        How many brackets have them; whether they end before the trace does.
    """

    present: np.ndarray
    outside: np.ndarray
    inside: np.ndarray
    kinds: np.ndarray
    times: np.ndarray
    closed: np.ndarray

    def calls(self, told: np.ndarray, most: int) -> int:
        """Return the calls that carry what waits in brackets.

        Parameters
        ----------
        told : bool[N_OPS]
            Operations that wait.
        most : int
            Of them in a call.
        """
        waiting = self.kinds @ told.astype(np.int64)
        full, rest = waiting // most, (waiting % most > 0) & self.closed
        return int(((full + rest) * self.times).sum())


def brackets(trace: Trace, known: np.ndarray) -> Brackets:
    """Divide the operations of a trace.

    Parameters
    ----------
    trace : Trace
    known : bool[row]
        Rows that count.
    """
    inside, number, closed = np.zeros(len(trace), np.bool_), np.zeros(len(trace), np.int64), {}
    op, base = trace["op"], 0
    for cpu in np.unique(trace["cpu"]):
        mine = np.flatnonzero(trace["cpu"] == cpu)
        opens, closes = np.isin(op[mine], _OPENS), np.isin(op[mine], _CLOSES)
        marks = np.flatnonzero(opens | closes)
        last = np.searchsorted(marks, np.arange(len(mine)), side="right") - 1
        inside[mine] = (last >= 0) & opens[marks[np.maximum(last, 0)]] if len(marks) else False
        ends = np.cumsum(closes)
        number[mine] = base + ends
        closed[base + int(ends[-1])] = False
        base += int(ends[-1]) + 1
    a, b = (np.bincount(op[known & where], minlength=N_OPS) for where in (~inside, inside))
    rows = np.flatnonzero(known & inside)
    found, at = np.unique(number[rows], return_inverse=True)
    contents = np.zeros((len(found), N_OPS + 1), np.int64)
    np.add.at(contents, (at, op[rows]), 1)
    contents[:, N_OPS] = [closed.get(int(n), True) for n in found]
    kinds, times = np.unique(contents, axis=0, return_counts=True)
    present = np.bincount(op, minlength=N_OPS) > 0
    return Brackets(present, a, b, kinds[:, :N_OPS], times, kinds[:, N_OPS] != 0)
