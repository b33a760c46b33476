"""A trace on bare hardware: its stores, flushes and touches drive the MMUs of `pvmmu.x86`.

Every table that the guest makes is there in memory, every access walks it or hits a TLB, and the
validator says whether a translation was used after a promised flush should have removed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from pvmmu.errors import TraceError
from pvmmu.guest.trace import Flag, Op, Trace
from pvmmu.guest.vocabulary import SET_UPPER_OPS
from pvmmu.x86 import bits
from pvmmu.x86.geometry import Geometry
from pvmmu.x86.mmu import Mmu
from pvmmu.x86.mmu_events import EVENT_DTYPE, USER, Event
from pvmmu.x86.registers import Registers

#: Operations that change a leaf entry to the value of their row.
_LEAF: Final = frozenset({
    Op.SET_PTE, Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_CLEAR,
    Op.MODIFY_PROT_COMMIT, Op.PTE_RMW,
})  # fmt: skip
#: Operations that carry out a decision to flush.
FLUSHES: Final = frozenset({Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL})
_OF_A_FLUSH: Final = FLUSHES | {Op.FLUSH_OTHERS, Op.SEND_IPI, Op.LOAD_CR3}
_KERNEL_ACCESS: Final = 4  # in the value of a TOUCH
_Event = tuple[int, int, int, int, int]


def on_hardware(
    trace: Trace, geometry: Geometry | str = "skylake", *, without: np.ndarray | None = None,
    effect: np.ndarray | None = None, flushed: np.ndarray | None = None,
) -> Mmu:  # fmt: skip
    """Run a trace on processors with TLBs, validated.

    Parameters
    ----------
    trace : Trace
        Modelled with touches, from the start of its first program (``whole=True``), without PCIDs.
    geometry : Geometry or str
        TLBs of all CPUs.
    without : bool[row], optional
        Rows that do not happen: flushes that a wrong design forgets.
    effect : int64[row], optional
        Row behind which each store and flush takes effect, where something queues them; its own by
        default.
    flushed : int64[n], optional
        Rows at which a hypervisor flushes the CPU's whole TLB on its own account.

    Returns
    -------
    Mmu
        After the last row; `Mmu.harmful` counts the uses of translations that should be gone.

    Raises
    ------
    TraceError
        The trace begins in the middle of things, its frames are the machine's, or it uses PCIDs.
    """
    if any(mm.older for mm in trace.mms[1:]) or (trace["flags"] & Flag.MACHINE).any():
        raise TraceError(f"{trace.name}: only what is modelled from its start can run on hardware")
    if trace.platform.pcid:
        raise TraceError(f"{trace.name}: PCIDs are not modelled here")
    skip = np.zeros(len(trace), np.bool_) if without is None else np.asarray(without, np.bool_)
    tables = int(max(trace["table"].max(initial=0), *(mm.pgd for mm in trace.mms)))
    words = np.zeros((tables + 1) * 512, np.uint64)
    mmu = Mmu(
        words, _registers_of(trace, trace.mms[0].pgd << 12), geometry,
        cpus=trace.platform.vcpus, validate=True,
    )  # fmt: skip
    when = np.arange(len(trace)) if effect is None else np.asarray(effect, np.int64)
    own = np.zeros(0, np.int64) if flushed is None else np.asarray(flushed, np.int64)
    happens = sorted(_events(trace, skip, when.tolist(), set(own.tolist())), key=lambda e: e[0])
    mmu.run(np.array([event for _, event in happens], EVENT_DTYPE))
    return mmu


def _registers_of(trace: Trace, cr3: int) -> Registers:
    """Return the control registers of a trace's platform, with a page-table base."""
    levels = trace.platform.levels
    cr4 = bits.CR4_PSE if levels == 2 else bits.CR4_PAE
    cr4 |= bits.CR4_PGE if trace.platform.pge else 0
    cr4 |= bits.CR4_LA57 if levels == 5 else 0
    efer = bits.EFER_NXE if levels > 2 else 0
    efer |= bits.EFER_LMA | bits.EFER_LME if levels > 3 else 0
    return Registers(bits.CR0_PG | bits.CR0_PE | bits.CR0_WP, cr3, cr4, efer)


def _events(
    trace: Trace, skip: np.ndarray, when: list[int], flushed: set[int]
) -> Iterator[tuple[int, _Event]]:
    """Yield what each row does to the hardware, and behind which row."""
    columns = ("op", "cpu", "mm", "va", "value", "table", "index", "count", "flags")
    op, cpu, mm, va, value, table, index, count, flags = (trace[c].tolist() for c in columns)
    size = 4 if trace.platform.levels == 2 else 8
    roots = [m.pgd << 12 for m in trace.mms]
    loaded = [0] * trace.platform.vcpus
    promised: dict[int, _Event] = {}
    for i in range(len(op)):
        o, c, m = op[i], cpu[i], mm[i]
        if c in promised and o not in _OF_A_FLUSH:
            yield i - 1, promised.pop(c)
        if i in flushed:
            yield i, (Event.LOAD_CR3, c, roots[loaded[c]], 0, 0)
        if skip[i]:
            continue
        if o == Op.TOUCH:
            yield i, (value[i] & 3, c, va[i], 0 if value[i] & _KERNEL_ACCESS else USER, 0)
        elif o == Op.FAULT:  # the access itself: it faults unless a stale entry lets it through
            code = value[i]
            kind = Event.FETCH if code & 16 else Event.WRITE if code & 2 else Event.READ
            yield i, (kind, c, va[i], USER if code & 4 else 0, 0)
        elif o in _LEAF or o in SET_UPPER_OPS:
            at = table[i] * 4096 + index[i] * size
            yield when[i], (Event.STORE, c, at, value[i], 0)
        elif o == Op.LOAD_CR3:
            loaded[c] = m
            yield when[i], (Event.LOAD_CR3, c, roots[m], 0, 0)
        elif o in FLUSHES:
            everywhere = flags[i] & Flag.NATIVE_ONLY or m <= 0 or o == Op.FLUSH_KERNEL
            where = [k for k, x in enumerate(loaded) if x == m or m <= 0] if everywhere else [c]
            for k in where:
                yield when[i], _flush(o, k, va[i], roots[loaded[k]])
        elif o == Op.FLUSH_RANGE:
            everything = count[i] < 0
            start = 0 if everything else va[i]
            end = (1 << 64) - 1 if everything else start + max(1, count[i]) * 4096
            promised[c] = (Event.PROMISE, c, start, end, roots[m])
    for event in promised.values():
        yield len(op), event


def _flush(op: int, cpu: int, va: int, root: int) -> _Event:
    """Return what a flush does to a CPU."""
    if op == Op.FLUSH_ONE:
        return Event.INVLPG, cpu, va, 0, 0
    if op == Op.FLUSH_KERNEL:
        return Event.TOGGLE_PGE, cpu, 0, 0, 0
    return Event.LOAD_CR3, cpu, root, 0, 0
