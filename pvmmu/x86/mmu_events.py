"""What happens to an MMU, and what is counted."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

import numpy as np
import numpy.typing as npt

from pvmmu.x86.errors import TlbError
from pvmmu.x86.plan import FETCH, READ, WRITE


@unique
class Event(IntEnum):
    """Events of an MMU; the columns ``a``, ``b``, ``c`` hold what the comments say."""

    READ = READ  # a: address; b: 1 user, 2 EFLAGS.AC
    WRITE = WRITE
    FETCH = FETCH
    STORE = 3  # the kernel writes an entry; a: physical address; b: entry
    INVLPG = 4  # a: address
    INVPCID_ADDRESS = 5  # a: address; b: PCID
    INVPCID_SINGLE = 6  # b: PCID
    INVPCID_ALL = 7  # with global pages
    INVPCID_ALL_NONGLOBAL = 8
    LOAD_CR3 = 9  # a: value, bit 63: no flush
    TOGGLE_PGE = 10
    INVVPID_ADDRESS = 11  # a: address; b: VPID
    INVVPID_SINGLE = 12  # b: VPID
    INVVPID_ALL = 13
    INVVPID_SINGLE_NONGLOBAL = 14  # b: VPID
    INVEPT = 15  # all that came through the second dimension
    ENTER = 16  # VM entry or exit; a: CR3; b: VPID
    PROMISE = 17  # a flush that some operation owes is done: a to b (bytes); c: root table, 0 any
    LAZY = 18  # changes up to now in a to b will be flushed late, on purpose; c: root table, 0 any
    FREE = 19  # a: frame that is given back; a use of it from now on is one too many
    SHADOW_READ = 20  # a, b: as of READ; of a shadow stack
    SHADOW_WRITE = 21
    IMPLICIT_READ = 22  # a: address; the processor's own access to a table of the system
    IMPLICIT_WRITE = 23


@unique
class Count(IntEnum):
    """What is counted, for each CPU."""

    ACCESSES = 0
    HITS_1 = 1  # found in the first level
    HITS_2 = 2  # found in the second level
    WALKS = 3  # found in none
    DIRTY_WALKS = 4  # found, but the first write through an entry has to set D
    REFERENCES = 5  # entries read from memory, in all walks
    HOST_REFERENCES = 6  # those of the second dimension
    WALK_CACHE_HITS = 7  # walks that began below the root
    LEVELS_SKIPPED = 8  # entries that they did not read
    NESTED_HITS = 9  # guest-physical addresses found in the nested TLB
    FLAGS_SET = 10  # accessed and dirty flags written
    FAULTS = 11  # page faults that the tables call for, and #GP
    SPURIOUS_FAULTS = 12  # from an entry with fewer rights than the tables give; repeated at once
    EXITS = 13  # EPT violations and misconfigurations, #NPF
    INVALIDATIONS = 14  # flush operations made
    ENTRIES_DROPPED = 15  # entries that they removed, of TLBs, walk caches and nested TLBs
    STALE_FREED = 16  # harmful: the frame was given back since
    STALE_GONE = 17  # harmful: nothing is mapped there any more
    STALE_MOVED = 18  # harmful: another frame is mapped there now
    STALE_REDUCED = 19  # harmful: rights (or the dirty flag) were taken away
    STALE_WINDOW = 20  # benign: changed, but the flush is not promised yet (mmu_gather)
    STALE_LAZY = 21  # benign: changed, and flushed late on purpose (lazy vunmap)
    STALE_UPGRADED = 22  # benign: the tables give more rights than the entry
    STALE_AGED = 23  # benign: only the accessed flag was cleared
    STALE_TABLE = 24  # harmful: a walk cache led to a table that is no longer there
    STALE_TABLE_WINDOW = 25  # benign: the same before the promised flush


N_COUNTS: Final = len(Count)
#: The counts that no correct design has.
HARMFUL: Final = (
    Count.STALE_FREED,
    Count.STALE_GONE,
    Count.STALE_MOVED,
    Count.STALE_REDUCED,
    Count.STALE_TABLE,
)

#: One event.
EVENT_DTYPE: Final = np.dtype(
    [("op", "u1"), ("cpu", "u1"), ("a", "<u8"), ("b", "<u8"), ("c", "<u8")]
)
USER, AC = 1, 2
#: An access whose address raises #GP; made of accesses by `Mmu.run`.
REFUSED_ACCESS: Final = 255


def make_events(
    op: npt.ArrayLike,
    a: npt.ArrayLike = 0,
    b: npt.ArrayLike = 0,
    c: npt.ArrayLike = 0,
    cpu: npt.ArrayLike = 0,
) -> npt.NDArray[np.void]:
    """Return events as an array, `EVENT_DTYPE`[n]; scalars stand for all.

    Parameters
    ----------
    op : int[n] or int
        Of `Event`.
    a, b, c : uint64[n] or int
        Arguments; `Event` says what they are.
    cpu : int[n] or int
        Where.

    Raises
    ------
    TlbError
        The columns differ in length, or a value is negative or too large.
    """
    columns = {"op": op, "cpu": cpu, "a": a, "b": b, "c": c}
    arrays = {name: np.asarray(x) for name, x in columns.items()}
    lengths = {x.size for x in arrays.values() if x.ndim}
    if len(lengths) > 1 or any(x.ndim > 1 for x in arrays.values()):
        raise TlbError(f"columns of events differ in length: {sorted(lengths)}")
    out = np.empty(lengths.pop() if lengths else 1, EVENT_DTYPE)
    for name, x in arrays.items():
        if x.size and x.dtype.kind not in "biu":
            raise TlbError(f"{name} of events must be integers, not {x.dtype}")
        top = np.iinfo(EVENT_DTYPE[name]).max
        if x.size and (int(x.min()) < 0 or int(x.max()) > top):
            raise TlbError(f"{name} of events must be 0 to {top:#x}")
        out[name] = x
    return out
