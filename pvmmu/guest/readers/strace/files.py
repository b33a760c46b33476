"""Which file each mmap of a recording maps, and how large the files must be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pvmmu.guest.readers.strace.lines import Call
from pvmmu.guest.readers.strace.memory import change_of

_NAME: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SHARED: Final = "CLONE_FILES"
_MAKES: Final = frozenset({"clone", "clone3", "fork", "vfork"})


def files_of(path: Path, calls: Sequence[Call]) -> tuple[dict[int, str], dict[str, int]]:
    """Return the file that each mmap maps, and the size of each file as far as it is mapped.

    Parameters
    ----------
    path : Path
        Of the recording, for messages.
    calls : sequence of Call
        In order.

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
    for i, call in enumerate(calls):
        table = tables.setdefault(call.pid, {})
        if call.result is None or call.result < 0:
            continue
        if call.name in _MAKES:
            shared = _SHARED in call.arguments
            tables[call.result] = table if shared else dict(table)
        elif call.name in ("open", "openat") and (m := _NAME.search(call.arguments)):
            table[call.result] = m[1]
        elif call.name == "mmap":
            change = change_of(path, call)
            if change.fd >= 0:
                name = change.path or table.get(change.fd, f"fd {change.fd} of {call.pid}")
                named[i] = name
                sizes[name] = max(sizes.get(name, 0), change.offset + change.pages)
    return named, sizes


def executable(call: Call) -> str:
    """Return the path of an execve."""
    m = _NAME.search(call.arguments)
    return m[1] if m else "program"
