"""What the kernels of shadow mode share: the guest's tables as written, and the shadows of them.

Frames that ever hold a table have a number of their own, the *table*. Kernels are functions over
arrays; a `State` bundles them. All entries are int64 (a uint64 beside an int64 is a float64 to
numba).

Kernels pass each other not the bundle but the address of a table of its arrays (``m``), and `view`
it: two dozen arrays are some 170 words to copy at each call, which took most of the time. Whoever
calls the first kernel keeps the arrays.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np

from pvmmu._jit import pointer, record, swift
from pvmmu.x86 import bits

_carray: Any = numba.carray  # type: ignore[attr-defined]
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
PAGE: Final = record(
    ("table", "i4"), ("level", "i4"), ("unsync", "i4"), ("place", "i4"), ("flood", "i4"),
    ("parent", "i4"), ("parent_index", "i4"), ("parents", "i4"), ("roots", "i4"), ("pinned", "i4"),
    ("invalid", "i4"), ("next", "i4"), ("born", "i8"),
)  # fmt: skip

#: A CPU: table in CR3; frame written last by emulation, as flood detection remembers it, and how
#: often in a row; the entry it wrote; whether a process was announced to be dying; updates in the
#: queue of a lazy MMU bracket, and whether one is open; tables of kernel and user mode (PTI), and
#: whether the CPU is in user mode, and must flush on the way there (PCID).
CPU_STATE: Final = record(
    ("root", "i8"), ("last", "i8"), ("writes", "i8"), ("last_index", "i8"), ("dying", "i8"),
    ("queued", "i8"), ("lazy", "i8"), ("kernel_root", "i8"), ("user_root", "i8"), ("user", "i8"),
    ("stale", "i8"),
)  # fmt: skip

# Elements of `State.n`: the row at work, free shadow pages, pages out of sync, pages made so far,
# accesses for which the guest's tables are not known, whether a dying process was ever announced,
# whether top-level shadows wait to be let go, whether loads of CR3 may keep translations (PCID).
ROW, FREE, UNSYNCED, BORN, UNKNOWN, EVER_DYING, OBSOLETE, TAGGED = range(8)


class State(NamedTuple):
    """Arrays of one replay.

    Parameters
    ----------
    m : int64[...]
        See `addresses`; in kernels the address of that table.
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
        See `pvmmu.modes.counters`.
    mechanism, rows : uint8[row], int64[row, 10]
        What carries each row of the trace, and what it says (`pvmmu.modes.shadow.engine.AT_CPU`
        and its neighbours).
    """

    m: Any
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
    mechanism: Any
    rows: Any

    @property
    def address(self) -> int:
        """What kernels take."""
        return int(self.m.ctypes.data)


N_ARRAYS: Final = len(State._fields) - 1
#: Rows of `State.out`: what a CPU may have out of sync where that is limited.
MOST_OUT: Final = 3
#: Columns of `State.roots`.
MOST_ROOTS: Final = 4


def addresses(state: State) -> np.ndarray:
    """Return where the arrays of a state are: for each address and shape, int64[4 * array]."""
    for array, dtype, name in zip(state[1:], TYPES, State._fields[1:], strict=True):
        assert array.flags.c_contiguous and array.dtype == dtype, name
    out = [(a.ctypes.data, *a.shape, *[0] * (3 - a.ndim)) for a in state[1:]]
    return np.array(out, np.int64).reshape(-1)


#: Types of the arrays of a `State`, in order, as `view` takes them to be.
TYPES: Final = (
    *(np.int64,) * 5, np.int32, np.uint8, np.int32, np.uint8, PAGE, np.int64, *(np.int32,) * 5,
    np.int64, np.int64, CPU_STATE, np.int64, np.int64, np.uint8, np.int64,
)  # fmt: skip


@swift
def _line(a, k, dtype):  # type: ignore[no-untyped-def]
    return _carray(pointer(a[4 * k]), (a[4 * k + 1],), dtype)


@swift
def _table(a, k, dtype):  # type: ignore[no-untyped-def]
    return _carray(pointer(a[4 * k]), (a[4 * k + 1], a[4 * k + 2]), dtype)


@swift
def _cube(a, k, dtype):  # type: ignore[no-untyped-def]
    shape = a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]
    return _carray(pointer(a[4 * k]), shape, dtype)


@swift
def view(m):  # type: ignore[no-untyped-def]
    """Return the state whose table of addresses is at an address; in the order of its fields."""
    a = _carray(pointer(m), 4 * N_ARRAYS, np.int64)
    return State(
        m,
        _line(a, 0, np.int64),  # rules
        _line(a, 1, np.int64),  # n
        _line(a, 2, np.int64),  # shape
        _line(a, 3, np.int64),  # frames
        _table(a, 4, np.int64),  # guest
        _table(a, 5, np.int32),  # target
        _line(a, 6, np.uint8),  # mapped
        _line(a, 7, np.int32),  # first
        _line(a, 8, np.uint8),  # dying
        _line(a, 9, PAGE),  # pages
        _table(a, 10, np.int64),  # entries
        _line(a, 11, np.int32),  # free
        _line(a, 12, np.int32),  # unsynced
        _line(a, 13, np.int32),  # stack
        _table(a, 14, np.int32),  # roots
        _table(a, 15, np.int32),  # out
        _cube(a, 16, np.int64),  # snapshots
        _line(a, 17, np.int64),  # path
        _line(a, 18, CPU_STATE),  # cpus
        _line(a, 19, np.int64),  # counts
        _table(a, 20, np.int64),  # log
        _line(a, 21, np.uint8),  # mechanism
        _table(a, 22, np.int64),  # rows
    )
