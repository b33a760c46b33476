"""Lines of ``strace -f`` output: complete calls in the order in which they take effect.

Known forms: output to a file (``-o``: a PID in front) or to the terminal (``[pid N]``, or nothing
for a single process), with or without times (``-t``, ``-tt``, ``-ttt``, ``-r``, ``-T``) and paths
of descriptors (``-y``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.text_files import text_lines

_PREFIX: Final = re.compile(
    r"(?:\[pid\s+(\d{1,10})\]\s+|(\d{1,10})\s+)?"  # who
    r"(?:\d\d:\d\d:\d\d(?:\.\d+)?\s+|\+?\d+\.\d+(?:\s\(\+\s*[\d.]+\))?\s+)?"  # when
)
_CALL: Final = re.compile(r"(\w+)\((.*)\)\s+=\s+(-?\d\w*|\?)(.*)$")
_START: Final = re.compile(r"(\w+)\((.*?)\s*<unfinished \.\.\.>\)?(?:\s+=\s+\?)?$")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)$")
_END: Final = re.compile(r"\+\+\+ (exited with|killed by) (\S+).*\+\+\+$")
_OTHER: Final = re.compile(r"---\s.*---$|strace: .*$|\+\+\+ superseded by .*\+\+\+$")
#: Calls that take effect when they begin: what their child does may be written before they return.
_EARLY: Final = frozenset({"clone", "clone3", "fork", "vfork", "execve", "execveat"})
_MAX_LINE: Final = 1 << 20


@dataclass
class Call:
    """A system call, or the end of a process.

    Parameters
    ----------
    number : int
        Line in the file, from 1.
    pid : int
        Of the caller; 0 where the file names none.
    name : str
        Of the call; ``+++`` for the end of a process.
    arguments : str
        As written.
    result : int or None
        What it returned; None if it did not (``?``, or the recording ends before).
    """

    number: int
    pid: int
    name: str
    arguments: str
    result: int | None = None


def read_calls(path: str | os.PathLike[str]) -> list[Call]:
    """Read a recording (text, ``.gz`` or ``.xz``).

    Raises
    ------
    RecordingError
        The file is missing, cut short, no text, or a line has another form; names file and line.
    """
    path = Path(path)
    calls: list[Call] = []
    waiting: dict[int, Call] = {}
    for number, text in numbered_lines(path):
        _read_line(path, number, text, calls, waiting)
    if not calls:
        raise RecordingError(f"{path}: no system call in it")
    return calls


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a file that are not empty.

    Raises
    ------
    RecordingError
        The file is missing, cut short, no text, or a line does not end.
    """
    for number, line in text_lines(path, "utf-8", _MAX_LINE):
        if len(line) == _MAX_LINE:
            raise RecordingError(f"{path}:{number}: a line of {_MAX_LINE} bytes or more")
        if line.strip():
            yield number, line.rstrip()


def _read_line(
    path: Path, number: int, text: str, calls: list[Call], waiting: dict[int, Call]
) -> None:
    """Read one line; a call that is not finished waits until it is resumed."""
    prefix = _PREFIX.match(text)
    assert prefix is not None  # all of it is optional
    pid, rest = int(prefix[1] or prefix[2] or 0), text[prefix.end() :]
    if m := _RESUMED.match(rest):
        call = waiting.pop(pid, None)
        if call is None or call.name != m[1]:
            raise RecordingError(f"{path}:{number}: {m[1]} is resumed but was not begun")
        _resume(path, number, call, m[2])
        if call.name not in _EARLY:
            call.number = number
            calls.append(call)
    elif m := _START.match(rest):
        waiting[pid] = Call(number, pid, m[1], m[2])
        if m[1] in _EARLY:
            calls.append(waiting[pid])
    elif m := _CALL.match(rest):
        calls.append(Call(number, pid, m[1], m[2], _result(m[3])))
    elif _END.match(rest):
        calls.append(Call(number, pid, "+++", ""))
    elif not _OTHER.match(rest):
        raise RecordingError(f"{path}:{number}: not a line of strace -f: {text[:60]!r}")


def _resume(path: Path, number: int, call: Call, rest: str) -> None:
    """Add the rest of a call's arguments, and its result."""
    m = _CALL.match(f"x({rest.strip()}")
    if m is None:
        raise RecordingError(f"{path}:{number}: {call.name} is resumed without a result")
    call.arguments = ", ".join(x.strip(" ,") for x in (call.arguments, m[2]) if x.strip(" ,"))
    call.result = _result(m[3])


def _result(text: str) -> int | None:
    try:
        return None if text == "?" else int(text, 0)
    except ValueError:
        return None
