"""Lines of memory traces, as tools write them, parsed in bulk.

Each tool's lines are read by one small kernel; `parse` runs it over a buffer of whole lines. A
kernel returns 1 for an access, 0 for a line that holds none (banners, markers, comments), -1 for
anything else.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

import numpy as np

from pvmmu._jit import kernel, part

#: Kinds of access. A modify is a read and a write of the same bytes (valgrind).
READ, WRITE, FETCH, MODIFY = range(4)


@unique
class Layout(IntEnum):
    """Whose lines they are."""

    LACKEY = 0  # valgrind --tool=lackey --trace-mem=yes: " L 1ffeffe7e8,8"
    DIN = 1  # Dinero IV: "0 1ffeffe7e8"
    DRMEMTRACE = 2  # DynamoRIO drmemtrace, view tool: "... read  8 byte(s) @ 0x7ffc... by PC ..."
    CSV = 3  # address, then kind and size if there are: "0x1ffeffe7e8,read,8"


#: Why `parse` stops.
ALL, ROOM, BAD_LINE = range(3)

_NEWLINE, _SPACE, _TAB, _CR, _COMMA, _HASH, _EQUALS = (ord(c) for c in "\n \t\r,#=")
_ZERO, _NINE, _X = (ord(c) for c in "09x")
_LOWER: Final = 32  # the bit that makes letters lower case
_NO_NUMBER = -1


@part
def _skip_blanks(text, i, end):  # type: ignore[no-untyped-def]
    while i < end and (text[i] == _SPACE or text[i] == _TAB or text[i] == _CR):
        i += 1
    return i


@part
def _digit(c):  # type: ignore[no-untyped-def]
    """Value of a hexadecimal digit; 16 if it is none."""
    if _ZERO <= c <= _NINE:
        return np.uint64(c - _ZERO)
    low = c | _LOWER
    if 97 <= low <= 102:
        return np.uint64(low - 87)
    return np.uint64(16)


@part
def _number(text, i, end, base):  # type: ignore[no-untyped-def]
    """Read a number; return it and where it ends (-1: none there, or more than 64 bits).

    ``base`` 0: hexadecimal after 0x, else decimal.
    """
    hexadecimal = i + 1 < end and text[i] == _ZERO and text[i + 1] | _LOWER == _X
    if hexadecimal and base != 10:
        i += 2
    elif base == 0:
        base = 10
    radix = np.uint64(10 if base == 10 else 16)
    value, start = np.uint64(0), i
    while i < end:
        d = _digit(text[i])
        if d >= radix:
            break
        larger = value * radix + d
        if value > (np.uint64(0xFFFFFFFFFFFFFFFF) - d) // radix:
            return value, _NO_NUMBER
        value = larger
        i += 1
    return value, (i if i > start else _NO_NUMBER)


@part
def _starts(text, i, end, word):  # type: ignore[no-untyped-def]
    """Whether a word (bytes) stands at a place, in lower or upper case."""
    if end - i < len(word):
        return False
    same = True
    for k in range(len(word)):
        same = same and text[i + k] | _LOWER == word[k] | _LOWER
    return same


@part
def _lackey(text, i, end, record):  # type: ignore[no-untyped-def]
    if text[i] == _EQUALS:  # ==1234== what valgrind has to say
        return 0
    i = _skip_blanks(text, i, end)
    kind = -1
    for k in range(4):
        if text[i] == b"LSIM"[k]:
            kind = k
    if kind < 0 or i + 1 >= end or text[i + 1] != _SPACE:
        return -1
    address, i = _number(text, _skip_blanks(text, i + 1, end), end, 16)
    if i < 0 or i >= end or text[i] != _COMMA:
        return -1
    size, i = _number(text, i + 1, end, 10)
    if i < 0 or _skip_blanks(text, i, end) < end:
        return -1
    record[0], record[1], record[2] = address, size, np.uint64(kind)
    return 1


@part
def _din(text, i, end, record):  # type: ignore[no-untyped-def]
    label, i = _number(text, _skip_blanks(text, i, end), end, 10)
    if i < 0 or label > np.uint64(4):
        return -1
    at = _skip_blanks(text, i, end)
    if at == i:
        return -1
    address, i = _number(text, at, end, 16)
    if i < 0 or (i < end and _skip_blanks(text, i, end) == i):
        return -1
    if label > np.uint64(FETCH):  # 3: miscellaneous, 4: cache flush
        return 0
    record[0], record[1], record[2] = address, np.uint64(1), label
    return 1


@part
def _drmemtrace(text, i, end, record):  # type: ignore[no-untyped-def]
    at = i
    while at < end and text[at] != 64:  # "@"
        at += 1
    if at < end and at - i > 9 and _starts(text, at - 8, end, b"byte(s)"):
        # back over the size to the word before it
        j = at - 9
        while j > i and text[j - 1] == _SPACE:
            j -= 1
        while j > i and _digit(text[j - 1]) < np.uint64(10):
            j -= 1
        size, _ = _number(text, j, end, 10)
        while j > i and text[j - 1] == _SPACE:
            j -= 1
        first = j
        while first > i and text[first - 1] != _SPACE:
            first -= 1
        address, after = _number(text, _skip_blanks(text, at + 1, end), end, 16)
        if after < 0:
            return -1
        kind = -1
        if _starts(text, first, j, b"ifetch"):
            kind = FETCH
        elif _starts(text, first, j, b"read"):
            kind = READ
        elif _starts(text, first, j, b"write"):
            kind = WRITE
        if kind < 0:  # prefetches and cache flushes of known form
            return 0
        record[0], record[1], record[2] = address, size, np.uint64(kind)
        return 1
    for k in range(i, end):
        if text[k] == 60:  # "<marker: ...>", "<thread 1 exited>", "<--record#-> ..."
            return 0
    i = _skip_blanks(text, i, end)
    if _starts(text, i, end, b"output format:") or _starts(text, i, end, b"-----"):
        return 0
    if _starts(text, i, end, b"view tool results:") or _starts(text, i, end, b"====="):
        return 0
    _, after = _number(text, i, end, 10)  # "   123 : total instructions"
    if after > 0 and text[_skip_blanks(text, after, end - 1)] == 58:
        return 0
    # the rest of a long encoding, on a line of its own: pairs of hexadecimal digits
    two = i + 1 < end and _digit(text[i]) < np.uint64(16) and _digit(text[i + 1]) < np.uint64(16)
    return 0 if two and (i + 2 == end or text[i + 2] == _SPACE) else -1


@part
def _csv_kind(text, i, end):  # type: ignore[no-untyped-def]
    """Kind of access in a cell; -1 if it is none."""
    if end - i == 1 and _ZERO <= text[i] <= _ZERO + 3:
        return np.int64(text[i]) - _ZERO
    c = text[i] | _LOWER
    one = end - i == 1
    if c == 114 and (one or (end - i == 4 and _starts(text, i, end, b"read"))):
        return READ
    if c == 119 and (one or (end - i == 5 and _starts(text, i, end, b"write"))):
        return WRITE
    if c == 108 and (one or (end - i == 4 and _starts(text, i, end, b"load"))):
        return READ
    if c == 115 and (one or (end - i == 5 and _starts(text, i, end, b"store"))):
        return WRITE
    if c == 109 and (one or (end - i == 6 and _starts(text, i, end, b"modify"))):
        return MODIFY
    if (c == 105 or c == 120 or c == 102) and one:
        return FETCH
    if end - i == 5 and _starts(text, i, end, b"fetch"):
        return FETCH
    return FETCH if end - i == 6 and _starts(text, i, end, b"ifetch") else -1


@part
def _csv(text, i, end, record):  # type: ignore[no-untyped-def]
    i = _skip_blanks(text, i, end)
    if text[i] == _HASH:
        return 0
    address, i = _number(text, i, end, 0)
    if i < 0:
        return -1
    record[0], record[1], record[2] = address, np.uint64(1), np.uint64(READ)
    for column in range(2):
        i = _skip_blanks(text, i, end)
        if i == end:
            return 1
        if text[i] != _COMMA:
            return -1
        i = _skip_blanks(text, i + 1, end)
        stop = i
        while stop < end and text[stop] != _COMMA and text[stop] != _SPACE and text[stop] != _CR:
            stop += 1
        if column == 0:
            kind = _csv_kind(text, i, stop) if stop > i else -1
            if kind < 0:
                return -1
            record[2] = np.uint64(kind)
            i = stop
        else:
            record[1], i = _number(text, i, stop, 10)
            if i < 0:
                return -1
    return 1 if _skip_blanks(text, i, end) == end else -1


@kernel
def parse(layout, text, address, size, kind):  # type: ignore[no-untyped-def]
    """Read whole lines.

    Parameters
    ----------
    layout : int
        A `Layout`.
    text : uint8[n]
        Lines; what follows the last newline is left alone.
    address, size, kind : uint64[m], uint32[m], uint8[m]
        Filled in.

    Returns
    -------
    accesses, lines, stop, why : int
        Accesses and lines read; where the next line begins; `ALL`, `ROOM` (of the arrays is used
        up), or `BAD_LINE`.
    """
    n, lines, start = 0, 0, 0
    record = np.zeros(3, np.uint64)
    while start < text.size:
        end = start
        while end < text.size and text[end] != _NEWLINE:
            end += 1
        if end == text.size:
            break
        if n == address.size:
            return n, lines, start, ROOM
        what = 0
        if _skip_blanks(text, start, end) < end:
            if layout == Layout.LACKEY:
                what = _lackey(text, start, end, record)
            elif layout == Layout.DIN:
                what = _din(text, start, end, record)
            elif layout == Layout.DRMEMTRACE:
                what = _drmemtrace(text, start, end, record)
            else:
                what = _csv(text, start, end, record)
        if what < 0 or (what > 0 and record[1] > np.uint64(0xFFFFFFFF)):
            return n, lines, start, BAD_LINE
        if what > 0:
            address[n], size[n], kind[n] = record[0], record[1], record[2]
            n += 1
        lines += 1
        start = end + 1
    return n, lines, start, ALL


@kernel
def touched(address, size, kind, keep, words, fetch, shift):  # type: ignore[no-untyped-def]
    """Pages that accesses touch, in order; one that crosses a boundary touches several.

    Parameters
    ----------
    keep : bool[4]
        Which kinds of access count.
    words, fetch : uint64[m], uint8[m]
        Filled in, as far as there is room: address of the page, whether it is a fetch.

    Returns
    -------
    int
        Pages touched; more than ``words`` has room for if it is too small.
    """
    n = 0
    for i in range(address.size):
        if not keep[kind[i]]:
            continue
        page = address[i] >> shift
        last = (address[i] + max(np.uint64(size[i]), np.uint64(1)) - np.uint64(1)) >> shift
        while True:
            if n < words.size:
                words[n] = page << shift
                fetch[n] = 1 if kind[i] == FETCH else 0
            n += 1
            if page >= last:
                break
            page += np.uint64(1)
    return n
