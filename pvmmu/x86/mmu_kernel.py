"""MMUs at work: accesses, stores to page tables, and every kind of invalidation, in order."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import inner, kernel, part
from pvmmu.x86.bits import US
from pvmmu.x86.mmu_events import HARMFUL, REFUSED_ACCESS, Count, Event
from pvmmu.x86.mmu_flush import invalidate
from pvmmu.x86.mmu_registers import load_cr3, store_entry
from pvmmu.x86.mmu_stale import (
    difference,
    mark,
    table_differs,
    table_verdict,
    verdict,
    walk_afresh,
)
from pvmmu.x86.mmu_state import (
    BORN,
    COUNTS,
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    LATE,
    LOG_COUNT,
    LOG_CPU,
    LOG_EVENT,
    LOG_VA,
    LOGGED,
    MARKS,
    NOW,
    OVERDUE,
    PDPTES,
    PROBES,
    RIGHTS_OF,
    ROOT,
    SECOND_ROOT,
    VALIDATE,
    VPID,
)
from pvmmu.x86.mmu_tlb import (
    context,
    drop,
    fill,
    is_global,
    keep_tables,
    look_up,
    walk_start,
)
from pvmmu.x86.plan import (
    ACCESS,
    FETCH,
    LEVELS,
    NEED,
    SECOND_ROW,
    SHADOW_READ,
    USER_FETCH,
    WRITE,
)
from pvmmu.x86.tlb_sets import (
    BASE,
    CONTEXT_MASK,
    GLOBAL_BIT,
    LRU,
    PAGE_MASK,
    POLICY,
    SET_MASK,
    STRIDE,
)
from pvmmu.x86.walk_kernel import commit, denied, reset, row_of, walk_first
from pvmmu.x86.walk_state import (
    EXIT,
    HOST_REFERENCES,
    HOST_RIGHTS,
    N_UPDATES,
    NESTED_HITS,
    OUT,
    OUTSIDE,
    REFERENCES,
    VECTOR,
)

#: Why `run_events` stops.
DONE, TABLE_OUTSIDE, BAD_PDPTE = range(3)

_Z, _ONE, _3, _12 = (np.uint64(i) for i in (0, 1, 3, 12))
_PAGE = np.uint64(PAGE_MASK)
_ONES, _32 = np.uint64((1 << 64) - 1), np.uint64(0xFFFF_FFFF)
_ONE_PAGE, _TABLES = np.uint64(GLOBAL_BIT | CONTEXT_MASK), np.uint64(CONTEXT_MASK)
_DIRTY, _OVERDUE, _LATE = np.uint64(DIRTY_SET), np.uint64(OVERDUE), np.uint64(LATE)
_USER = np.uint64(US)
_LOW, _NOFLUSH, _ROOT_ROW = np.uint64(0xFFF), np.uint64(63), np.int64(LEVELS)
# A literal as argument would have numba compile the callee once more.
_TRUE, _FALSE = np.bool_(True), np.bool_(False)

_ACCESSES, _HITS_1, _WALKS = (COUNTS + c for c in (Count.ACCESSES, Count.HITS_1, Count.WALKS))
_DIRTY_WALKS, _FAULTS = COUNTS + Count.DIRTY_WALKS, COUNTS + Count.FAULTS
_SPURIOUS, _EXITS = COUNTS + Count.SPURIOUS_FAULTS, COUNTS + Count.EXITS
_REFERENCES, _HOST = COUNTS + Count.REFERENCES, COUNTS + Count.HOST_REFERENCES
_STARTS, _SKIPPED = COUNTS + Count.WALK_CACHE_HITS, COUNTS + Count.LEVELS_SKIPPED
_NESTED, _FLAGS = COUNTS + Count.NESTED_HITS, COUNTS + Count.FLAGS_SET
_DROPPED = COUNTS + Count.ENTRIES_DROPPED
_WORST, _MILDEST = int(min(HARMFUL)), int(Count.STALE_REDUCED)
_STALE_TABLE = int(Count.STALE_TABLE)

_REFUSED = REFUSED_ACCESS
_STORE, _LOAD_CR3, _ENTER = int(Event.STORE), int(Event.LOAD_CR3), int(Event.ENTER)
_FIRST_KIND, _LAST_KIND = int(Event.SHADOW_READ), int(Event.IMPLICIT_WRITE)
_PROMISE, _LAZY, _FREE = int(Event.PROMISE), int(Event.LAZY), int(Event.FREE)


@part
def _allowed(first, second, data, number, row, kind):  # type: ignore[no-untyped-def]
    """Whether the rights in an entry allow an access; ``kind``: read, write or fetch."""
    rights = data[number, RIGHTS_OF]
    if denied(first, row, rights) != _Z:
        return False
    if kind == FETCH and rights & _USER != _Z:
        kind = USER_FETCH
    return second[ACCESS + kind, NEED] & ~data[number, HOST_RIGHTS_OF] == _Z


@part
def _note(cpus, cpu, va, what, control, log):  # type: ignore[no-untyped-def]
    """Count the use of a stale entry; log it if it is harmful."""
    if what < 0:
        return
    cpus[cpu, COUNTS + what] += _ONE
    used = control[LOGGED]
    harmful = (what >= _WORST and what <= _MILDEST) or what == _STALE_TABLE
    if harmful and used < np.uint64(log.shape[0]):
        log[used, LOG_EVENT], log[used, LOG_CPU] = control[NOW] - _ONE, np.uint64(cpu)
        log[used, LOG_VA], log[used, LOG_COUNT] = va, np.uint64(what)
        control[LOGGED] = used + _ONE


@part
def _forget(m, cpu, va, tables):  # type: ignore[no-untyped-def]
    """Drop what is cached for an address, as a page fault does (SDM vol. 3A §4.10.4.1)."""
    own, shared = context(m.cpu, cpu)
    n = m.tlb.table.shape[0] // m.cpu.shape[0]
    removed = drop(m.tlb, m.data, cpu, n, _ONE_PAGE, own, shared, va, _TRUE)
    if tables:
        n = m.depths.shape[0]
        removed += drop(m.walk, m.walk_data, cpu, n, _TABLES, own, own, va, _TRUE)
    m.cpu[cpu, _DROPPED] += np.uint64(removed)


@inner
def _walk(m, cpu, va, row, cached):  # type: ignore[no-untyped-def]
    """Walk the tables, from what the walk caches know on.

    Returns
    -------
    (bool, bool, uint64, uint64)
        Whether there is a translation; whether a walk cache was used; when what it says was true,
        and the marks of what is cached from it.
    """
    cpus, s, control = m.cpu, m.scratch, m.control
    born, marks = control[NOW], _Z
    work, root, rights, host = s.work, cpus[cpu, ROOT], _ONES, _Z
    own, _ = context(cpus, cpu)
    start, which = _ROOT_ROW, -1
    if cached:
        start, which = walk_start(m.walk, m.depths, cpu, m.first, own, va)
    if which >= 0:
        if control[VALIDATE]:
            walk_afresh(m.words, m.first, m.second, control, cpus, cpu, root, va, m.fresh)
            differs = table_differs(m.first, m.second, m.walk_data, which, start - 1, m.fresh.work)
            what = table_verdict(differs, m.walk_data, which, m.freed)
            _note(cpus, cpu, va, np.int64(what), control, m.log)
            if differs:
                born, marks = m.walk_data[which, BORN], m.walk_data[which, MARKS]
        root, rights = m.walk_data[which, FRAME_AT], m.walk_data[which, RIGHTS_OF]
        host = m.walk_data[which, HOST_RIGHTS_OF]
        cpus[cpu, _STARTS] += _ONE
        cpus[cpu, _SKIPPED] += np.uint64(start - LEVELS)
    reset(work, np.uint64(cpu))
    work[OUT, HOST_RIGHTS] = host
    walk_first(
        m.words, m.first, root, cpus[cpu, PDPTES : PDPTES + 4], m.second, control[SECOND_ROOT], va,
        row, start, rights, s,
    )  # fmt: skip
    cpus[cpu, _REFERENCES] += work[OUT, REFERENCES]
    cpus[cpu, _HOST] += work[OUT, HOST_REFERENCES]
    cpus[cpu, _NESTED] += work[OUT, NESTED_HITS]
    if work[OUT, OUTSIDE] != _Z:
        return False, False, born, marks
    cpus[cpu, _FLAGS] += work[OUT, N_UPDATES]
    commit(m.words, work)
    done = work[OUT, VECTOR] | work[OUT, EXIT] == _Z
    if done:
        keep_tables(
            m.walk, m.walk_data, m.depths, cpu, m.first, own, va, start, work, cpus[cpu, ROOT],
            born, marks,
        )  # fmt: skip
    return done, which >= 0, born, marks


@inner
def _access(m, cpu, va, row):  # type: ignore[no-untyped-def]
    """One access: TLBs, walk, faults."""
    cpus, work = m.cpu, m.scratch.work
    kind = np.int64(m.first[ACCESS + row, SECOND_ROW])
    fetch, n = 1 if kind == FETCH else 0, m.tlb.table.shape[0] // cpus.shape[0]
    own, shared = context(cpus, cpu)
    cpus[cpu, _ACCESSES] += _ONE
    level, number = look_up(m.tlb, m.data, m.places, cpu, n, own, shared, va, fetch)
    again = False
    if level < 0:
        cpus[cpu, _WALKS] += _ONE
    else:
        cpus[cpu, _HITS_1 + level] += _ONE
        if m.control[VALIDATE]:
            walk_afresh(
                m.words, m.first, m.second, m.control, cpus, cpu, cpus[cpu, ROOT], va, m.fresh
            )
            how = difference(m.first, m.second, m.data, number, m.fresh.work)
            what = verdict(how, m.data, number, m.freed, m.fresh.work)
            _note(cpus, cpu, va, np.int64(what), m.control, m.log)
        again = not _allowed(m.first, m.second, m.data, number, row, kind)
        if not again and (kind != WRITE or m.data[number, MARKS] & _DIRTY != _Z):
            return
        if not again:
            cpus[cpu, _DIRTY_WALKS] += _ONE
        _forget(m, cpu, va, again)
    cached = not again
    while True:
        done, used, born, marks = _walk(m, cpu, va, row, cached)
        if not used or done or work[OUT, VECTOR] == _Z:
            break
        # the fault may be a walk cache's; it drops what that has, so the next try is right
        _forget(m, cpu, va, _TRUE)
        again, cached = True, False
    if done:
        cpus[cpu, _SPURIOUS] += _ONE if again else _Z
        high = shared if is_global(m.first, work) else own
        fill(
            m.tlb, m.data, m.places, cpu * n, high, va, fetch, kind, m.first,
            m.second.shape[0] > LEVELS, work, cpus[cpu, ROOT], born, marks,
        )  # fmt: skip
    elif work[OUT, EXIT] != _Z:
        cpus[cpu, _EXITS] += _ONE
    elif work[OUT, VECTOR] != _Z:
        # A fault drops what was cached for its page number; that has happened, if there was
        # anything. Small entries of other parts of a large page stay, unlike after INVLPG.
        cpus[cpu, _FAULTS] += _ONE


@kernel
def run_events(m, rules, none, ops, cpus, a, b, c, begin):  # type: ignore[no-untyped-def]
    """Let events happen in order.

    Parameters
    ----------
    m : State
        Changed.
    rules : uint64[:, 6]
        `RULES`.
    none : int64[0]
        TLBs have no levels of tables.
    ops, cpus : uint8[n]
        `Event` and CPU of each.
    a, b, c : uint64[n]
        Their arguments, checked by the caller; the width of a store is 4 or 8.
    begin : int
        Where to begin.

    Returns
    -------
    (int, int)
        Where it stopped, and why.
    """
    control, registers, first, second, data, work = (
        m.control, m.cpu, m.first, m.second, m.data, m.scratch.work,
    )  # fmt: skip
    tags, ids, table, places = m.tlb.tags, m.tlb.ids, m.tlb.table, m.places
    n = table.shape[0] // registers.shape[0]
    work[OUT, OUTSIDE] = _Z
    for i in range(begin, ops.size):
        control[NOW] += _ONE
        op, cpu = np.int64(ops[i]), np.int64(cpus[i])
        if op <= FETCH or (op >= _FIRST_KIND and op <= _LAST_KIND):
            user, ac = np.int64(b[i] & _ONE), np.int64(b[i] >> _ONE & _ONE)
            row = row_of(op if op <= FETCH else op - _FIRST_KIND + SHADOW_READ, user, ac)
            # Nearly all accesses are to a small page of the running context that was the last one
            # used in its set of the first level: for those, no call that passes all the state.
            k = places[0, 1 if op == FETCH else 0, PROBES, 0] + cpu * n
            if k >= cpu * n and op <= FETCH and control[VALIDATE] == _Z:
                own, _ = context(registers, cpu)
                key = a[i] >> _12 & _PAGE | own
                at = (
                    table[k, BASE]
                    + np.int64(key & np.uint64(table[k, SET_MASK])) * table[k, STRIDE]
                )
                if tags[at] == key and table[k, POLICY] == LRU:
                    number = np.int64(ids[at])
                    clean = op == WRITE and data[number, MARKS] & _DIRTY == _Z
                    if not clean and _allowed(first, second, data, number, row, op):
                        registers[cpu, _ACCESSES] += _ONE
                        registers[cpu, _HITS_1] += _ONE
                        continue
            _access(m, cpu, a[i], row)
            if work[OUT, OUTSIDE] != _Z:
                return i, TABLE_OUTSIDE
        elif op == _REFUSED:
            registers[cpu, _ACCESSES] += _ONE
            registers[cpu, _WALKS] += _ONE
            registers[cpu, _FAULTS] += _ONE
        elif op == _STORE:
            store_entry(m.words, a[i], b[i], c[i])
        elif op == _LOAD_CR3 or op == _ENTER:  # noqa: SIM109 (a tuple is slow to compile)
            if op == _ENTER:
                m.cpu[cpu, VPID] = b[i]
            if not load_cr3(m.words, m.first, m.second, control, m.cpu, cpu, a[i], m.scratch):
                return i, BAD_PDPTE
            if op == _LOAD_CR3 and a[i] >> _NOFLUSH == _Z:
                invalidate(m, rules, cpu, op, _Z, _Z)
        elif op == _PROMISE or op == _LAZY:  # noqa: SIM109
            bit = _OVERDUE if op == _PROMISE else _LATE
            for other in range(m.cpu.shape[0]):
                mark(m, m.tlb, m.data, none, other, a[i], b[i] - _ONE, c[i], bit)
                mark(m, m.walk, m.walk_data, m.depths, other, a[i], b[i] - _ONE, c[i], bit)
        elif op == _FREE:
            m.freed[a[i]] = control[NOW]
        else:
            invalidate(m, rules, cpu, op, a[i], b[i])
    return ops.size, DONE
