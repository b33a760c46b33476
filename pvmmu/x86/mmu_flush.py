"""What each kind of invalidation removes from TLBs, walk caches and nested TLBs."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import part
from pvmmu.x86.mmu_events import Count, Event
from pvmmu.x86.mmu_state import (
    COUNTS,
    VPID,
)
from pvmmu.x86.mmu_tlb import (
    context,
    drop,
    drop_nested,
)
from pvmmu.x86.tlb_sets import (
    CONTEXT_MASK,
    CONTEXT_SHIFT,
    GLOBAL_BIT,
    VPID_MASK,
    VPID_SHIFT,
)

# How an invalidation chooses entries: one row for each event. Bits of tags that must match (of
# TLBs, of walk caches); where the value comes from; whether only the page of the address, and only
# tables used for it, go; whether global pages of that address go, too.
_TLB_MASK, _WALK_MASK, _VALUE, _OF_PAGE, _OF_TABLES, _GLOBALS = range(6)
_OWN, _THIS_VPID, _PCID_GIVEN, _VPID_GIVEN, _EVERY_VPID, _EVERYTHING = range(6)
_NONGLOBAL_OF_VPID: Final = GLOBAL_BIT | VPID_MASK
_ONE_CONTEXT: Final = GLOBAL_BIT | CONTEXT_MASK
_FIRST: Final = int(Event.INVLPG)
_RULES: Final = {
    Event.INVLPG: (_ONE_CONTEXT, CONTEXT_MASK, _OWN, 1, 0, 1),
    Event.INVPCID_ADDRESS: (_ONE_CONTEXT, CONTEXT_MASK, _PCID_GIVEN, 1, 1, 0),
    Event.INVPCID_SINGLE: (_ONE_CONTEXT, CONTEXT_MASK, _PCID_GIVEN, 0, 0, 0),
    Event.INVPCID_ALL: (VPID_MASK, VPID_MASK, _THIS_VPID, 0, 0, 0),
    Event.INVPCID_ALL_NONGLOBAL: (_NONGLOBAL_OF_VPID, VPID_MASK, _THIS_VPID, 0, 0, 0),
    Event.LOAD_CR3: (_ONE_CONTEXT, CONTEXT_MASK, _OWN, 0, 0, 0),
    Event.TOGGLE_PGE: (VPID_MASK, VPID_MASK, _THIS_VPID, 0, 0, 0),
    Event.INVVPID_ADDRESS: (VPID_MASK, VPID_MASK, _VPID_GIVEN, 1, 1, 0),
    Event.INVVPID_SINGLE: (VPID_MASK, VPID_MASK, _VPID_GIVEN, 0, 0, 0),
    Event.INVVPID_ALL: (VPID_MASK, VPID_MASK, _EVERY_VPID, 0, 0, 0),
    Event.INVVPID_SINGLE_NONGLOBAL: (_NONGLOBAL_OF_VPID, VPID_MASK, _VPID_GIVEN, 0, 0, 0),
    Event.INVEPT: (0, 0, _EVERYTHING, 0, 0, 0),
}
#: The rules as an array, for the kernels.
RULES: Final = np.array([_RULES[Event(i)] for i in range(_FIRST, _FIRST + len(_RULES))], np.uint64)
#: With EFER.TCE (AMD) INVLPG spares tables that are not used for its address (APM vol. 2 §5.5.3).
TCE_RULES: Final = RULES.copy()
TCE_RULES[int(Event.INVLPG) - _FIRST, _OF_TABLES] = 1

_Z, _ONE, _2, _3, _4 = (np.uint64(i) for i in range(5))
_PCID_AT, _VPID_AT = np.uint64(CONTEXT_SHIFT), np.uint64(VPID_SHIFT)
_INVALIDATIONS, _DROPPED = COUNTS + Count.INVALIDATIONS, COUNTS + Count.ENTRIES_DROPPED
_INVEPT = int(Event.INVEPT)


@part
def invalidate(m, rules, cpu, op, a, b):  # type: ignore[no-untyped-def]
    """INVLPG, INVPCID, INVVPID, INVEPT and their kin (SDM vol. 3A §4.10.4.1, vol. 3C §28.4.3.3)."""
    own, shared = context(m.cpu, cpu)
    vpid, r, source = m.cpu[cpu, VPID] << _VPID_AT, op - _FIRST, rules[op - _FIRST, _VALUE]
    value = own if source == _Z else (vpid if source == _ONE else _Z)
    if source == _2:
        value = vpid | b << _PCID_AT
    elif source == _3:
        value = b << _VPID_AT
    of_tlb, of_walk = m.tlb.table.shape[0] // m.cpu.shape[0], m.depths.shape[0]
    # all VPIDs but 0, one by one, or a single round
    for v in range(1, 16 if source == _4 else 2):
        value = np.uint64(v) << _VPID_AT if source == _4 else value
        other = shared if rules[r, _GLOBALS] != _Z else value
        mask, page = rules[r, _TLB_MASK], rules[r, _OF_PAGE] != _Z
        removed = drop(m.tlb, m.data, cpu, of_tlb, mask, value, other, a, page)
        mask, page = rules[r, _WALK_MASK], rules[r, _OF_TABLES] != _Z
        removed += drop(m.walk, m.walk_data, cpu, of_walk, mask, value, value, a, page)
        m.cpu[cpu, _DROPPED] += np.uint64(removed)
    if op == _INVEPT:
        m.cpu[cpu, _DROPPED] += np.uint64(drop_nested(m.scratch.cache, cpu))
    m.cpu[cpu, _INVALIDATIONS] += _ONE
