"""What the kernels of shadow mode share: the guest's tables as written, and the shadows of them.

Frames that ever hold a table have a number of their own, the *table*. Kernels are functions over
arrays; a `State` bundles them. All entries are int64 (a uint64 beside an int64 is a float64 to
numba).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from pvmmu.x86 import bits

P, RW, A, D = (np.int64(x) for x in (bits.P, bits.RW, bits.A, bits.D))
#: Bits of the frame in an entry (SDM vol. 3A, table 4-20; M = 52).
FRAME_MASK: Final = np.int64(0x000F_FFFF_FFFF_F000)
#: How the kernel's direct map shows a frame to the guest.
READ_ONLY, WRITABLE = map(np.uint8, range(2))
NONE: Final = np.int64(-1)

#: A shadow page: which table it shadows, at which level; whether it is out of sync, and where it
#: stands in the list of those; writes counted by flood detection; the entry that refers to it
#: (the last one linked) and how many do; uses as a current or remembered top-level table; whether
#: it is pinned, or a top-level table no longer to be used; order of making; next shadow of the
#: same table.
PAGE: Final = np.dtype(
    [
        ("table", "i4"), ("level", "i4"), ("unsync", "i4"), ("place", "i4"), ("flood", "i4"),
        ("parent", "i4"), ("parent_index", "i4"), ("parents", "i4"), ("roots", "i4"),
        ("pinned", "i4"), ("invalid", "i4"), ("next", "i4"), ("born", "i8"),
    ],
    align=True,
)  # fmt: skip

#: A CPU: table in CR3; frame written last by emulation, as flood detection remembers it, and how
#: often in a row; the entry it wrote; whether a process was announced to be dying; updates in the
#: queue of a lazy MMU bracket, and whether one is open; tables of kernel and user mode (PTI), and
#: whether the CPU is in user mode, and must flush on the way there (PCID).
CPU_STATE: Final = np.dtype(
    [("root", "i8"), ("last", "i8"), ("writes", "i8"), ("last_index", "i8"), ("dying", "i8"),
     ("queued", "i8"), ("lazy", "i8"), ("kernel_root", "i8"), ("user_root", "i8"), ("user", "i8"),
     ("stale", "i8")]
)  # fmt: skip

# Elements of `State.n`: the row at work, free shadow pages, pages out of sync, pages made so far,
# accesses for which the guest's tables are not known, whether a dying process was ever announced,
# whether top-level shadows wait to be let go, whether loads of CR3 may keep translations (PCID).
ROW, FREE, UNSYNCED, BORN, UNKNOWN, EVER_DYING, OBSOLETE, TAGGED = range(8)


class State(NamedTuple):
    """Arrays of one replay.

    Parameters
    ----------
    rules : int64[Rule]
        See `Rules.pack`.
    n : int64[8]
        See `ROW` and its neighbours.
    shape : int64[8]
        Levels, entries of a table, then the shift of each level from 1 on.
    frames : int64[table]
        Frame of each table.
    guest, target : int64[table, entry], int32[table, entry]
        The guest's entries, and the table that an entry points to (-1 none).
    mapped, first, dying : uint8[table], int32[table], uint8[table]
        How the direct map shows it, its first shadow, whether it was announced to be dying. Every
        frame is taken to be in the direct map, writable, when the trace begins.
    pages, entries, free : PAGE[page], int64[page, entry], int32[page]
        The shadow pages: records, entries, a stack of those not in use. An entry of a level-1
        shadow is frame, P, RW, and A once it is used; of others the child's number plus one,
        shifted, and P.
    unsynced, stack : int32[page]
        Pages out of sync in any order; a stack for walks.
    roots : int32[cpu, 4]
        Shadow of the current top-level table, and remembered ones, latest first.
    out, snapshots : int32[cpu, 3], int64[cpu, 3, entry]
        Tables out of sync where their number is limited (a hash), and what they were then.
    path : int64[8]
        Tables of the last walk, by level.
    cpus : CPU_STATE[cpu]
    counts, log : int64[...], int64[n, 4]
        See `pvmmu.modes.tally`.
    """

    rules: Any
    n: Any
    shape: Any
    frames: Any
    guest: Any
    target: Any
    mapped: Any
    first: Any
    dying: Any
    pages: Any
    entries: Any
    free: Any
    unsynced: Any
    stack: Any
    roots: Any
    out: Any
    snapshots: Any
    path: Any
    cpus: Any
    counts: Any
    log: Any


#: Rows of `State.out`: what a CPU may have out of sync where that is limited.
MOST_OUT: Final = 3
#: Columns of `State.roots`.
MOST_ROOTS: Final = 4
