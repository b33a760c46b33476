"""State of MMUs: TLBs, walk caches and nested TLBs of all CPUs, and what runs on each."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu.x86.geometry import WALK_LEVELS, Geometry, Structure
from pvmmu.x86.mmu_events import N_COUNTS
from pvmmu.x86.plan import NUMBER, REGISTER, Plan
from pvmmu.x86.tlb import route
from pvmmu.x86.tlb_sets import Sets, new_sets
from pvmmu.x86.walk_kernel import Scratch, new_scratch

# Columns of State.data, one row for each entry of the TLBs. FRAME_AT: physical address of the page
# (of a table, in walk caches). BORN: number of the event that made the entry. PAGE: shift of the
# page in the (guest's) tables, of which the entry may be a piece.
FRAME_AT, RIGHTS_OF, HOST_RIGHTS_OF, ROOT_OF, BORN, MARKS, PAGE = range(7)
#: Bits of MARKS.
DIRTY_SET, OVERDUE, LATE = 1, 2, 4

# Columns of State.cpu.
ROOT, PCID, VPID = range(3)

# Columns of State.log.
LOG_EVENT, LOG_CPU, LOG_VA, LOG_COUNT = range(4)
_MAX_PROBES: Final = 8


class State(NamedTuple):
    """All CPUs. Structure *k* of CPU *i* is row ``i * n + k`` of the table of its `Sets`."""

    words: np.ndarray  # uint64: physical memory
    first: Plan
    second: Plan
    second_root: np.uint64
    root_mask: np.uint64  # bits of CR3 that are the root's address
    tlb: Sets
    data: np.ndarray  # uint64[id, column]
    probe: np.ndarray  # int64[level, fetch, i, 2]: structures to look in, and page sizes; -1 ends
    route: np.ndarray  # int64[level, size + 4 * fetch, 2]: structure and page size to insert in
    walk: Sets
    walk_data: np.ndarray  # uint64[id, column]
    walk_depth: np.ndarray  # int64[structure]: index of the level whose entries it holds, -1 none
    cpu: np.ndarray  # uint64[cpu, column]
    pdptes: np.ndarray  # uint64[cpu, 4]
    freed: np.ndarray  # int64[frame]: event that gave it back, -1 for never
    counts: np.ndarray  # int64[cpu, N_COUNTS]
    log: np.ndarray  # uint64[row, 4]: harmful uses, as far as there is room
    control: np.ndarray  # int64[4]: validate, log rows in use, events so far, PCIDE
    scratch: Scratch  # of walks; has the nested TLBs
    fresh: Scratch  # of the validator's walks


VALIDATE, LOGGED, NOW, PCIDE = range(4)


def new_state(
    words: np.ndarray,
    first: Plan,
    second: Plan,
    second_root: int,
    root_mask: int,
    geometry: Geometry,
    cpus: int,
    frames: int,
    log_rows: int,
) -> State:
    """Return empty TLBs in front of some memory."""
    tlb = new_sets(geometry.structure * cpus, with_ids=True)
    walk = new_sets(_lru(geometry.walk_cache) * cpus, with_ids=True)
    n = geometry.nested_tlb
    nested = (cpus, n.sets, n.ways) if n and second.level.size else (0, 0, 0)
    numbers = {WALK_LEVELS[w.caches]: i for i, w in enumerate(geometry.walk_cache)}
    depth = np.full(len(geometry.walk_cache), -1, np.int64)
    for d, number in enumerate(_level_numbers(first)):
        if number in numbers:
            depth[numbers[number]] = d
    return State(
        words,
        first,
        second,
        np.uint64(second_root),
        np.uint64(root_mask),
        tlb,
        np.zeros((tlb.tags.size, 7), np.uint64),
        _probe(geometry),
        route(geometry),
        walk,
        np.zeros((walk.tags.size, 7), np.uint64),
        depth,
        np.zeros((cpus, 3), np.uint64),
        np.zeros((cpus, 4), np.uint64),
        np.full(frames, -1, np.int64),
        np.zeros((cpus, N_COUNTS), np.int64),
        np.zeros((log_rows, 4), np.uint64),
        np.zeros(4, np.int64),
        new_scratch(nested=nested),
        new_scratch(),
    )


def _lru(arrays):  # type: ignore[no-untyped-def]
    """Structures of walk caches: LRU."""
    return tuple(Structure(entries=a.entries, ways=a.ways, level=2) for a in arrays)


def _level_numbers(first: Plan) -> list[int]:
    return [int(r[NUMBER]) if not r[REGISTER] else 0 for r in first.level]


def _probe(g: Geometry) -> np.ndarray:
    levels = max(s.level for s in g.structure)
    out = np.full((levels, 2, _MAX_PROBES + 1, 2), -1, np.int64)
    for level in range(levels):
        for fetch in (False, True):
            places = [
                (k, size)
                for k, s in enumerate(g.structure)
                if s.level == level + 1 and s.takes(fetch)
                for size in range(4)
                if s.size_for(size) == size
            ]
            out[level, int(fetch), : len(places)] = np.array(places).reshape(-1, 2)
    return out
