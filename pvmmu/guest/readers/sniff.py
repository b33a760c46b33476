"""What a file is, whatever its name: told from its content."""

from __future__ import annotations

import atexit
import re
import shutil
import sys
import tempfile
from enum import Enum, unique
from functools import cache
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.memory.read import layout_of
from pvmmu.guest.readers.memory.textual import header
from pvmmu.guest.readers.strace.lines import (
    ATTACHED,
    END,
    KNOWN,
    LEADER,
    NAME,
    PERSONALITY,
    RESUMED,
    SIGNAL,
)
from pvmmu.guest.readers.text_files import opened, reading

#: How a file name stands for standard input.
STDIN: Final = "-"
#: How each kind is recorded.
KNOWN_KINDS: Final = """\
strace (strace -f -o FILE PROGRAM), a merged Xen recording (tsc cpu K|X pid event ...), \
.parquet of pvmmu, and for pvmmu tlb a memory trace (valgrind --tool=lackey --trace-mem=yes, Pin's \
pinatrace, din, drmemtrace, gem5, ChampSim, CSV with a header)"""
_HEAD: Final = 1 << 16
_LINES: Final = 400


@unique
class Kind(Enum):
    """What a file holds."""

    PARQUET = "a Parquet file"
    STRACE = "strace"
    XEN = "a merged Xen recording"
    MEMORY = "a memory trace"
    FAULTS = "page faults of perf"


#: How files begin that are none of these, and what to do instead.
_BINARY: Final = {
    b"PERFILE2": "data of perf record: its text is needed, "
    "perf script -i FILE -F pid,tid,time,event,addr > NAME.faults",
    b"\x7fELF": "an executable: record it with strace -f -o FILE PROGRAM",
    b"PK\x03\x04": "a zip file: unpack it first",
    b"%PDF": "a PDF", b"\x89PNG": "a picture", b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "an array of numpy", b"\x8d\x0f\x00": "data of trace-cmd: trace-cmd report FILE",
    b"ustar": "a tar archive: unpack it first",
}  # fmt: skip
#: The same for text: a pattern of a line.
_TEXT: Final = {
    r"BUG: |Oops: |RIP: 0010:|general protection fault|Kernel panic": "an oops: pvmmu oops FILE",
    r"# tracer: |^\s*\S+-\d+\s+\[\d{3}\]\s+\S+\s+\d+\.\d+: ":
        "text of ftrace: pvmmu reads strace -f, or a merged Xen recording",
    r"^\S+\(.*\)\s+= \d+ \(0x[0-9a-f]+\)$|^\s*\d+: \w+\(.*\) ERR#\d+":
        "truss of BSD: its system calls are not those of Linux",
    r"^\s*\w+->\w+\(": "ltrace: record system calls with strace -f",
    r"^\s*\{": "JSON", r"^\s*<\??\w": "XML or HTML",
}  # fmt: skip
_XEN: Final = re.compile(r"\d+ \d+ (?:K -?\d+|X -) \S+")
_FAULT: Final = re.compile(r"page[-_]fault|\b(?:maj|min)fault \[")
_COUNTED: Final = re.compile(r"^% time\s+seconds\s+usecs/call", re.M)


def local(path: str | Path) -> Path:
    """Return the file at `path` to read; standard input, ``"-"``, becomes one."""
    return _spooled() if str(path) == STDIN else Path(path)


@cache
def _spooled() -> Path:
    """Keep what standard input holds for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="pvmmu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input"
    with path.open("wb") as f:
        shutil.copyfileobj(sys.stdin.buffer, f)
    return path


def kind_of(path: Path) -> Kind:
    """Return what the file at `path` holds.

    Raises
    ------
    RecordingError
        It cannot be read, or is nothing that pvmmu reads: tells what it looks like, which kinds
        are known, and how to record them.
    """
    with reading(path, lambda: "its beginning"), opened(path) as (content, _):
        head = content.read(_HEAD)
    if head[:4] == b"PAR1":
        return Kind.PARQUET
    if not head.strip():
        raise RecordingError(f"{path}: {'only blanks' if head else 'empty'}{_hint()}")
    for magic, what in _BINARY.items():
        if head.startswith(magic) or (magic == b"ustar" and head[257:262] == magic):
            raise RecordingError(f"{path}: {what.replace('FILE', path.name)}{_hint()}")
    text = head.decode("utf-8", "replace")
    if head.count(b"\0") > len(head) // 20:
        raise RecordingError(f"{path}: binary, of no known kind{_hint()}")
    lines = [x.rstrip("\r") for x in text.split("\n")[:_LINES] if x.strip()]
    kind = _of_text(lines)
    if kind is not None:
        return kind
    if _COUNTED.search(text):
        raise RecordingError(
            f"{path}: a summary of strace (-c): calls themselves are needed; record with "
            "strace -f -o FILE PROGRAM, without -c"
        )
    for pattern, what in _TEXT.items():
        if re.search(pattern, text, re.M):
            raise RecordingError(f"{path}: looks like {what.replace('FILE', path.name)}{_hint()}")
    shown = lines[0].strip()[:60]
    raise RecordingError(f"{path}: text of no known kind, {shown!r}{_hint()}")


def _hint() -> str:
    return f"; known are {KNOWN_KINDS}"


def _of_text(lines: list[str]) -> Kind | None:
    """Return what lines are, by the first that can only be of one kind."""
    if _XEN.match(lines[0]):
        return Kind.XEN
    calls = sum(map(_is_strace, lines))
    faults = sum(_FAULT.search(x) is not None for x in lines)
    if faults > calls:
        return Kind.FAULTS
    if calls:
        return Kind.STRACE
    if header(lines[0]) is not None:
        return Kind.MEMORY
    for line in lines:
        found, may_be = layout_of(line.encode("utf-8", "replace"))
        if found is not None:
            return Kind.MEMORY
        if not may_be:
            return None
    return None


def _is_strace(line: str) -> bool:
    """Whether a line can only be one of strace."""
    m = LEADER.match(line)
    rest = line[m.end() :] if m else line
    n = NAME.match(rest)
    if n is not None:
        return n[0] in KNOWN or " = " in rest or rest.endswith("...>")
    found = (END, SIGNAL, RESUMED, ATTACHED, PERSONALITY)
    return any(p.match(rest) for p in found)
