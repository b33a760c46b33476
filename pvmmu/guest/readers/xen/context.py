"""What a recording shows beside the operations of its guest's MMU, and what a program pays for too.

A system call of a 64-bit Xen PV guest goes through the hypervisor both ways, a context switch sets
the kernel's stack and segments by hypercalls, and every entry that the kernel reads is translated
from machine to guest frames by a function of its backend. None of these is an operation on the MMU
that a hook could carry otherwise; all of them are instructions that Xen adds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pvmmu.guest.readers.xen.text import Line, read_lines

#: Functions of Linux 6.1, arch/x86/xen/mmu_pv.c, that translate an entry which is read. (Those that
#: make an entry precede its store, and are priced with it.)
READS: Final = frozenset(f"fn:xen_{name}_val" for name in ("pgd", "p4d", "pud", "pmd", "pte"))
#: System calls of the recorder for a mark: a write to the kernel's trace, one to the hypervisor's.
_PER_MARK: Final = 2
#: What is counted.
CONTEXT: Final = ("system_calls", "switches", "entries_read")


def recording_context(path: str | os.PathLike[str]) -> dict[str, int]:
    """Count what a recording shows beside its guest's operations.

    Parameters
    ----------
    path : path-like
        A recording; see `pvmmu.guest.readers.xen.recording`.

    Returns
    -------
    dict of str to int
        ``system_calls`` (returns by the hypercall iret, without those from faults and those of the
        recorder's marks), ``switches`` (of tasks) and ``entries_read`` (and translated).

    Raises
    ------
    RecordingError
        The file cannot be read; names file and line.
    """
    return context_of_lines(read_lines(path))


def context_of_lines(lines: Iterable[Line]) -> dict[str, int]:
    """Count the same in records already read."""
    returns = faults = marks = switches = reads = 0
    for line in lines:
        if line.source == "X":
            returns += line.event == "HYPERCALL_V2" and line.rest[:1] == ["iret"]
            faults += line.event == "PAGE_FAULT"
        else:
            marks += line.event == "MARK"
            switches += line.event == "sched_switch"
            reads += line.event in READS
    calls = returns - faults - _PER_MARK * max(0, marks - 1)
    return dict(zip(CONTEXT, (max(0, calls), switches, reads), strict=True))
