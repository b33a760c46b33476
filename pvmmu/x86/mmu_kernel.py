"""MMUs at work: accesses, stores to page tables, and every kind of invalidation, in order."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.mmu_events import Count, Event
from pvmmu.x86.mmu_stale import judge_hit, judge_start, mark
from pvmmu.x86.mmu_state import (
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    LATE,
    MARKS,
    NOW,
    OVERDUE,
    PCID,
    PCIDE,
    RIGHTS_OF,
    ROOT,
    VALIDATE,
    VPID,
)
from pvmmu.x86.mmu_tlb import (
    context,
    drop_nested,
    drop_page,
    drop_tables,
    drop_tables_of,
    drop_where,
    fill,
    keep_tables,
    look_up,
    walk_start,
)
from pvmmu.x86.plan import ENTRY_LOG, FETCH, FORBID, NEED, READ, REGISTER, TABLE_RESERVED, WRITE
from pvmmu.x86.tlb_sets import CONTEXT_MASK, CONTEXT_SHIFT, GLOBAL_BIT, VPID_MASK, VPID_SHIFT
from pvmmu.x86.walk_kernel import (
    EXIT,
    HOST_REFERENCES,
    HOST_RIGHTS,
    N_UPDATES,
    NESTED_HITS,
    OUTSIDE,
    REFERENCES,
    VECTOR,
    commit,
    reset,
    walk_first,
    walk_second,
)

_Z, _ONE, _3 = np.uint64(0), np.uint64(1), np.uint64(3)
_ONES = np.uint64((1 << 64) - 1)
_GLOBAL, _CONTEXT, _VPIDS = np.uint64(GLOBAL_BIT), np.uint64(CONTEXT_MASK), np.uint64(VPID_MASK)
_DIRTY, _OVERDUE, _LATE = np.uint64(DIRTY_SET), np.uint64(OVERDUE), np.uint64(LATE)
_LOW, _32 = np.uint64(0xFFF), np.uint64(0xFFFF_FFFF)
_NOFLUSH = np.uint64(63)

# Why `run_events` stops early.
DONE, TABLE_OUTSIDE, BAD_PDPTE = range(3)

_ACCESSES, _HITS_1, _WALKS = int(Count.ACCESSES), int(Count.HITS_1), int(Count.WALKS)
_DIRTY_WALKS, _FAULTS = int(Count.DIRTY_WALKS), int(Count.FAULTS)
_SPURIOUS, _EXITS = int(Count.SPURIOUS_FAULTS), int(Count.EXITS)
_REFERENCES, _HOST = int(Count.REFERENCES), int(Count.HOST_REFERENCES)
_STARTS, _SKIPPED = int(Count.WALK_CACHE_HITS), int(Count.LEVELS_SKIPPED)
_NESTED, _FLAGS = int(Count.NESTED_HITS), int(Count.FLAGS_SET)
_INVALIDATIONS = int(Count.INVALIDATIONS)

_STORE, _LOAD_CR3, _ENTER = int(Event.STORE), int(Event.LOAD_CR3), int(Event.ENTER)
_INVLPG, _TOGGLE, _INVEPT = int(Event.INVLPG), int(Event.TOGGLE_PGE), int(Event.INVEPT)
_PCID_ADDRESS, _PCID_SINGLE = int(Event.INVPCID_ADDRESS), int(Event.INVPCID_SINGLE)
_PCID_ALL, _PCID_NONGLOBAL = int(Event.INVPCID_ALL), int(Event.INVPCID_ALL_NONGLOBAL)
_VPID_ADDRESS, _VPID_SINGLE = int(Event.INVVPID_ADDRESS), int(Event.INVVPID_SINGLE)
_VPID_ALL, _VPID_NONGLOBAL = int(Event.INVVPID_ALL), int(Event.INVVPID_SINGLE_NONGLOBAL)
_PROMISE, _LAZY, _FREE = int(Event.PROMISE), int(Event.LAZY), int(Event.FREE)


@kernel
def _allowed(m, row, number):  # type: ignore[no-untyped-def]
    """Whether the rights in an entry allow an access."""
    rights = m.data[number, RIGHTS_OF]
    need, forbid = m.first.access[row, NEED], m.first.access[row, FORBID]
    if need & ~rights != _Z or (forbid != _Z and rights & forbid == forbid):
        return False
    if m.second.level.shape[0] == 0:
        return True
    return m.second.access[row % 3, NEED] & ~m.data[number, HOST_RIGHTS_OF] == _Z


@kernel
def _forget(m, cpu, va):  # type: ignore[no-untyped-def]
    """A page fault drops what was cached for its address (SDM vol. 3A §4.10.4.1)."""
    own, shared = context(m, cpu)
    drop_page(m, cpu, va, _GLOBAL | _CONTEXT, own)
    drop_page(m, cpu, va, _GLOBAL | _CONTEXT, shared)
    drop_tables_of(m, cpu, va, _CONTEXT, own)


@kernel
def _walk(m, cpu, va, row, cached):  # type: ignore[no-untyped-def]
    """Walk the tables, from what the walk caches know on.

    Returns
    -------
    (bool, bool)
        Whether there is a translation; whether a walk cache was used.
    """
    s, counts = m.scratch, m.counts
    start, which = walk_start(m, cpu, va) if cached else (0, -1)
    root, rights, host = m.cpu[cpu, ROOT], _ONES, _Z
    if which >= 0:
        if m.control[VALIDATE]:
            judge_start(m, cpu, va, which, start - 1)
        root, rights = m.walk_data[which, FRAME_AT], m.walk_data[which, RIGHTS_OF]
        host = m.walk_data[which, HOST_RIGHTS_OF]
        counts[cpu, _STARTS] += 1
        counts[cpu, _SKIPPED] += start
    reset(s)
    s.out[HOST_RIGHTS] = host
    s.cpu[0] = cpu
    walk_first(
        m.words, m.first, root, m.pdptes[cpu], m.second, m.second_root, va, row,
        (np.int64(start), rights), s,
    )  # fmt: skip
    counts[cpu, _REFERENCES] += np.int64(s.out[REFERENCES])
    counts[cpu, _HOST] += np.int64(s.out[HOST_REFERENCES])
    counts[cpu, _NESTED] += np.int64(s.out[NESTED_HITS])
    done = s.out[VECTOR] | s.out[EXIT] | s.out[OUTSIDE] == _Z
    if s.out[OUTSIDE] == _Z:
        counts[cpu, _FLAGS] += np.int64(s.out[N_UPDATES])
        commit(m.words, s)
    if done:
        keep_tables(m, cpu, va, start)
    return done, which >= 0


@kernel
def _access(m, cpu, va, row):  # type: ignore[no-untyped-def]
    """One access: TLBs, walk, faults."""
    counts, kind, out = m.counts, row % 3, m.scratch.out
    fetch = 1 if kind == FETCH else 0
    counts[cpu, _ACCESSES] += 1
    level, number, tag = look_up(m, cpu, va, fetch)
    again = False
    if level < 0:
        counts[cpu, _WALKS] += 1
    else:
        counts[cpu, _HITS_1 + level] += 1
        if m.control[VALIDATE]:
            judge_hit(m, cpu, va, number, tag)
        if not _allowed(m, row, number):
            _forget(m, cpu, va)
            again = True
        elif kind == WRITE and m.data[number, MARKS] & _DIRTY == _Z:
            counts[cpu, _DIRTY_WALKS] += 1
            own, shared = context(m, cpu)
            drop_page(m, cpu, va, _GLOBAL | _CONTEXT, own)
            drop_page(m, cpu, va, _GLOBAL | _CONTEXT, shared)
        else:
            out[OUTSIDE] = _Z
            return
    done, cached = _walk(m, cpu, va, row, not again)
    if not done and cached and out[VECTOR] != _Z:
        # the fault may be a walk cache's; it drops what that has, so the next try is right
        _forget(m, cpu, va)
        again = True
        done, cached = _walk(m, cpu, va, row, False)
    if done:
        counts[cpu, _SPURIOUS] += 1 if again else 0
        fill(m, cpu, va, fetch, kind)
    elif out[EXIT] != _Z:
        counts[cpu, _EXITS] += 1
    elif out[VECTOR] != _Z:
        counts[cpu, _FAULTS] += 1
        _forget(m, cpu, va)


@kernel
def _load_cr3(m, cpu, value):  # type: ignore[no-untyped-def]
    """Another root table (SDM vol. 3A §4.5.2); PAE paging also loads the PDPTE registers (§4.4.1).

    False if the PDPTEs cannot be loaded.
    """
    m.cpu[cpu, ROOT] = value & m.root_mask
    m.cpu[cpu, PCID] = value & _LOW if m.control[PCIDE] else _Z
    if m.first.level[0, REGISTER] == _Z:
        return True
    s = m.scratch
    reset(s)
    s.cpu[0] = cpu
    at = walk_second(m.words, m.second, m.second_root, m.cpu[cpu, ROOT], np.int64(READ), _3, s)
    if s.out[EXIT] | s.out[OUTSIDE] != _Z or at >> _3 > np.uint64(m.words.size - 4):
        return False
    for i in range(4):
        entry = m.words[(at >> _3) + np.uint64(i)]
        if entry & _ONE != _Z and entry & m.first.level[0, TABLE_RESERVED] != _Z:
            return False
        m.pdptes[cpu, i] = entry
    return True


@kernel
def _store(m, at, value, width):  # type: ignore[no-untyped-def]
    """The kernel writes an entry of 4 or 8 bytes (0: as wide as its tables' are)."""
    narrow = width == np.uint64(4) or (width == _Z and m.first.common[ENTRY_LOG] == np.uint64(2))
    if narrow:
        shift = (at & np.uint64(4)) << _3
        word = m.words[at >> _3] & ~(_32 << shift)
        m.words[at >> _3] = word | (value & _32) << shift
    else:
        m.words[at >> _3] = value


@kernel
def _invalidate(m, cpu, op, a, b):  # type: ignore[no-untyped-def]
    """INVLPG, INVPCID, INVVPID, INVEPT and their kin (SDM vol. 3A §4.10.4.1, vol. 3C §28.4.3.3)."""
    m.counts[cpu, _INVALIDATIONS] += 1
    own, shared = context(m, cpu)
    vpid = m.cpu[cpu, VPID] << np.uint64(VPID_SHIFT)
    page = _GLOBAL | _CONTEXT
    if op == _INVLPG:
        drop_page(m, cpu, a, page, own)
        drop_page(m, cpu, a, page, shared)
        drop_tables(m, cpu, _CONTEXT, own)
    elif op == _PCID_ADDRESS:
        drop_page(m, cpu, a, page, vpid | b << np.uint64(CONTEXT_SHIFT))
        drop_tables_of(m, cpu, a, _CONTEXT, vpid | b << np.uint64(CONTEXT_SHIFT))
    elif op == _PCID_SINGLE or op == _LOAD_CR3:
        drop_where(m, cpu, page, vpid | b << np.uint64(CONTEXT_SHIFT))
        drop_tables(m, cpu, _CONTEXT, vpid | b << np.uint64(CONTEXT_SHIFT))
    elif op == _PCID_ALL or op == _TOGGLE:
        drop_where(m, cpu, _VPIDS, vpid)
        drop_tables(m, cpu, _VPIDS, vpid)
    elif op == _PCID_NONGLOBAL:
        drop_where(m, cpu, _GLOBAL | _VPIDS, vpid)
        drop_tables(m, cpu, _VPIDS, vpid)
    elif op == _VPID_ADDRESS:
        drop_page(m, cpu, a, _VPIDS, b << np.uint64(VPID_SHIFT))
        drop_tables_of(m, cpu, a, _VPIDS, b << np.uint64(VPID_SHIFT))
    elif op == _VPID_SINGLE:
        drop_where(m, cpu, _VPIDS, b << np.uint64(VPID_SHIFT))
        drop_tables(m, cpu, _VPIDS, b << np.uint64(VPID_SHIFT))
    elif op == _VPID_NONGLOBAL:
        drop_where(m, cpu, _GLOBAL | _VPIDS, b << np.uint64(VPID_SHIFT))
        drop_tables(m, cpu, _VPIDS, b << np.uint64(VPID_SHIFT))
    elif op == _VPID_ALL:
        for v in range(1, 16):
            drop_where(m, cpu, _VPIDS, np.uint64(v) << np.uint64(VPID_SHIFT))
            drop_tables(m, cpu, _VPIDS, np.uint64(v) << np.uint64(VPID_SHIFT))
    else:  # INVEPT
        drop_where(m, cpu, _Z, _Z)
        drop_tables(m, cpu, _Z, _Z)
        drop_nested(m, cpu)


@kernel
def run_events(m, ops, cpus, a, b, c, begin):  # type: ignore[no-untyped-def]
    """Let events happen in order.

    Parameters
    ----------
    m : State
        Changed.
    ops, cpus : uint8[n]
        `Event` and CPU of each.
    a, b, c : uint64[n]
        Their arguments, checked by the caller.
    begin : int
        Where to begin.

    Returns
    -------
    (int, int)
        Where it stopped, and why.
    """
    m.scratch.out[OUTSIDE] = _Z
    for i in range(begin, ops.size):
        m.control[NOW] += 1
        op, cpu = np.int64(ops[i]), np.int64(cpus[i])
        if op <= FETCH:
            _access(
                m, cpu, a[i], op + 3 * np.int64(b[i] & _ONE) + 6 * np.int64(b[i] >> _ONE & _ONE)
            )
            if m.scratch.out[OUTSIDE] != _Z:
                return i, TABLE_OUTSIDE
        elif op == _STORE:
            _store(m, a[i], b[i], c[i])
        elif op == _LOAD_CR3:
            if not _load_cr3(m, cpu, a[i]):
                return i, BAD_PDPTE
            if a[i] >> _NOFLUSH == _Z:
                _invalidate(m, cpu, op, _Z, m.cpu[cpu, PCID])
        elif op == _ENTER:
            m.cpu[cpu, VPID] = b[i]
            if not _load_cr3(m, cpu, a[i]):
                return i, BAD_PDPTE
        elif op == _PROMISE or op == _LAZY:
            for other in range(m.cpu.shape[0]):
                mark(m, other, a[i], b[i] - _ONE, c[i], _OVERDUE if op == _PROMISE else _LATE)
        elif op == _FREE:
            m.freed[a[i]] = m.control[NOW]
        else:
            _invalidate(m, cpu, op, a[i], b[i])
    return ops.size, DONE
