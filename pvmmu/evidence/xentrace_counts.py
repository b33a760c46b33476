"""What the hypervisor itself recorded: hypercalls, sub-calls, traps and faults of a recording.

Only the X records are read here; the reader of operations reads the others
(`pvmmu.guest.readers.xen.recording`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.xen.text import Line, read_lines
from pvmmu.modes.events import Event

#: MMU_UPDATE_PREEMPTED: Xen re-executes a call that it interrupted; the guest made it only once.
_CONTINUED = 0x8000_0000
_CALLS = {
    "mmu_update": (Event.MMU_UPDATE, Event.MMU_UPDATE_REQUESTS),
    "update_va_mapping": (Event.UPDATE_VA_MAPPING, None),
    "mmuext_op": (Event.MMUEXT_OP, Event.MMUEXT_OP_REQUESTS),
}
_SUBCALLS = {
    "mmu_update": (Event.SUB_MMU_UPDATE, Event.SUB_MMU_UPDATE_REQUESTS),
    "update_va_mapping": (Event.SUB_UPDATE_VA_MAPPING, None),
    "mmuext_op": (Event.SUB_MMUEXT_OP, Event.SUB_MMUEXT_OP_REQUESTS),
}
#: Counters that are compared, in order of display.
COUNTERS = (
    Event.MMU_UPDATE, Event.MMU_UPDATE_REQUESTS, Event.UPDATE_VA_MAPPING, Event.MMUEXT_OP,
    Event.MMUEXT_OP_REQUESTS, Event.MULTICALL, Event.MULTICALL_SUBCALLS, Event.SUB_MMU_UPDATE,
    Event.SUB_MMU_UPDATE_REQUESTS, Event.SUB_UPDATE_VA_MAPPING, Event.SUB_MMUEXT_OP,
    Event.SUB_MMUEXT_OP_REQUESTS, Event.PTE_EMULATION, Event.PAGE_FAULT,
)  # fmt: skip
#: Events that make up the order of calls.
SEQUENCE = frozenset(
    {e for pair in (*_CALLS.values(), *_SUBCALLS.values()) for e in pair if e is not None}
    | {Event.MULTICALL, Event.MULTICALL_SUBCALLS}
)


@dataclass
class Measured:
    """Counts of a recording's hypervisor records.

    Parameters
    ----------
    counts : Counter of Event
        See `COUNTERS`.
    sequence : dict of int to list of (Event, int)
        For each CPU the calls in order, with their sizes.
    continuations : Counter of str
        Calls that Xen re-executed, by name; not in `counts`.
    other : Counter of str
        Hypercalls that are none of the MMU's.
    """

    counts: Counter[Event] = field(default_factory=Counter)
    sequence: dict[int, list[tuple[Event, int]]] = field(default_factory=dict)
    continuations: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    _expected: dict[int, int] = field(default_factory=dict)

    def add(self, line: Line, where: str) -> None:
        """Take one hypervisor record, `line`; `where` names the recording in errors."""
        if line.event == "PAGE_FAULT":
            self.counts[Event.PAGE_FAULT] += 1
        elif line.event == "PTWR_EMULATION":
            self.counts[Event.PTE_EMULATION] += 1
        elif line.event == "HYPERCALL_V2":
            self._call(line, where)
        elif line.event == "SUBCALL":
            self._subcall(line, where)

    def _call(self, line: Line, where: str) -> None:
        name, size = _name(line, where), _size(line)
        if name == "multicall":
            left = self._expected.get(line.cpu, 0)
            self._expected[line.cpu] = size
            if left:  # the rest of a multicall that was interrupted
                self.continuations[name] += 1
                return
            self._note(line.cpu, Event.MULTICALL, 1)
            self._note(line.cpu, Event.MULTICALL_SUBCALLS, size)
        elif name not in _CALLS:
            self.other[name] += 1
        elif size & _CONTINUED:
            self.continuations[name] += 1
        else:
            self._pair(line.cpu, _CALLS[name], size)

    def _subcall(self, line: Line, where: str) -> None:
        name, size = _name(line, where), _size(line)
        self._expected[line.cpu] = max(0, self._expected.get(line.cpu, 0) - 1)
        if size & _CONTINUED:
            self.continuations[f"subcall.{name}"] += 1
        elif name in _SUBCALLS:
            self._pair(line.cpu, _SUBCALLS[name], size)
        else:
            self.other[f"subcall.{name}"] += 1

    def _pair(self, cpu: int, events: tuple[Event, Event | None], size: int) -> None:
        call, requests = events
        self._note(cpu, call, 1)
        if requests is not None:
            self._note(cpu, requests, size)

    def _note(self, cpu: int, event: Event, amount: int) -> None:
        self.counts[event] += amount
        self.sequence.setdefault(cpu, []).append((event, amount))


def _name(line: Line, where: str) -> str:
    if not line.rest:
        raise RecordingError(f"{where}:{line.number}: {line.event} names no hypercall")
    return line.rest[0]


def _size(line: Line) -> int:
    value = line.fields().get("arg1", "0x1")
    try:
        return int(value, 0)
    except ValueError:
        return 1


def measure(lines: Iterable[Line], where: str = "recording") -> Measured:
    """Return what the hypervisor records among `lines` count; errors name `where`."""
    out = Measured()
    for line in lines:
        if line.source == "X":
            out.add(line, where)
    return out


def measure_recording(path: str | os.PathLike[str]) -> Measured:
    """Return what the hypervisor records of the file `path` count.

    Raises
    ------
    RecordingError
        The file cannot be read.
    """
    return measure(read_lines(path), str(Path(path)))
