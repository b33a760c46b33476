"""What a replay counts.

Every event has a category, and a figure has one colour for each category: what carried the guest's
operations (store, hypercall, batched entry, trap, emulation, flush), or the hypervisor's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

import numpy as np


@unique
class Event(IntEnum):
    """Events of a replay; the numbers index rows of counts."""

    # the guest does it by itself
    STORE = 0
    LOCKED = 1
    INVLPG = 2
    CR3_LOAD = 3
    FLUSH_ALL = 4
    IPI = 5
    FAULT = 6
    # calls to the hypervisor, and what they carry
    MMU_UPDATE = 10
    MMU_UPDATE_REQUESTS = 11
    UPDATE_VA_MAPPING = 12
    MMUEXT_OP = 13
    MMUEXT_OP_REQUESTS = 14
    MULTICALL = 15
    MULTICALL_SUBCALLS = 16
    SUB_MMU_UPDATE = 17
    SUB_MMU_UPDATE_REQUESTS = 18
    SUB_UPDATE_VA_MAPPING = 19
    SUB_MMUEXT_OP = 20
    SUB_MMUEXT_OP_REQUESTS = 21
    EVENT_CHANNEL_OP = 22
    VMI_CALL = 23
    VMI_UPDATES = 24
    MMU_OP = 25
    MMU_OP_RECORDS = 26
    LGUEST_CALL = 27
    LGUEST_RING = 28
    CUSTOM_CALL = 29
    # entries to the hypervisor that the guest did not ask for
    PAGE_FAULT = 30
    PTE_EMULATION = 31
    PRIVOP_EMULATION = 32
    PTWR_OPEN = 33
    PTWR_HOLE_FAULT = 34
    CUSTOM_UPDATES = 35  # carried by CUSTOM_CALL
    CONTINUATION = 36
    SHADOW_FAULT = 37
    CUSTOM_TRAP = 38
    # work of the hypervisor
    TLB_FLUSH = 40
    TLB_FLUSH_ONE = 41
    ENTRIES_VALIDATED = 42
    ENTRIES_DROPPED = 43
    TABLES_PINNED = 44
    TABLES_UNPINNED = 45
    PTWR_FLUSH = 46
    PTWR_ENTRIES = 47
    SHADOW_DROPPED = 48
    VMI_PAGES = 49
    # remarks
    QUEUED = 50
    REORDERED_WRITE = 51
    # work for VMI
    VMI_CLONED = 54
    VMI_MAPPINGS = 55
    # hypervisors with tables of their own: entries to them, then their work
    VMCALL = 64
    VMCALL_UPDATES = 65
    SPURIOUS_FAULT = 66
    NESTED_FAULT = 67
    CR3_WRITE_EXIT = 68
    CR3_READ_EXIT = 69
    CR4_WRITE_EXIT = 70
    INVLPG_EXIT = 71
    IPI_EXIT = 72
    UNSYNC = 73
    RESYNC = 74
    SHADOW_MADE = 75
    SHADOW_ZAPPED = 76
    PTE_WRITES_APPLIED = 77
    SHADOW_PREFETCHED = 78
    WALK_REFERENCES = 79


N_EVENTS: Final = 96


@dataclass(frozen=True)
class EventInfo:
    """What an event is.

    Parameters
    ----------
    category : str
        ``store``, ``hypercall``, ``batched``, ``trap``, ``emulation``, ``flush``, ``work`` or
        ``remark``.
    entry : bool
        It enters the hypervisor by itself (so that their sum is the number of entries).
    meaning : str
        One line for readers.
    shares : Event or None
        These are requests, and this is the call that carries them.
    rides : bool
        Each of them came with another one's call; otherwise the first of each call made it.
    sends : bool
        A call that takes along what waits in a queue of the CPU.
    """

    category: str
    entry: bool
    meaning: str
    shares: Event | None = None
    rides: bool = False
    sends: bool = False


EVENTS: Final[dict[Event, EventInfo]] = {
    Event.STORE: EventInfo("store", False, "plain store to a table that is ordinary memory"),
    Event.LOCKED: EventInfo("store", False, "locked read-modify-write of such an entry"),
    Event.INVLPG: EventInfo("flush", False, "INVLPG by the guest itself"),
    Event.CR3_LOAD: EventInfo("flush", False, "CR3 load by the guest itself"),
    Event.FLUSH_ALL: EventInfo("flush", False, "flush of a whole TLB by the guest itself"),
    Event.IPI: EventInfo("flush", False, "interrupt to another CPU for a flush"),
    Event.FAULT: EventInfo("trap", False, "page fault that the processor gives to the kernel"),
    Event.MMU_UPDATE: EventInfo("hypercall", True, "mmu_update hypercall", sends=True),
    Event.MMU_UPDATE_REQUESTS: EventInfo(
        "batched", False, "requests in mmu_update hypercalls", shares=Event.MMU_UPDATE
    ),
    Event.UPDATE_VA_MAPPING: EventInfo(
        "hypercall", True, "update_va_mapping hypercall", sends=True
    ),
    Event.MMUEXT_OP: EventInfo("hypercall", True, "mmuext_op hypercall", sends=True),
    Event.MMUEXT_OP_REQUESTS: EventInfo(
        "batched", False, "requests in mmuext_op hypercalls", shares=Event.MMUEXT_OP
    ),
    Event.MULTICALL: EventInfo("hypercall", True, "multicall hypercall", sends=True),
    Event.MULTICALL_SUBCALLS: EventInfo("batched", False, "calls carried in multicalls"),
    Event.SUB_MMU_UPDATE: EventInfo("batched", False, "of these mmu_update"),
    Event.SUB_MMU_UPDATE_REQUESTS: EventInfo(
        "batched", False, "... and its requests", shares=Event.MULTICALL
    ),
    Event.SUB_UPDATE_VA_MAPPING: EventInfo(
        "batched", False, "of these update_va_mapping", shares=Event.MULTICALL
    ),
    Event.SUB_MMUEXT_OP: EventInfo("batched", False, "of these mmuext_op"),
    Event.SUB_MMUEXT_OP_REQUESTS: EventInfo(
        "batched", False, "... and its requests", shares=Event.MULTICALL
    ),
    Event.EVENT_CHANNEL_OP: EventInfo("hypercall", True, "event_channel_op (an IPI's hypercall)"),
    Event.VMI_CALL: EventInfo(
        "hypercall", True, "call into the VMI ROM that enters the hypervisor", sends=True
    ),
    Event.VMI_UPDATES: EventInfo(
        "batched", False, "page-table updates carried by VMI calls", shares=Event.VMI_CALL
    ),
    Event.VMCALL: EventInfo(
        "hypercall", True, "hypercall of a hardware virtual machine", sends=True
    ),
    Event.VMCALL_UPDATES: EventInfo(
        "batched", False, "page-table updates carried by VMCALLs", shares=Event.VMCALL
    ),
    Event.MMU_OP: EventInfo("hypercall", True, "KVM_HC_MMU_OP hypercall", sends=True),
    Event.MMU_OP_RECORDS: EventInfo(
        "batched", False, "records carried by MMU_OP hypercalls", shares=Event.MMU_OP
    ),
    Event.LGUEST_CALL: EventInfo(
        "hypercall", True, "lguest hypercall that enters the host", sends=True
    ),
    Event.LGUEST_RING: EventInfo(
        "batched",
        False,
        "lguest hypercalls that waited in the ring",
        shares=Event.LGUEST_CALL,
        rides=True,
    ),
    Event.PAGE_FAULT: EventInfo("trap", True, "page fault passed on to the guest"),
    Event.PTE_EMULATION: EventInfo(
        "emulation", True, "store to a page table, trapped and emulated"
    ),
    Event.PRIVOP_EMULATION: EventInfo(
        "emulation", True, "privileged instruction, trapped, emulated"
    ),
    Event.PTWR_OPEN: EventInfo("trap", True, "first write to a table: unhooked, made writable"),
    Event.PTWR_HOLE_FAULT: EventInfo("trap", True, "access through an unhooked table"),
    Event.SPURIOUS_FAULT: EventInfo("trap", True, "fault that found nothing to change"),
    Event.NESTED_FAULT: EventInfo("trap", True, "EPT violation or nested page fault"),
    Event.CR3_WRITE_EXIT: EventInfo("trap", True, "load of CR3, intercepted"),
    Event.CR3_READ_EXIT: EventInfo("trap", True, "read of CR3, intercepted"),
    Event.INVLPG_EXIT: EventInfo("trap", True, "INVLPG, intercepted"),
    Event.CR4_WRITE_EXIT: EventInfo("trap", True, "write to CR4, intercepted"),
    Event.IPI_EXIT: EventInfo("trap", True, "interrupt to another vCPU, intercepted"),
    Event.CONTINUATION: EventInfo(
        "hypercall", True, "hypercall that Xen leaves and re-executes to free a table unhooked"
    ),
    Event.CUSTOM_CALL: EventInfo("hypercall", True, "hypercall of a custom mode", sends=True),
    Event.CUSTOM_UPDATES: EventInfo(
        "batched", False, "updates carried by such hypercalls", shares=Event.CUSTOM_CALL
    ),
    Event.CUSTOM_TRAP: EventInfo("emulation", True, "operation that traps in a custom mode"),
    Event.SHADOW_FAULT: EventInfo(
        "trap", True, "fault that the hypervisor answers from the guest's tables: a shadow filled"
    ),
    Event.TLB_FLUSH: EventInfo("flush", False, "flush of a whole TLB by the hypervisor"),
    Event.TLB_FLUSH_ONE: EventInfo("flush", False, "flush of one page by the hypervisor"),
    Event.ENTRIES_VALIDATED: EventInfo("work", False, "present entries checked and referenced"),
    Event.ENTRIES_DROPPED: EventInfo("work", False, "present entries whose references are dropped"),
    Event.TABLES_PINNED: EventInfo("work", False, "table pages that become typed"),
    Event.TABLES_UNPINNED: EventInfo("work", False, "table pages that become ordinary memory"),
    Event.PTWR_FLUSH: EventInfo("work", False, "writable table compared, checked, hooked in again"),
    Event.PTWR_ENTRIES: EventInfo("work", False, "entries that such a comparison found changed"),
    Event.UNSYNC: EventInfo("work", False, "level-1 tables that go out of sync"),
    Event.RESYNC: EventInfo("work", False, "tables out of sync that come back, or go"),
    Event.SHADOW_MADE: EventInfo("work", False, "shadow pages made"),
    Event.SHADOW_ZAPPED: EventInfo("work", False, "shadow pages zapped"),
    Event.PTE_WRITES_APPLIED: EventInfo("work", False, "trapped writes carried over to shadows"),
    Event.SHADOW_PREFETCHED: EventInfo("work", False, "entries filled beside that of a fault"),
    Event.WALK_REFERENCES: EventInfo("work", False, "memory references of two-dimensional walks"),
    Event.SHADOW_DROPPED: EventInfo("work", False, "entries that a shadow loses"),
    Event.VMI_PAGES: EventInfo("work", False, "page-table pages announced to VMI or dismissed"),
    Event.VMI_CLONED: EventInfo("work", False, "entries of a page directory cloned by VMI"),
    Event.VMI_MAPPINGS: EventInfo("work", False, "table pages that VMI is told the address of"),
    Event.QUEUED: EventInfo("remark", False, "updates that waited in a queue"),
    Event.REORDERED_WRITE: EventInfo(
        "remark", False, "trapped writes that overtook queued updates"
    ),
}

#: Events that are entries to the hypervisor.
ENTRIES: Final = tuple(e for e, info in EVENTS.items() if info.entry)
#: Events with which a queue is sent.
SENDS: Final = tuple(e for e, info in EVENTS.items() if info.sends)
CATEGORIES: Final = (
    "store",
    "hypercall",
    "batched",
    "trap",
    "emulation",
    "flush",
    "work",
    "remark",
)


def column(event: Event) -> str:
    """Return the name of the column of `event` in tables: ``mmu_update_requests`` and so on."""
    return event.name.lower()


#: Calls; the events of requests of which the first makes the call; those that ride along.
_SHARED: Final = tuple(
    (
        call,
        [e for e, i in EVENTS.items() if i.shares is call and not i.rides],
        [e for e, i in EVENTS.items() if i.shares is call and i.rides],
    )
    for call in SENDS
)


def shared_requests(counts: np.ndarray) -> np.ndarray:
    """Return how many requests came with another one's hypercall.

    Where calls may carry no request (`Event.VMCALL` and `Event.VMI_CALL` are flushes as well), this
    is the least number: each call is taken to be made by the first of the requests.

    Parameters
    ----------
    counts : int64[..., N_EVENTS]
        Counts of replays.

    Returns
    -------
    int64[...]
    """
    shared = np.zeros(counts.shape[:-1], np.int64)
    for call, making, riding in _SHARED:
        if making:
            shared += np.maximum(counts[..., making].sum(axis=-1) - _calls_of(counts, call), 0)
        shared += counts[..., riding].sum(axis=-1)
    return shared


def _calls_of(counts: np.ndarray, call: Event) -> np.ndarray:
    out: np.ndarray = counts[..., call]
    return out


assert EVENTS.keys() == set(Event)
assert max(Event) < N_EVENTS
