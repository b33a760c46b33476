"""Arguments of the calls that change memory, as numbers and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.lines import Call

_COMMENT: Final = re.compile(r"\s*/\*.*?\*/")
#: A descriptor, with a path behind it (``-y``): paths may hold commas and brackets.
_FD: Final = r"(?P<fd>-?\d{1,10}|0x[0-9a-f]{1,16})(?:<(?P<path>.*)>)?(?:\(deleted\))?"
_NUMBER: Final = r"(?:NULL|0x[0-9a-f]{1,16}|0|-?[1-9]\d{0,19})"
_WORDS: Final = r"[\w|<]+"
_FORMS: Final = {
    name: re.compile(form, re.ASCII)
    for name, form in {
        "mmap": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER}), (?P<prot>{_WORDS}), (?P<words>{_WORDS}),"
        rf" {_FD}, (?P<offset>{_NUMBER})$",
        "munmap": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER})$",
        "mprotect": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER}), (?P<prot>{_WORDS})(?:, {_NUMBER})?$",
        "madvise": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER}), (?P<words>\w+)",
        "mremap": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER}), (?P<new>{_NUMBER}), "
        rf"(?P<words>{_WORDS})(?:, {_NUMBER})?$",
        "brk": rf"(?P<at>{_NUMBER})$",
        "mlock": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER})(?:, (?P<words>{_WORDS}))?$",
        "mlockall": rf"(?P<words>{_WORDS})$",
        "munlockall": "$",
        "shmget": rf"\w+, (?P<size>{_NUMBER}), (?P<words>{_WORDS})$",
        "shmat": rf"(?P<id>{_NUMBER}), (?P<at>{_NUMBER}), (?P<words>{_WORDS})$",
        "shmdt": rf"(?P<at>{_NUMBER})$",
        "map_shadow_stack": rf"(?P<at>{_NUMBER}), (?P<size>{_NUMBER}), (?P<words>{_WORDS})$",
    }.items()
}
#: Other names of the same calls: of 32-bit programs, of older versions of strace.
_ALIKE: Final = {
    "mmap2": "mmap", "old_mmap": "mmap", "mmap_pgoff": "mmap", "pkey_mprotect": "mprotect",
    "mlock2": "mlock",
}  # fmt: skip
#: Bits of flags that are written as numbers (``-X raw``); uapi/asm-generic/mman.h, sched.h.
_PROT: Final = {"PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4}
_BITS: Final = {
    "mmap": {
        "MAP_SHARED": 1, "MAP_PRIVATE": 2, "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20,
        "MAP_GROWSDOWN": 0x100, "MAP_LOCKED": 0x2000, "MAP_NORESERVE": 0x4000,
        "MAP_POPULATE": 0x8000, "MAP_STACK": 0x20000, "MAP_HUGETLB": 0x40000,
        "MAP_FIXED_NOREPLACE": 0x100000,
    },
    "mlockall": {"MCL_CURRENT": 1, "MCL_FUTURE": 2, "MCL_ONFAULT": 4},
    "mlock": {"MLOCK_ONFAULT": 1},
    "mremap": {"MREMAP_MAYMOVE": 1, "MREMAP_FIXED": 2, "MREMAP_DONTUNMAP": 4},
    "clone": {
        "CLONE_VM": 0x100, "CLONE_FILES": 0x400, "CLONE_VFORK": 0x4000, "CLONE_THREAD": 0x10000,
    },
}  # fmt: skip
_ADVICE: Final = {
    0: "MADV_NORMAL", 4: "MADV_DONTNEED", 8: "MADV_FREE", 9: "MADV_REMOVE", 20: "MADV_COLD",
    21: "MADV_PAGEOUT", 22: "MADV_POPULATE_READ", 23: "MADV_POPULATE_WRITE",
    24: "MADV_DONTNEED_LOCKED",
}  # fmt: skip
_CLONE_FLAGS: Final = re.compile(r"flags=([\w|]+)|^\s*(0x[0-9a-f]+|\d+)(?:,|$)")


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

    @property
    def populated(self) -> bool:
        """Whether the kernel gives a new mapping all its pages at once."""
        return not self.words.isdisjoint(("MAP_POPULATE", "MAP_LOCKED"))


def change_of(path: Path, call: Call) -> Change:
    """Read the arguments of a call that changes mappings and has returned.

    Raises
    ------
    RecordingError
        They have another form; names file and line.
    """
    kind = _ALIKE.get(call.name, call.name)
    text = call.arguments
    m = _FORMS[kind].match(_COMMENT.sub("", text) if "/*" in text else text)
    if m is None or call.result is None:
        shown = text[:50]
        raise RecordingError(f"{path}:{call.number}: not arguments of {call.name}: {shown!r}")
    got = m.groupdict()
    at, pages, result = number(got.get("at")), -(-number(got.get("size")) // PAGE), call.result
    words = _words(kind, got.get("words") or "")
    if kind == "mmap":
        offset = number(got["offset"])
        in_pages = call.name in ("mmap2", "mmap_pgoff") and offset % PAGE != 0
        fd = number(got["fd"])
        fd = -1 if fd in (0xFFFFFFFF, (1 << 64) - 1) else fd
        if "MAP_ANONYMOUS" in words or "MAP_ANON" in words:
            fd = -1
        return Change(
            "mmap", at, pages, result, protection(got["prot"]), words, fd, got["path"] or "",
            offset if in_pages else offset // PAGE,
        )  # fmt: skip
    if kind == "mprotect":
        return Change(kind, at, pages, result, protection(got["prot"]))
    if kind == "mremap":
        return Change(
            kind, at, pages, result, words=words, new_pages=-(-number(got["new"]) // PAGE)
        )
    if kind == "shmat":
        return Change(kind, at, 0, result, words=words, fd=number(got["id"]))
    return Change(kind, at, pages, result, words=words)


def number(text: str | None) -> int:
    """Return a number of an argument; 0 for NULL and for none."""
    return 0 if text is None or text == "NULL" else int(text, 0)


def _words(kind: str, text: str) -> frozenset[str]:
    """Return flags by name, numbers among them decoded."""
    if not text:
        return frozenset()
    if kind == "madvise":
        return frozenset([_ADVICE.get(int(text, 0), text) if text[0].isdigit() else text])
    out = set()
    for word in text.split("|"):
        if word[:1].isdigit() and "<" not in word:
            bits = _bits(word)
            out |= {name for name, bit in _BITS.get(kind, {}).items() if bits & bit == bit}
        else:
            out.add(word)
    return frozenset(out)


def protection(text: str) -> str:
    """Return a protection, of the letters r, w and x, or ``-``, from words or a number."""
    got = 0
    for word in text.split("|"):
        got |= _bits(word) if word[:1].isdigit() else _PROT.get(word, 0)
    return "".join(c for c, bit in (("r", 1), ("w", 2), ("x", 4)) if got & bit) or "-"


def _bits(word: str) -> int:
    try:
        return int(word, 0)
    except ValueError:
        return 0


def clone_flags(call: Call) -> frozenset[str]:
    """Return the flags of a call that makes a process, by name."""
    if call.name == "vfork":
        return frozenset(["CLONE_VM", "CLONE_VFORK"])
    if call.name == "fork":
        return frozenset()
    m = _CLONE_FLAGS.search(_COMMENT.sub("", call.arguments))
    return _words("clone", (m[1] or m[2]) if m else "")
