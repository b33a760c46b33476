"""Events that others imply: what a recording lacks, inferred where that is certain, else refused.

A recording is made with a list of functions and tracepoints; a kernel renames them (paravirt_ and
xen_enter_lazy_mmu of Linux 6.1 and 6.7), so that one may be missing from all of it. A lazy MMU
bracket that is left was entered: by the function that its leave names, after whatever else the
kernel did and before the first change of a leaf entry since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.xen.state import CALLERS, handled
from pvmmu.guest.readers.xen.text import Line

ENTER: Final = ("fn:paravirt_enter_lazy_mmu", "fn:xen_enter_lazy_mmu")
LEAVE: Final = ("fn:paravirt_leave_lazy_mmu", "fn:xen_leave_lazy_mmu")
#: An event, and the one without which it makes no sense; both are recorded or neither is.
_IMPLIED: Final = (
    (ENTER, LEAVE),
    (("xen_mmu_ptep_modify_prot_start",), ("xen_mmu_ptep_modify_prot_commit",)),
    (("xen_mmu_ptep_modify_prot_commit",), ("xen_mmu_ptep_modify_prot_start",)),
)
#: Changes of leaf entries: what a bracket holds.
_LEAF: Final = frozenset((
    "xen_mmu_set_pte", "xen_mmu_set_pte_at", "xen_mmu_ptep_modify_prot_start",
    "xen_mmu_ptep_modify_prot_commit", "PTWR_EMULATION",
))  # fmt: skip
#: Word that marks an inferred record, for `Line.fields`.
INFERRED: Final = "inferred=1"
_SWITCH: Final = "context_switch"


def with_inferred(lines: Iterable[Line], where: str) -> Sequence[Line]:
    """Return the records with what others imply put in.

    Parameters
    ----------
    lines : iterable of Line
        A recording.
    where : str
        Its name, for errors.

    Raises
    ------
    RecordingError
        An event is missing throughout that others imply, and where it was is not certain.
    """
    lines = list(lines)
    seen = {line.event for line in lines}
    for given, implied in _IMPLIED:
        if seen.intersection(given) and not seen.intersection(implied):
            raise RecordingError(
                f"{where}: {_names(given, seen)} is recorded, {' or '.join(implied)} never is: "
                "record it, too"
            )
    if seen.intersection(LEAVE) and not seen.intersection(ENTER):
        return _with_enters(lines, where)
    return lines


def missing_events(lines: Iterable[Line]) -> list[str]:
    """Return the names of the events that `lines` lack and others of them imply."""
    seen = {line.event for line in lines}
    pairs = ((LEAVE, ENTER), *_IMPLIED)
    return [" or ".join(b) for a, b in pairs if seen.intersection(a) and not seen.intersection(b)]


def _names(given: Sequence[str], seen: set[str]) -> str:
    return next(name for name in given if name in seen)


def _with_enters(lines: list[Line], where: str) -> list[Line]:
    """Put the enter of each bracket before the first change of a leaf entry that it holds."""
    boundary = ({*handled(), *(f"fn:{name}" for name in CALLERS)} | {"MARK"}) - _LEAF
    family = next(line.event for line in lines if line.event in LEAVE)
    since: dict[int, Line | None] = {}
    before: dict[int, list[Line]] = {}
    for line in lines:
        if line.event == family:
            caller = line.fields().get("caller", "")
            if not caller or _SWITCH in caller:
                raise RecordingError(
                    f"{where}:{line.number}: a lazy MMU bracket is left by "
                    f"{caller or 'an unnamed function'}, none is ever entered, and where this one "
                    f"was is not certain: record {ENTER[LEAVE.index(family)]}, too"
                )
            first = since.get(line.cpu) or line
            words = [f"caller={caller}", INFERRED]
            enter = Line(first.number, first.tsc, line.cpu, "K", line.pid,
                         ENTER[LEAVE.index(family)], words)  # fmt: skip
            before.setdefault(first.number, []).append(enter)
            since[line.cpu] = None
        elif line.event in _LEAF:
            since[line.cpu] = since.get(line.cpu) or line
        elif line.event in boundary:
            since[line.cpu] = None
    return [one for line in lines for one in (*before.get(line.number, ()), line)]
