"""The pass behind soundness: two images of each entry, as the kernel believes and as it is."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import kernel
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.effects import Effect

#: What the kernel relies on at a row; see `pvmmu.guest.promises.Promises`.
READS, READ_BACK, WALKS, UNLOCKS, LOSES_DIRTY = 1, 2, 4, 8, 16
#: Results of `first_conflicts`.
LOST, STALE, APART = 0, 1, 2
NONE: Final = -1

_NOW, _WAITS, _TOLD, _OPENS, _CLOSES, _SENDS, _APART, _PEEKS = (int(e) for e in Effect)
_COMMIT = int(Op.MODIFY_PROT_COMMIT)


@kernel
def first_conflicts(  # type: ignore[no-untyped-def]
    table, op, mechanism, relies, entry, value, cpu, entries, cpus
):  # fmt: skip
    """Return the first row at which the two images of an entry differ where they must not.

    The image of the kernel is the last change of an entry; that of the hardware lacks those that
    wait. They wait until their CPU's bracket ends: how much a queue holds must not decide. A walk
    by another CPU is no fault of the design: it may find an entry as it was until it is flushed.

    Parameters
    ----------
    table : uint8[N_OPS, 256]
        Sums of `Effect`, by operation and mechanism.
    op, mechanism : uint8[row]
        Column of the trace; what carries the row.
    relies : uint8[row]
        Sums of `READS`, `READ_BACK`, `WALKS`, `UNLOCKS`, `LOSES_DIRTY`.
    entry : int32[row]
        Number of the entry, below `entries`; -1 none.
    value : uint64[row]
        What the row writes.
    cpu : uint8[row]
        Below `cpus`.
    entries, cpus : int
        How many there are.

    Returns
    -------
    int64[3, 2]
        For `LOST` and `STALE` the row, and the row of the older update that waits; for `APART` the
        row that loses a dirty bit; -1 none.
    """
    out = np.full((3, 2), NONE, np.int64)
    last = np.full((2, entries), NONE, np.int64)  # of updates, and of what a shadow is told
    batch = np.zeros((2, entries), np.int64)
    sent = np.zeros(cpus, np.int64)
    oldest = np.full(cpus, NONE, np.int64)
    lazy = np.zeros(cpus, np.bool_)
    peeked = np.zeros(entries, np.bool_)
    for row in range(op.shape[0]):
        how, what, e, c = table[op[row], mechanism[row]], relies[row], entry[row], cpu[row]
        if how == 0 and what == 0:
            continue
        if e >= 0:
            whole = op[row] == _COMMIT and not peeked[e]
            if how & _APART and what & LOSES_DIRTY and not whole and out[APART, 0] < 0:
                out[APART, 0] = row
            peeked[e] = how & _PEEKS != 0
            update, told = last[0, e], last[1, e]
            if update >= 0 and batch[0, e] != sent[cpu[update]]:
                update = NONE
            if told >= 0 and batch[1, e] != sent[cpu[told]]:
                told = NONE
            waits = how & _WAITS != 0 and lazy[c]
            at_once = how & (_NOW | _WAITS) != 0 and not waits
            if out[STALE, 0] < 0:
                if update >= 0 and (what & READS or (what & WALKS and cpu[update] == c)):
                    out[STALE, 0], out[STALE, 1] = row, update
                elif told >= 0 and what & WALKS and cpu[told] == c:
                    out[STALE, 0], out[STALE, 1] = row, told
                elif waits and what & READ_BACK:
                    out[STALE, 0], out[STALE, 1] = row, row
            if out[LOST, 0] < 0 and update >= 0 and at_once and value[update] != value[row]:
                out[LOST, 0], out[LOST, 1] = row, update
            if waits:
                last[0, e], batch[0, e] = row, sent[c]
            elif how & _TOLD and lazy[c]:
                last[1, e], batch[1, e] = row, sent[c]
            if waits and oldest[c] < 0:
                oldest[c] = row
        if what & UNLOCKS and oldest[c] >= 0 and out[STALE, 0] < 0:
            out[STALE, 0], out[STALE, 1] = row, oldest[c]
        if how & _OPENS:
            lazy[c] = True
        if how & (_CLOSES | _SENDS):
            sent[c] += 1
            oldest[c] = NONE
            if how & _CLOSES:
                lazy[c] = False
    return out
