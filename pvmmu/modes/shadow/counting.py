"""Counts of all classes of hook sets at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

import numpy as np

from pvmmu.guest.ops import Trace
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.events import N_EVENTS
from pvmmu.modes.lattice import Plan
from pvmmu.modes.tally import totals

#: Hooks that put a call in the place of an exit and change nothing else.
SUBSTITUTES: Final = (
    "write_cr3", "read_cr3", "flush_tlb_user", "flush_tlb_kernel", "flush_tlb_one_user",
)  # fmt: skip


def count_plan(
    trace: Trace,
    plan: Plan,
    switches: Sequence[Sequence[str]],
    counted: Callable[[HookSet], np.ndarray],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the counts of all classes of a plan.

    `SUBSTITUTES` are counted once each, and added.

    Parameters
    ----------
    trace : Trace
        Replayed.
    plan : Plan
        Of the mode's partition.
    switches : sequence of sequence of str
        Of the mode, in order.
    counted : callable
        Returns the counts of a replay under a hook set, int64[N_EVENTS + 2].

    Returns
    -------
    (int64[class, N_EVENTS], int64[class, N_EVENTS]) or None
        None if a substitute may end a batch early, so that it is no mere substitute.
    """
    if _calls_in_brackets(trace):
        return None
    simple = [set(s) <= set(SUBSTITUTES) for s in switches]
    total = np.zeros((*plan.shape, N_EVENTS), np.int64)
    nothing = counted(HookSet())
    for one in np.flatnonzero(simple):
        more = [totals(counted(c.hooks) - nothing) for c in plan.switches[one].good]
        shape = [1] * len(plan.shape) + [N_EVENTS]
        shape[one] = len(more)
        total += np.array(more).reshape(shape)
    rest = [range(1 if s else n) for s, n in zip(simple, plan.shape, strict=True)]
    for combination in product(*rest):
        hooks = HookSet()
        at: list[int | slice] = []
        for axis, number in enumerate(combination):
            at.append(slice(None) if simple[axis] else number)
            if not simple[axis]:
                hooks |= plan.switches[axis].good[number].hooks
        total[tuple(at)] += totals(counted(hooks))
    counts = total.reshape(-1, N_EVENTS)
    return counts, counts


def _calls_in_brackets(trace: Trace) -> bool:
    """Whether a call that cannot wait may meet updates that do."""
    op = trace["op"]
    for cpu in np.unique(trace["cpu"]):
        mine = op[trace["cpu"] == cpu]
        opened = np.isin(mine, (Op.LAZY_ENTER, Op.LAZY_RESUME)).astype(np.int64)
        closed = np.isin(mine, (Op.LAZY_LEAVE, Op.LAZY_PAUSE))
        inside = np.cumsum(opened - closed) > 0
        covered = [op for name in SUBSTITUTES for op in catalogue()[name].operations]
        if (inside & np.isin(mine, covered)).any():
            return True
    return False
