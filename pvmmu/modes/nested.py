"""Nested paging (EPT, NPT): the processor walks the guest's tables and the hypervisor's in turn.

The guest's own work on its tables is native: no exit for a store, a fault, a load of CR3 or a
flush. What remains are violations, one for each backing page at its first touch; walks in two
dimensions at every TLB miss, (g+1)(h+1)-1 references instead of g (Bhargava et al., ASPLOS 2008),
which make no exit and so are the hidden price; and interrupts for flushes of other vCPUs, which
wait for vCPUs that do not run unless ``flush_tlb_multi`` is hooked.

The TLB of this count holds everything until it is flushed, so references are a lower bound;
`pvmmu.x86` has TLBs with sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.base import one_of
from pvmmu.modes.counters import CPU, emit, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.native import Instruction, Native, events_of_instructions
from pvmmu.modes.rules import Rule, Table, native_rows_of

#: Backing page sizes: shift, and levels of the hypervisor's tables that a walk visits.
BACKING: Final = {"4k": (12, 4), "2m": (21, 3), "1g": (30, 2)}
_NOTHING: Final = -1
# Mechanisms beside those of `pvmmu.modes.native`.
_WALK = len(Instruction)
_HYPERCALL = _WALK + 1
_FRAMES = np.uint64(0x000F_FFFF_FFFF_F000)
_NO_FLUSH = np.int64(-(1 << 63))
_FAULT, _REFERENCES, _CALL = (
    np.int64(e) for e in (Event.NESTED_FAULT, Event.WALK_REFERENCES, Event.VMCALL)
)


_RULES: Final[Table] = {
    **Native.rules,
    Op.TOUCH: _WALK,
    Op.FLUSH_OTHERS: Rule(("flush_tlb_multi",), _HYPERCALL, Instruction.NOTHING),
    Op.SEND_IPI: Rule(("flush_tlb_multi",), Instruction.NOTHING, Instruction.IPI),
}


@dataclass(frozen=True)
class Nested(Native):
    """Nested paging.

    Parameters
    ----------
    backing : str
        Size of the pages that hold the guest's memory: ``4k``, ``2m`` or ``1g``.
    fresh : int
        1: no page of the guest's memory has been touched before the trace begins; 0: all have.

    Raises
    ------
    ModeError
        There is no such size.
    """

    backing: str = "2m"
    fresh: int = 0
    name: ClassVar[str] = "nested"
    title: ClassVar[str] = "nested paging (EPT, NPT)"
    rules: ClassVar[Table] = _RULES

    def __post_init__(self) -> None:
        one_of("nested mode: backing", self.backing, tuple(BACKING))
        if self.fresh not in (0, 1):
            raise ModeError(f"nested mode: fresh must be 0 or 1, not {self.fresh!r}")

    @property
    def names(self) -> dict[int, str]:
        """Names of the mechanisms: native instructions, walks, hypercalls."""
        return super().names | {_WALK: "walk", _HYPERCALL: "hypercall"}

    def count(
        self, trace: Trace, mechanism: np.ndarray, times: np.ndarray, log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry the rows."""
        counts, rows = new_counts(), new_log(4 * len(trace) + 64 if log else 0)
        pages, frames = _places(trace)
        event = np.full(_HYPERCALL + 1, -1, np.int64)
        event[1:_WALK] = events_of_instructions()[1:]
        event[Instruction.IPI] = Event.IPI_EXIT
        calls, counted = mechanism == _HYPERCALL, event[mechanism]
        if calls.any():  # what the native flush of other vCPUs does is done by the hypervisor
            counted[native_rows_of(trace, "flush_tlb_multi")] = -1
        _run_nested(
            trace["op"], trace["cpu"], counted, calls, times, pages,
            frames, trace["value"].view(np.int64), self._shape(trace, frames), counts, rows,
        )  # fmt: skip
        return counts, rows

    def _shape(self, trace: Trace, frames: np.ndarray) -> np.ndarray:
        """Return what the loop needs to know, int64[6]."""
        shift, host = BACKING[self.backing]
        references = (trace.platform.levels + 1) * (host + 1) - 1
        regions = (int(frames.max(initial=0)) >> shift - 12) + 1
        return np.array([shift - 12, references, self.fresh, regions, trace.platform.vcpus, 0])


def _places(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Number the pages of each address space; return number and frame (-1: none) for each row."""
    if "places of nested mode" not in trace.derived:
        trace.derived["places of nested mode"] = _numbered(trace)
    out: tuple[np.ndarray, np.ndarray] = trace.derived["places of nested mode"]
    return out


def _numbered(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    page = (trace["va"] >> np.uint64(12)).astype(np.int64) * (len(trace.mms) + 1) + trace["mm"]
    number = np.unique(page, return_inverse=True)[1].astype(np.int64)
    frame = ((trace["value"] & _FRAMES) >> np.uint64(12)).astype(np.int64)
    maps = (trace["op"] == Op.SET_PTE) | (trace["op"] == Op.MODIFY_PROT_COMMIT)
    return number, np.where(maps & (trace["value"] & np.uint64(1) != 0), frame, _NOTHING)


@kernel
def _run_nested(  # type: ignore[no-untyped-def]
    op, cpu, event, calls, times, pages, frames, value, shape, counts, log
):  # fmt: skip
    """Carry every row.

    Parameters
    ----------
    op, cpu : uint8[row]
        Columns of the trace.
    event : int64[row]
        What the guest's instruction counts as; -1 if there is none.
    calls : bool[row]
        It is a flush of other vCPUs by hypercall.
    times : int64[row]
        How often.
    pages, frames : int64[row]
        Number of the page it is about; frame that an entry maps, -1 for none.
    value : int64[row]
        Column of the trace.
    shape : int64[6]
        Backing shift (frames), references of a walk, fresh, regions, vCPUs.
    counts, log
        See `pvmmu.modes.counters`.
    """
    count = pages.max() + 1 if pages.shape[0] else 0
    frame_of = np.full(count, -1, np.int64)
    seen = np.zeros((shape[4], count), np.int64)
    epoch = np.ones(shape[4], np.int64)
    touched = np.zeros(shape[3], np.bool_)
    for row in range(op.shape[0]):
        c = cpu[row]
        counts[CPU] = c
        if event[row] >= 0:
            emit(counts, log, row, event[row], times[row])
        if frames[row] >= 0:
            frame_of[pages[row]] = frames[row]
        if op[row] == Op.TOUCH:
            _touch(row, c, pages[row], frame_of, seen, epoch, touched, shape, counts, log)
        elif op[row] == Op.FLUSH_ONE:
            seen[c, pages[row]] = 0
        elif (
            op[row] == Op.FLUSH_USER
            or op[row] == Op.FLUSH_KERNEL
            or (op[row] == Op.LOAD_CR3 and value[row] & _NO_FLUSH == 0)
        ):
            epoch[c] += 1
        elif calls[row]:
            emit(counts, log, row, _CALL, ONE)


@kernel
def _touch(row, c, page, frame_of, seen, epoch, touched, shape, counts, log):  # type: ignore[no-untyped-def]
    """A touch: a walk if the TLB does not hold the page, a violation if nothing backs it yet."""
    if seen[c, page] == epoch[c]:
        return
    seen[c, page] = epoch[c]
    emit(counts, log, row, _REFERENCES, shape[1])
    frame = frame_of[page]
    if shape[2] and frame >= 0:
        region = frame >> shape[0]
        if not touched[region]:
            touched[region] = True
            emit(counts, log, row, _FAULT, ONE)
