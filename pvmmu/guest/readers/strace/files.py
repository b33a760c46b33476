"""Which file each mmap of a recording maps, and how large the files must be."""

from __future__ import annotations

import re
from typing import Final

from pvmmu.guest.readers.strace.lines import CLONES, OPENS, Call
from pvmmu.guest.readers.strace.recorded import Recorded

_NAME: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


def files_of(r: Recorded) -> tuple[dict[int, str], dict[str, int]]:
    """Return the file that each mmap of `r` maps, and the size of each as far as it is mapped.

    Returns
    -------
    dict of int to str
        Index of an mmap call -> name; a descriptor whose open was not recorded is ``fd N of PID``.
    dict of str to int
        Name -> pages.
    """
    tables: dict[int, dict[int, str]] = {}
    named: dict[int, str] = {}
    sizes: dict[str, int] = {}
    for i, call in enumerate(r.calls):
        if call.result is None or call.result < 0 or not call.name:
            continue
        life, change = r.lives.of[i], r.changes[i]
        table = tables.setdefault(life, {})
        if call.name in CLONES and i in r.lives.child:
            shared = "CLONE_FILES" in r.flags[i]
            tables[r.lives.child[i]] = table if shared else dict(table)
        elif call.name in OPENS and (m := _NAME.search(call.arguments)):
            table[call.result] = f"memfd {i}" if call.name == "memfd_create" else m[1]
        elif change is not None and change.kind == "mmap" and change.fd >= 0:
            pid = r.lives.all[life].pid
            name = change.path or table.get(change.fd, f"fd {change.fd} of {pid}")
            named[i] = name
            sizes[name] = max(sizes.get(name, 0), change.offset + change.pages)
        elif change is not None and change.kind == "shmget":
            name = named[i] = f"shared memory {call.result}"
            sizes[name] = max(sizes.get(name, 0), change.pages)
    return named, sizes


def executable(call: Call) -> str:
    """Return the path of an execve."""
    m = _NAME.search(call.arguments)
    return m[1] if m else "program"
