"""Lines of memory traces of more than a few fixed words: gem5, ChampSim, CSV by its header."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from pvmmu.guest.readers.memory.lines import ALL, BAD_LINE, ROOM, Layout
from pvmmu.guest.readers.memory.scan import FETCH, MODIFY, READ, WRITE

#: An access: address, bytes, kind.
Access = tuple[int, int, int]
#: Returns the accesses of a line; None for one of another form.
LineReader = Callable[[str], "list[Access] | None"]

_PACKET: Final = re.compile(r"([ruwRUW]),\s*(0x[0-9a-fA-F]{1,16}|\d{1,20}),\s*(\d{1,9})(?:,|$)")
_EXECUTED: Final = re.compile(r"\bMem(Read|Write)\s*:.*?\bA=(0x[0-9a-fA-F]{1,16})")
_SERVED: Final = re.compile(
    r"\b(Read|Write|IFetch)\b.*?\bof size (\d{1,9}) on address (?:0x)?([0-9a-fA-F]{1,16})"
)
_GEM5_OTHER: Final = re.compile(r"\s*\d+: (?:system|global)\b|(?:info|warn|gem5|\*\*\*\*)\b|#|\*\*")
_LOADED: Final = re.compile(
    r"\d{1,19},\s*\d{1,19},\s*(?:0x)?([0-9a-fA-F]{1,16}),\s*(?:0x)?([0-9a-fA-F]{1,16}),\s*[01]\s*$"
)
_INSTRUCTION: Final = re.compile(r"\bip\b\s*[=:]\s*(?:0x)?([0-9a-fA-F]{1,16})", re.I)
_OPERANDS: Final = re.compile(
    r"\b(src|source|dst|dest|destination)_?mem(?:ory)?\w*\s*[=:]\s*"
    r"(\[[^\]]*\]|(?:(?:0x)?[0-9a-fA-F]{1,16}[\s,]*)*)", re.I
)  # fmt: skip
_HEX: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{1,16})")
_KIND: Final = {
    "r": READ, "read": READ, "l": READ, "load": READ, "0": READ, "rd": READ, "ld": READ,
    "w": WRITE, "write": WRITE, "s": WRITE, "store": WRITE, "1": WRITE, "wr": WRITE, "st": WRITE,
    "i": FETCH, "x": FETCH, "f": FETCH, "fetch": FETCH, "ifetch": FETCH, "2": FETCH, "exec": FETCH,
    "m": MODIFY, "modify": MODIFY, "u": MODIFY, "3": MODIFY,
}  # fmt: skip
_ADDRESS: Final = frozenset({
    "address", "addr", "va", "vaddr", "virtual_address", "linear_address", "mem_addr",
    "data_address",
})  # fmt: skip
_KINDS: Final = frozenset({
    "kind", "type", "op", "rw", "access", "access_type", "operation", "cmd", "mode",
})  # fmt: skip
_SIZES: Final = frozenset({"size", "bytes", "length", "len", "width"})


def _gem5(text: str) -> list[Access] | None:
    """Read a line of gem5: a decoded packet trace, ``ExecAll``, or ``MemoryAccess``."""
    if m := _PACKET.match(text):
        return [(int(m[2], 0), int(m[3]), _KIND[m[1].lower()])]
    if m := _EXECUTED.search(text):
        return [(int(m[2], 16), 1, READ if m[1] == "Read" else WRITE)]
    if m := _SERVED.search(text):
        kinds = {"Read": READ, "Write": WRITE, "IFetch": FETCH}
        return [(int(m[3], 16), int(m[2]), kinds[m[1]])]
    return [] if _GEM5_OTHER.match(text) else None


def _champsim(text: str) -> list[Access] | None:
    """Read a line of ChampSim: instructions with their operands in memory, or a list of loads."""
    if m := _LOADED.match(text):
        return [(int(m[1], 16), 1, READ)]
    ip = _INSTRUCTION.search(text)
    found = _OPERANDS.findall(text)
    if ip is None and not found:
        return [] if text.startswith(("#", "//")) else None
    out = [(int(ip[1], 16), 1, FETCH)] if ip else []
    for side, values in found:
        kind = READ if side.lower().startswith("s") else WRITE
        out += [(int(v, 16), 1, kind) for v in _HEX.findall(values) if int(v, 16)]
    return out


def header(text: str) -> tuple[int, int, int] | None:
    """Return the columns of address, kind and size (-1: none) that a line of CSV names; or None."""
    cells = [c.strip().strip('"').lower().replace(" ", "_") for c in text.split(",")]
    where = [
        next((i for i, c in enumerate(cells) if c in names), -1)
        for names in (_ADDRESS, _KINDS, _SIZES)
    ]
    return None if where[0] < 0 else (where[0], where[1], where[2])


def plain(columns: tuple[int, int, int], text: str) -> bool:
    """Whether a header names what CSV without one has: address, kind, size, in this order."""
    return text.count(",") < 3 and columns in ((0, -1, -1), (0, 1, -1), (0, 1, 2))


def _by_header(columns: tuple[int, int, int]) -> LineReader:
    """Return what reads a line of CSV whose columns are known."""
    at, kind, size = columns

    def read(text: str) -> list[Access] | None:
        if text.startswith("#"):
            return []
        cells = [c.strip().strip('"') for c in text.split(",")]
        try:
            address = cells[at]
            hexadecimal = not address.isdigit()
            value = int(address, 16 if hexadecimal else 10)
            what = _KIND[cells[kind].lower()] if kind >= 0 else READ
            return [(value, int(cells[size], 0) if size >= 0 and cells[size] else 1, what)]
        except (ValueError, KeyError, IndexError):
            return None

    return read


def reader(layout: Layout, columns: tuple[int, int, int] | None) -> LineReader:
    """Return what reads a line of `layout`, for CSV with its `columns` (of `header`)."""
    if layout == Layout.CSV:
        assert columns is not None
        return _by_header(columns)
    return _gem5 if layout == Layout.GEM5 else _champsim


def fits(text: str) -> Layout | None:
    """Return the layout of a line that holds an access, if it is one of these."""
    for layout, read in ((Layout.GEM5, _gem5), (Layout.CHAMPSIM, _champsim)):
        if read(text):
            return layout
    return None


def other(text: str) -> bool:
    """Whether a line may stand in a trace of these layouts without holding an access."""
    return _gem5(text) == [] or _champsim(text) == []


def parse_text(
    read: LineReader, text: bytes, address: npt.NDArray[np.uint64],
    size: npt.NDArray[np.uint32], kind: npt.NDArray[np.uint8],
) -> tuple[int, int, int, int]:  # fmt: skip
    """Read whole lines; parameters and result are those of `lines.parse`, with what reads a line.

    Parameters
    ----------
    read : callable
        Of `reader`.
    text : bytes
        Lines; what follows the last newline is left alone.
    address, size, kind : uint64[m], uint32[m], uint8[m]
        Filled in.

    Returns
    -------
    accesses, lines, stop, why : int
        As of `lines.parse`.
    """
    n, lines, start = 0, 0, 0
    while (end := text.find(b"\n", start)) >= 0:
        line = text[start:end].decode("ascii", "replace").strip()
        got = read(line) if line else []
        if got is None or any(a >> 64 or not 0 <= s < 1 << 32 for a, s, _ in got):
            return n, lines, start, BAD_LINE
        if n + len(got) > address.size:
            if n:
                return n, lines, start, ROOM
            got = got[: address.size]  # a line of more accesses than a piece has
        for a, s, k in got:
            address[n], size[n], kind[n] = a, s, k
            n += 1
        lines, start = lines + 1, end + 1
    return n, lines, start, ALL
