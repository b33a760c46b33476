"""Where walks put what they find: results, tables on the way, entries that change."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu.x86.plan import LEVELS

# Rows of Scratch.work: results; tables that the walk came by, in the rows that their levels have in
# the plan; entries whose flags change.
OUT, UPDATES = 0, LEVELS + 5

# Columns of the results.
VECTOR, ERROR, PA, PAGE_SHIFT, LEVEL, REFERENCES, EXIT, QUALIFICATION, GPA = range(9)
GUEST_SHIFT, HOST_SHIFT, RIGHTS, LEAF_ENTRY, OUTSIDE, N_UPDATES, N_PATH, N_TABLES = range(9, 17)
HOST_RIGHTS, HOST_REFERENCES, HOST_DIRTY, NESTED_HITS, N_REACHED, CPU = range(17, 23)
_WIDTH: Final = 23

# N_TABLES counts the entries that were fit for use, N_REACHED those that were read.

# Columns of the tables: where the table is in (host-)physical memory, the rights after its entry,
# where the entry is, which flags it must have, the second dimension's rights there, the
# guest-physical address. The last one is walk_second's: its entries, by its own levels.
HOST_TABLE, RIGHTS_AFTER, ENTRY_AT, FLAGS, ENTRY_RIGHTS, ENTRY_GPA, SECOND_AT = range(7)

# Columns of the updates: physical address of the entry, its new value, the mask of its width.
UPDATE_PA, UPDATE_VALUE, UPDATE_MASK = range(3)

# Columns of Scratch.path: one row for each entry read.
DIMENSION, GUEST_LEVEL, ENTRY_LEVEL, ADDRESS, ENTRY, FOR_ADDRESS = range(6)

# Columns of Scratch.cache: page number and size (all ones: none), host-physical address, rights,
# whether the dirty flag is set.
KEY, HOST_PAGE, KEPT_RIGHTS, KEPT_DIRTY = range(4)

GP, PF = 13, 14

#: Updates that one walk can make: 5 guest entries, and 6 translations of at most 5 entries.
MAX_UPDATES: Final = 40
#: Entries that one walk can read: (5 + 1) * (5 + 1) - 1, and 4 PDPTE registers to be safe.
MAX_PATH: Final = 40

_ONES: Final = np.uint64((1 << 64) - 1)


class Scratch(NamedTuple):
    """Where a walk puts its results; made once, used for many walks."""

    work: np.ndarray  # uint64[UPDATES + MAX_UPDATES, 23]
    path: np.ndarray  # uint64[rows, 6]: entries read, as far as there is room
    cache: np.ndarray  # uint64[cpu, set, way, 4]: nested TLBs, in order of last use
    owned: np.ndarray  # uint8[frame] or uint8[0]: 1 where the RMP says that a guest has it


def new_scratch(
    path_rows: int = 0,
    nested: tuple[int, int, int] = (0, 0, 0),
    owned: np.ndarray | None = None,
) -> Scratch:
    """Return room for the results of one walk.

    Parameters
    ----------
    path_rows : int
        Room for the entries read.
    nested : (int, int, int)
        CPUs, sets and ways of nested TLBs.
    owned : uint8[frame], optional
        Frames that the host may not write to.
    """
    cache = np.zeros((*nested, 4), np.uint64)
    cache[..., KEY] = _ONES
    return Scratch(
        np.zeros((UPDATES + MAX_UPDATES, _WIDTH), np.uint64),
        np.zeros((path_rows, 6), np.uint64),
        cache,
        np.zeros(0, np.uint8) if owned is None else owned,
    )
