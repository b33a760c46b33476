"""Lines of a merged kernel and hypervisor recording, as `Line` tuples.

Format (one record a line, fields separated by blanks)::

    tsc cpu K pid event key=value ...      a kernel event: tracepoint, or fn:FUNCTION caller=...
    tsc cpu X - kind name key=value ...    a hypervisor record: HYPERCALL_V2, PTWR_EMULATION, ...

`tsc` counts cycles from the recording's first mark and never goes backwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.text_files import text_lines


class Line(NamedTuple):
    """One record of a recording."""

    number: int  # of the line in the file, from 1
    tsc: int  # time stamp counter (cycles)
    cpu: int  # where
    source: str  # "K" or "X"
    pid: int  # -1 for X records
    event: str  # K: event name; X: kind
    rest: list[str]  # the remaining words

    def fields(self) -> dict[str, str]:
        """Return the ``key=value`` words; a value may be empty."""
        return dict(w.split("=", 1) for w in self.rest if "=" in w)


_MAX_LINE = 4096


def read_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Yield the records of the recording at `path` (plain text, ``.gz`` or ``.xz``) in order.

    Raises
    ------
    RecordingError
        The file is missing, cut short, or a line has another form; names file and line.
    """
    path = Path(path)
    number, last = 0, -1
    for number, text in text_lines(path, "ascii", _MAX_LINE):
        words = text.split()
        if not words:
            continue
        line = _line(path, number, words)
        if line.tsc < last:
            raise RecordingError(f"{path}:{number}: time goes backwards ({line.tsc} after {last})")
        last = line.tsc
        yield line
    if number == 0:
        raise RecordingError(f"{path}: empty, no record in it")


def _line(path: Path, number: int, words: list[str]) -> Line:
    try:
        source = words[2]
        if source == "K":
            return Line(
                number, int(words[0]), int(words[1]), "K", int(words[3]), words[4], words[5:]
            )
        if source == "X":
            return Line(number, int(words[0]), int(words[1]), "X", -1, words[4], words[5:])
    except (ValueError, IndexError):
        pass
    shown = " ".join(words)[:60]
    raise RecordingError(f"{path}:{number}: not a record ('tsc cpu K|X pid event ...'): {shown!r}")
