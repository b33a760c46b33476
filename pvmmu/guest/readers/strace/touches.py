"""What a program touched between its system calls: valgrind's lackey, beside an strace.

``valgrind --tool=lackey --trace-mem=yes --trace-syscalls=yes`` writes accesses and system calls of
one process in their order; `placing` finds where another run of the program has that memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.files import whole_file
from pvmmu.guest.linux.faults import FETCH, READ, WRITE
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.lines import CLONES, EXITS
from pvmmu.guest.readers.strace.memory import Change
from pvmmu.guest.readers.strace.transcript import numbered_lines

_KINDS: Final = {"I": FETCH, "S": WRITE, "L": READ, "M": WRITE}
_LETTERS: Final = {FETCH: "I ", WRITE: " S", READ: " L"}
_SYSCALL: Final = re.compile(
    r"SYSCALL\[\d+,\d+\]\(\s*\d+\) (?:sys_)?(\w+)\s*\(([^)]*)\)"
    r"(?:.*Success\((0x[0-9a-f]+)\)|.*created child|.*$)"
)
_NAMES: Final = ("mmap", "munmap", "mprotect", "madvise", "mremap", "brk")
#: A page and how it is touched.
Touch = tuple[int, int]


@dataclass
class Step:
    """A call, and what was touched since the one before.

    Parameters
    ----------
    change : Change
        Kind ``clone`` and ``exit`` stand for processes made and ended.
    touches : list of Touch
        Page numbers, each (page, kind) once.
    """

    change: Change
    touches: list[Touch] = field(default_factory=list)


@dataclass
class Lackey:
    """A run of one program under lackey.

    Parameters
    ----------
    path : Path
        The file.
    command : str
        Of the program.
    steps : list of Step
        The last one is its end.
    """

    path: Path
    command: str
    steps: list[Step]


#: No instruction reads or writes more at once (XSAVE with all that AMX has: 11 KiB).
_MOST_BYTES = 1 << 16


def read_lackey(path: str | os.PathLike[str]) -> Lackey:
    """Read a lackey trace with system calls (text, ``.gz`` or ``.xz``).

    Raises
    ------
    RecordingError
        The file cannot be read, a line has another form, or it has no system calls (valgrind was
        run without ``--trace-syscalls=yes``); names file and line.
    """
    path, command = Path(path), ""
    steps: list[Step] = []
    seen: dict[Touch, None] = {}
    for number, text in numbered_lines(path):
        if text[:1] in "I " and text[1:2] in " SLM":
            _note(path, number, text, seen)
        elif text.startswith("SYSCALL"):
            change = _change(path, number, text)
            if change is not None:
                steps.append(Step(change, list(seen)))
                seen = {}
        elif "Command:" in text and not command:
            command = text.split("Command:")[1].strip().split(" ")[0]
        elif not text.startswith("=="):
            _check_other(path, number, text)
    if not any(s.change.kind in _NAMES for s in steps):
        raise RecordingError(f"{path}: no system calls in it (use --trace-syscalls=yes)")
    steps.append(Step(Change("end", 0, 0, 0), list(seen)))
    return Lackey(path, command, steps)


def _check_other(path: Path, number: int, text: str) -> None:
    """Raise unless a line is one of the others that valgrind writes."""
    if not text.lstrip().startswith(("--", "[", "SYS", "clone", "...", "sys_", "-->")):
        raise RecordingError(f"{path}:{number}: not a line of lackey: {text[:60]!r}")


def _note(path: Path, number: int, text: str, seen: dict[Touch, None]) -> None:
    """Note the pages of an access."""
    try:
        address, size = text[3:].split(",")
        first, bytes_ = int(address, 16), int(size)
        kind = _KINDS[text[:2].strip()]
        if not 0 <= first < 1 << 64 or bytes_ > _MOST_BYTES:
            raise ValueError
    except (ValueError, KeyError):
        raise RecordingError(f"{path}:{number}: not an access: {text[:60]!r}") from None
    for page in range(first // PAGE, (first + max(bytes_, 1) - 1) // PAGE + 1):
        seen[page, kind] = None


def _change(path: Path, number: int, text: str) -> Change | None:
    """Return what a SYSCALL line changes; None if nothing."""
    m = _SYSCALL.match(text)
    if m is None:
        return None
    name, result = m[1], int(m[3] or "0", 16)
    if name in CLONES:
        return Change("clone", 0, 0, 0) if "created child" in text else None
    if name in EXITS:
        return Change("exit", 0, 0, 0)
    if name not in _NAMES or m[3] is None:
        return None
    try:
        numbers = [int(x.strip(), 0) for x in m[2].split(",")]
        return _memory(name, numbers, result)
    except (ValueError, IndexError):
        raise RecordingError(f"{path}:{number}: not arguments of {name}: {m[2]!r}") from None


def _memory(name: str, n: list[int], result: int) -> Change:
    if name == "brk":
        return Change("brk", n[0], 0, result)
    pages = -(-n[1] // PAGE)
    if name == "mmap":
        return Change("mmap", n[0], pages, result, _prot(n[2]), offset=n[5] // PAGE)
    if name == "mprotect":
        return Change("mprotect", n[0], pages, result, _prot(n[2]))
    if name == "mremap":
        return Change("mremap", n[0], pages, result, new_pages=-(-n[2] // PAGE))
    return Change(name, n[0], pages, result)


def _prot(bits: int) -> str:
    return "".join(letter for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if bits & bit) or "-"


def thin(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a lackey trace again with each page and kind once between two calls.

    The guest model makes the same of it; the file is a hundredth of the size.

    Parameters
    ----------
    path, out : path-like
        What to read; where to write, as text, or compressed if the name ends in ``.gz`` or ``.xz``.

    Raises
    ------
    RecordingError
        The trace cannot be read, or the target cannot be written.
    """
    import gzip
    import lzma

    lackey, out = read_lackey(path), Path(out)
    lines = [f"==0== Command: {lackey.command}"]
    for step in lackey.steps:
        lines += [f"{_LETTERS[kind]} {page * PAGE:08x},1" for page, kind in step.touches]
        lines += [_spelled(step.change)] if step.change.kind != "end" else []
    data = ("\n".join(lines) + "\n").encode("ascii")
    if out.suffix == ".gz":
        data = gzip.compress(data, 9, mtime=0)
    elif out.suffix == ".xz":
        data = lzma.compress(data)
    with whole_file(out, RecordingError) as tmp:
        tmp.write_bytes(data)
    return out


def _spelled(c: Change) -> str:
    """Return a change as valgrind writes it."""
    bits = sum({"r": 1, "w": 2, "x": 4}.get(letter, 0) for letter in c.prot)
    size = c.pages * PAGE
    arguments = {
        "mmap": f"0x{c.at:x}, {size}, {bits}, 0, 0, {c.offset * PAGE}",
        "mprotect": f"0x{c.at:x}, {size}, {bits}",
        "mremap": f"0x{c.at:x}, {size}, {c.new_pages * PAGE}",
        "brk": f"0x{c.at:x}",
    }.get(c.kind, f"0x{c.at:x}, {size}")
    end = "created child" if c.kind == "clone" else f"--> Success(0x{c.result:x})"
    return f"SYSCALL[0,0](0) sys_{c.kind} ( {arguments} ) {end}"
