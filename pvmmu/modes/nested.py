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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.base import covered_hooks, one_of
from pvmmu.modes.classes import make_partition
from pvmmu.modes.counters import CPU, emit, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.native import Instruction, mechanisms, native_rows
from pvmmu.modes.outcome import Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Partition, Space

#: Backing page sizes: shift, and levels of the hypervisor's tables that a walk visits.
BACKING: Final = {"4k": (12, 4), "2m": (21, 3), "1g": (30, 2)}
HOOKS: Final = ("flush_tlb_multi",)
_NOTHING: Final = -1
# Mechanisms beside those of `pvmmu.modes.native`.
_WALK: Final = len(Instruction)
_HYPERCALL: Final = _WALK + 1
_FRAMES = np.uint64(0x000F_FFFF_FFFF_F000)
_NO_FLUSH = np.int64(-(1 << 63))
_FAULT, _REFERENCES, _IPI, _CALL = (
    np.int64(e) for e in (Event.NESTED_FAULT, Event.WALK_REFERENCES, Event.IPI_EXIT, Event.VMCALL)
)


@dataclass(frozen=True)
class Nested:
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

    def __post_init__(self) -> None:
        one_of("nested mode: backing", self.backing, tuple(BACKING))
        if self.fresh not in (0, 1):
            raise ModeError(f"nested mode: fresh must be 0 or 1, not {self.fresh!r}")

    @property
    def spec(self) -> str:
        """``nested``, and what is not the default."""
        parts = [f"backing={self.backing}"] if self.backing != "2m" else []
        parts += ["fresh=1"] if self.fresh else []
        return "nested" + (":" + ",".join(parts) if parts else "")

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        has_remote = bool((trace["op"] == Op.FLUSH_OTHERS).any())

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            return has_remote and "flush_tlb_multi" in subset

        return make_partition(space, (), (HOOKS,), signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        mechanism, event, names = mechanisms(trace)
        remote = "flush_tlb_multi" in hooks
        op, behind = trace["op"], (trace["flags"] & Flag.NATIVE_ONLY) != 0
        carried = native_rows(mechanism) & (op != Op.SEND_IPI)
        carried &= ~(behind & remote & (op != Op.LOAD_CR3))
        runs = []
        for times in counts_of_rows(trace):
            counts, rows = new_counts(), new_log(4 * len(trace) + 64 if log else 0)
            pages, frames = _places(trace)
            _run_nested(
                op, trace["cpu"], event, carried, times, pages, frames,
                trace["value"].view(np.int64), np.bool_(remote), self._shape(trace, frames), counts,
                rows,
            )  # fmt: skip
            runs.append((counts, rows))
        mechanism[op == Op.TOUCH] = _WALK
        if remote:
            mechanism[op == Op.FLUSH_OTHERS] = _HYPERCALL
            mechanism[~carried & (mechanism == Instruction.IPI)] = Instruction.NOTHING
        return outcome(runs, mechanism, {**names, _WALK: "walk", _HYPERCALL: "hypercall"})

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
    op, cpu, event, carried, times, pages, frames, value, remote, shape, counts, log
):  # fmt: skip
    """Carry every row.

    Parameters
    ----------
    op, cpu : uint8[row]
        Columns of the trace.
    event : int64[row]
        What the operation is natively.
    carried : bool[row]
        It is made.
    times : int64[row]
        How often.
    pages, frames : int64[row]
        Number of the page it is about; frame that an entry maps, -1 for none.
    value : int64[row]
        Column of the trace.
    remote : bool
        Flushes of other vCPUs are calls.
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
        if carried[row]:
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
        elif op[row] == Op.FLUSH_OTHERS and remote:
            emit(counts, log, row, _CALL, ONE)
        elif op[row] == Op.SEND_IPI and not remote:
            emit(counts, log, row, _IPI, times[row])


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
