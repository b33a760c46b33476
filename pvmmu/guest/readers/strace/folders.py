"""Recordings of ``strace -ff``: one file for each process, ``NAME.PID``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.strace.lines import CLONES, Call, seconds
from pvmmu.guest.readers.strace.transcript import Transcript
from pvmmu.guest.readers.text_files import without_compression

_OF_A_PROCESS: Final = re.compile(r"(.+)\.(\d{1,10})")


def siblings(path: Path) -> dict[int, Path]:
    """Return the files of a recording by process.

    Parameters
    ----------
    path : Path
        The folder that holds them, or what their names have in common.

    Raises
    ------
    RecordingError
        A folder holds several recordings.
    """
    folder = path if path.is_dir() else path.parent
    named: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        m = _OF_A_PROCESS.fullmatch(without_compression(file.name))
        if m and file.is_file():
            named.setdefault(m[1], {})[int(m[2])] = file
    if folder is not path:
        return named.get(path.name, {})
    if len(named) > 1:
        names = ", ".join(str(path / x) for x in sorted(named)[:4])
        raise RecordingError(f"{path}: several recordings of strace -ff; name one: {names}")
    return next(iter(named.values()), {})


def read_folder(path: Path) -> Transcript:
    """Read a recording of several files.

    Raises
    ------
    RecordingError
        There is no file of a process, or one cannot be read; names file and line.
    """
    out, calls = Transcript(path), dict[int, list[Call]]()
    for pid, file in siblings(path).items():
        one = Transcript(file)
        try:
            mine = one.read()
        except RecordingError as e:
            if "no system call" not in str(e):
                raise
            out.left_out["files without a system call"] += 1
            continue
        for call in mine:
            call.pid = pid
        calls[pid] = mine
        out.left_out += one.left_out
        out.modes |= one.modes
    if not calls:
        raise RecordingError(
            f"{path}: no file of strace -ff in it (NAME.PID, with system calls of one process)"
        )
    timed = all(seconds(c.time) is not None for mine in calls.values() for c in mine if c.name)
    if timed:
        out.calls = sorted(
            (c for mine in calls.values() for c in _timed(mine)), key=lambda c: float(c.time)
        )
    else:
        out.calls = _by_birth(calls)
        out.left_out["processes in no known order (-ff without -ttt), run when born"] = len(calls)
    return out


def _timed(calls: Sequence[Call]) -> Sequence[Call]:
    """Give each call the number of seconds at which it began."""
    last = 0.0
    for call in calls:
        last = seconds(call.time) or last
        call.time = str(last)
    return calls


def _by_birth(calls: dict[int, list[Call]]) -> list[Call]:
    """Return the calls of all processes, each child's behind the call that makes it."""
    out: list[Call] = []
    left = dict(calls)
    while left:
        made = {c.result for mine in left.values() for c in mine if c.name in CLONES}
        first = next((p for p in left if p not in made), next(iter(left)))
        stack = [iter(left.pop(first))]
        while stack:
            call = next(stack[-1], None)
            if call is None:
                stack.pop()
                continue
            out.append(call)
            if call.name in CLONES and call.result in left:
                stack.append(iter(left.pop(call.result)))
    return out
