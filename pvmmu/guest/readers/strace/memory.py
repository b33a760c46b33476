"""Arguments of the calls that change memory, as numbers and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.lines import Call

_FLAGS: Final = r"([\w|]+(?:<<\w+)?(?:\|\w+(?:<<\w+)?)*)"
_NUMBER: Final = r"(NULL|0x[0-9a-f]{1,16}|0|[1-9]\d{0,19})"
_SIZE: Final = r"(\d{1,20})"
_FORMS: Final = {
    name: re.compile(form, re.ASCII)
    for name, form in {
        "mmap": rf"{_NUMBER}, {_SIZE}, {_FLAGS}, {_FLAGS}, (-?\d{{1,10}})(<.*>)?, {_NUMBER}$",
        "munmap": rf"{_NUMBER}, {_SIZE}$",
        "mprotect": rf"{_NUMBER}, {_SIZE}, {_FLAGS}$",
        "madvise": rf"{_NUMBER}, {_SIZE}, (\w+)",
        "mremap": rf"{_NUMBER}, {_SIZE}, {_SIZE}, {_FLAGS}(?:, {_NUMBER})?$",
        "brk": rf"{_NUMBER}$",
    }.items()
}
#: Calls that change mappings.
MEMORY: Final = frozenset(_FORMS)


@dataclass(frozen=True)
class Change:
    """A change of mappings, in pages and addresses of pages.

    Parameters
    ----------
    kind : str
        Name of the call.
    at : int
        Address asked for; 0 for none.
    pages : int
        Size.
    result : int
        What the call returned.
    prot : str
        Protection, of the letters r, w and x, or ``-``.
    words : frozenset of str
        Flags, or the advice.
    fd, path : int, str
        What is mapped; -1 for anonymous memory.
    offset : int
        In the file, in pages.
    new_pages : int
        Of mremap.
    """

    kind: str
    at: int
    pages: int
    result: int
    prot: str = "-"
    words: frozenset[str] = frozenset()
    fd: int = -1
    path: str = ""
    offset: int = 0
    new_pages: int = 0

    @property
    def signature(self) -> tuple[object, ...]:
        """What two runs of a program have in common: all but addresses."""
        return self.kind, self.pages, self.prot, self.offset, self.new_pages


def change_of(path: Path, call: Call) -> Change:
    """Read the arguments of a call that changes mappings and has returned.

    Raises
    ------
    RecordingError
        They have another form; names file and line.
    """
    m = _FORMS[call.name].match(call.arguments)
    if m is None or call.result is None:
        shown = call.arguments[:50]
        raise RecordingError(f"{path}:{call.number}: not arguments of {call.name}: {shown!r}")
    at, result = _int(m[1]), call.result
    if call.name == "brk":
        return Change("brk", at, 0, result)
    pages = -(-int(m[2]) // PAGE)
    if call.name == "mmap":
        offset = _int(m[7]) // PAGE
        named = (m[6] or "").strip("<>")
        words = frozenset(m[4].split("|"))
        return Change("mmap", at, pages, result, _prot(m[3]), words, int(m[5]), named, offset)
    if call.name == "mprotect":
        return Change("mprotect", at, pages, result, _prot(m[3]))
    if call.name == "madvise":
        return Change("madvise", at, pages, result, words=frozenset([m[3]]))
    if call.name == "mremap":
        return Change("mremap", at, pages, result, new_pages=-(-int(m[3]) // PAGE))
    return Change("munmap", at, pages, result)


def _int(text: str) -> int:
    return 0 if text == "NULL" else int(text, 0)


def _prot(text: str) -> str:
    words = text.split("|")
    letters = {"PROT_READ": "r", "PROT_WRITE": "w", "PROT_EXEC": "x"}
    return "".join(letter for word, letter in letters.items() if word in words) or "-"
