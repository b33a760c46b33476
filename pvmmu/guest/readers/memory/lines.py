"""Lines of memory traces, as tools write them, parsed in bulk.

Each tool's lines are read by one small kernel; `parse` runs it over a buffer of whole lines. A
kernel returns 1 for an access, 0 for a line that holds none (banners, markers, comments), -1 for
anything else.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np

from pvmmu._jit import kernel, part
from pvmmu.guest.readers.memory.scan import (
    COMMA,
    CR,
    EQUALS,
    FETCH,
    HASH,
    NEWLINE,
    READ,
    SPACE,
    WRITE,
    digit,
    kind_word,
    number,
    skip_blanks,
    starts,
    word_end,
)  # fmt: skip


@unique
class Layout(IntEnum):
    """Whose lines they are."""

    LACKEY = 0  # valgrind --tool=lackey --trace-mem=yes: " L 1ffeffe7e8,8"
    DIN = 1  # Dinero IV: "0 1ffeffe7e8"
    DRMEMTRACE = 2  # DynamoRIO drmemtrace, view tool: "... read  8 byte(s) @ 0x7ffc... by PC ..."
    CSV = 3  # address, then kind and size if there are: "0x1ffeffe7e8,read,8"; or by a header
    PIN = 4  # pinatrace: "0x401ab70: R 0x1ffeffe7e8", perhaps with bytes behind
    KIND_FIRST = 5  # "R 0x1ffeffe7e8", "l 1ffeffe7e8 8"
    KIND_LAST = 6  # "1ffeffe7e8 R"
    GEM5 = 7  # decoded packets "r,8192,64,...", ExecAll, MemoryAccess
    CHAMPSIM = 8  # "ip=0x... src_mem=[...] dst_mem=[...]", or "id, cycle, address, ip, hit"


#: Why `parse` stops.
ALL, ROOM, BAD_LINE = range(3)


@part
def _lackey(text, i, end, record):  # type: ignore[no-untyped-def]
    if text[i] == EQUALS:  # ==1234== what valgrind has to say
        return 0
    i = skip_blanks(text, i, end)
    kind = -1
    for k in range(4):
        if text[i] == b"LSIM"[k]:
            kind = k
    if kind < 0 or i + 1 >= end or text[i + 1] != SPACE:
        return -1
    address, i = number(text, skip_blanks(text, i + 1, end), end, 16)
    if i < 0 or i >= end or text[i] != COMMA:
        return -1
    size, i = number(text, i + 1, end, 10)
    if i < 0 or skip_blanks(text, i, end) < end:
        return -1
    record[0], record[1], record[2] = address, size, np.uint64(kind)
    return 1


@part
def _din(text, i, end, record):  # type: ignore[no-untyped-def]
    label, i = number(text, skip_blanks(text, i, end), end, 10)
    if i < 0 or label > np.uint64(4):
        return -1
    at = skip_blanks(text, i, end)
    if at == i:
        return -1
    address, i = number(text, at, end, 16)
    if i < 0 or (i < end and skip_blanks(text, i, end) == i):
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
    if at < end and at - i > 9 and starts(text, at - 8, end, b"byte(s)"):
        # back over the size to the word before it
        j = at - 9
        while j > i and text[j - 1] == SPACE:
            j -= 1
        while j > i and digit(text[j - 1]) < np.uint64(10):
            j -= 1
        size, _ = number(text, j, end, 10)
        while j > i and text[j - 1] == SPACE:
            j -= 1
        first = j
        while first > i and text[first - 1] != SPACE:
            first -= 1
        address, after = number(text, skip_blanks(text, at + 1, end), end, 16)
        if after < 0:
            return -1
        kind = -1
        if starts(text, first, j, b"ifetch"):
            kind = FETCH
        elif starts(text, first, j, b"read"):
            kind = READ
        elif starts(text, first, j, b"write"):
            kind = WRITE
        if kind < 0:  # prefetches and cache flushes of known form
            return 0
        record[0], record[1], record[2] = address, size, np.uint64(kind)
        return 1
    for k in range(i, end):
        if text[k] == 60:  # "<marker: ...>", "<thread 1 exited>", "<--record#-> ..."
            return 0
    i = skip_blanks(text, i, end)
    if starts(text, i, end, b"output format:") or starts(text, i, end, b"-----"):
        return 0
    if starts(text, i, end, b"view tool results:") or starts(text, i, end, b"====="):
        return 0
    _, after = number(text, i, end, 10)  # "   123 : total instructions"
    if after > 0 and text[skip_blanks(text, after, end - 1)] == 58:
        return 0
    # the rest of a long encoding, on a line of its own: pairs of hexadecimal digits
    two = i + 1 < end and digit(text[i]) < np.uint64(16) and digit(text[i + 1]) < np.uint64(16)
    return 0 if two and (i + 2 == end or text[i + 2] == SPACE) else -1


@part
def _csv(text, i, end, record):  # type: ignore[no-untyped-def]
    i = skip_blanks(text, i, end)
    if text[i] == HASH:
        return 0
    address, i = number(text, i, end, 0)
    if i < 0:
        return -1
    record[0], record[1], record[2] = address, np.uint64(1), np.uint64(READ)
    for column in range(2):
        i = skip_blanks(text, i, end)
        if i == end:
            return 1
        if text[i] != COMMA:
            return -1
        i = skip_blanks(text, i + 1, end)
        stop = i
        while stop < end and text[stop] != COMMA and text[stop] != SPACE and text[stop] != CR:
            stop += 1
        if column == 0:
            kind = kind_word(text, i, stop) if stop > i else -1
            if kind < 0:
                return -1
            record[2] = np.uint64(kind)
            i = stop
        else:
            record[1], i = number(text, i, stop, 10)
            if i < 0:
                return -1
    return 1 if skip_blanks(text, i, end) == end else -1


@part
def _sized(text, i, end, record):  # type: ignore[no-untyped-def]
    """Read the bytes of an access, if they are told, and the end of the line."""
    i = skip_blanks(text, i, end)
    if i == end:
        return 1
    size, i = number(text, i, end, 10)
    if i < 0 or skip_blanks(text, i, end) < end:
        return -1
    record[1] = size
    return 1


@part
def _kind_first(text, i, end, record):  # type: ignore[no-untyped-def]
    i = skip_blanks(text, i, end)
    if text[i] == HASH:
        return 0
    stop = word_end(text, i, end)
    kind = kind_word(text, i, stop)
    if kind < 0 or text[i] < 65:  # a letter: digits are those of din
        return -1
    address, i = number(text, skip_blanks(text, stop, end), end, 16)
    if i < 0:
        return -1
    record[0], record[1], record[2] = address, np.uint64(1), np.uint64(kind)
    return _sized(text, i, end, record)


@part
def _kind_last(text, i, end, record):  # type: ignore[no-untyped-def]
    i = skip_blanks(text, i, end)
    if text[i] == HASH:
        return 0
    address, i = number(text, i, end, 16)
    at = skip_blanks(text, i, end) if i >= 0 else i
    if i < 0 or at in (i, end) or text[at] < 65:
        return -1
    stop = word_end(text, at, end)
    kind = kind_word(text, at, stop)
    if kind < 0:
        return -1
    record[0], record[1], record[2] = address, np.uint64(1), np.uint64(kind)
    return _sized(text, stop, end, record)


@part
def _pin(text, i, end, record):  # type: ignore[no-untyped-def]
    i = skip_blanks(text, i, end)
    if text[i] == HASH:
        return 0
    _, i = number(text, i, end, 16)
    if i < 0 or i == end or text[i] != 58:  # ":"
        return -1
    at = skip_blanks(text, i + 1, end)
    return _kind_first(text, at, end, record) if at < end else -1


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
        while end < text.size and text[end] != NEWLINE:
            end += 1
        if end == text.size:
            break
        if n == address.size:
            return n, lines, start, ROOM
        what = 0
        if skip_blanks(text, start, end) < end:
            if layout == Layout.LACKEY:
                what = _lackey(text, start, end, record)
            elif layout == Layout.DIN:
                what = _din(text, start, end, record)
            elif layout == Layout.DRMEMTRACE:
                what = _drmemtrace(text, start, end, record)
            elif layout == Layout.PIN:
                what = _pin(text, start, end, record)
            elif layout == Layout.KIND_FIRST:
                what = _kind_first(text, start, end, record)
            elif layout == Layout.KIND_LAST:
                what = _kind_last(text, start, end, record)
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
