"""State of MMUs: TLBs, walk caches and nested TLBs of all CPUs, and what runs on each."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu.x86.geometry import WALK_LEVELS, Geometry, Structure
from pvmmu.x86.mmu_events import N_COUNTS
from pvmmu.x86.plan import LEVELS, NUMBER, REGISTER, Plan
from pvmmu.x86.tlb import route
from pvmmu.x86.tlb_sets import Sets, new_sets
from pvmmu.x86.walk_state import Scratch, new_scratch

# Columns of the entries of TLBs and walk caches. FRAME_AT: physical address of the page or table.
# BORN: number of the event that made the entry. OWN: shift of the region that the entry is for.
# PAGE: shift of the page in the (guest's) tables, of which the entry may be a piece.
FRAME_AT, RIGHTS_OF, HOST_RIGHTS_OF, ROOT_OF, BORN, MARKS, OWN, PAGE = range(8)
#: Bits of MARKS.
DIRTY_SET, OVERDUE, LATE = 1, 2, 4

# Columns of State.cpu: what runs, PDPTE registers, and from COUNTS on what was counted.
ROOT, PCID, VPID, PDPTES, COUNTS = 0, 1, 2, 3, 7

# Elements of State.control; ROOT_MASK: bits of CR3 that are the root's address.
VALIDATE, LOGGED, NOW, PCIDE, ROOT_MASK, SECOND_ROOT = range(6)

# Columns of State.log.
LOG_EVENT, LOG_CPU, LOG_VA, LOG_COUNT = range(4)

#: Places to look in, for each level and kind of access; then the places to insert in, by page size.
PROBES: Final = 9


class State(NamedTuple):
    """All CPUs. Structure *k* of CPU *i* is row ``i * n + k`` of the table of its `Sets`."""

    words: np.ndarray  # uint64: physical memory
    first: Plan
    second: Plan
    control: np.ndarray  # uint64[6]
    cpu: np.ndarray  # uint64[cpu, COUNTS + N_COUNTS]
    tlb: Sets
    data: np.ndarray  # uint64[id, column]
    places: np.ndarray  # int64[level, fetch, PROBES + size, 2]: structure (-1 none), page size
    walk: Sets
    walk_data: np.ndarray  # uint64[id, column]
    depths: np.ndarray  # int64[structure]: row of the plan whose entries it holds, -1 none
    scratch: Scratch  # of walks; has the nested TLBs
    fresh: Scratch  # of the validator's walks
    freed: np.ndarray  # uint64[frame]: event that gave it back, 0 for never
    log: np.ndarray  # uint64[row, 4]: harmful uses, as far as there is room


def new_state(
    words: np.ndarray, first: Plan, second: Plan, geometry: Geometry, cpus: int, log_rows: int
) -> State:
    """Return empty TLBs in front of some memory."""
    tlb = new_sets(geometry.structure * cpus, with_ids=True)
    caches = tuple(Structure(entries=w.entries, ways=w.ways, level=2) for w in geometry.walk_cache)
    walk = new_sets(caches * cpus, with_ids=True)
    n = geometry.nested_tlb
    nested = (cpus, n.sets, n.ways) if n and len(second) > LEVELS else (0, 0, 0)
    return State(
        words,
        first,
        second,
        np.zeros(6, np.uint64),
        np.zeros((cpus, COUNTS + N_COUNTS), np.uint64),
        tlb,
        np.zeros((tlb.tags.size, 8), np.uint64),
        _places(geometry),
        walk,
        np.zeros((walk.tags.size, 8), np.uint64),
        np.array([_row(first, WALK_LEVELS[w.caches]) for w in geometry.walk_cache], np.int64),
        new_scratch(nested=nested),
        new_scratch(),
        np.zeros(words.size // 512, np.uint64),
        np.zeros((log_rows, 4), np.uint64),
    )


def _row(first: Plan, number: int) -> int:
    """Row of a level whose entries a walk cache can hold: not the last, and not in registers."""
    for d in range(LEVELS, len(first) - 1):
        if first[d, NUMBER] == number and not first[d, REGISTER]:
            return d
    return -1


def _places(g: Geometry) -> np.ndarray:
    to = route(g)
    out = np.full((to.shape[0], 2, PROBES + 4, 2), -1, np.int64)
    for level in range(to.shape[0]):
        for fetch in range(2):
            places = [
                (k, size)
                for k, s in enumerate(g.structure)
                if s.level == level + 1 and s.takes(bool(fetch))
                for size in range(4)
                if s.size_for(size) == size
            ]
            out[level, fetch, : len(places)] = np.array(places, np.int64).reshape(-1, 2)
            out[level, fetch, PROBES:] = to[level, 4 * fetch : 4 * fetch + 4]
    return out
