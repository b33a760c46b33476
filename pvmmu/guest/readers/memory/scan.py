"""Words and numbers of a line, as kernels read them: bytes, and where to go on."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import part

#: Kinds of access. A modify is a read and a write of the same bytes (valgrind).
READ, WRITE, FETCH, MODIFY = range(4)

NEWLINE, SPACE, TAB, CR, COMMA, HASH, EQUALS = (ord(c) for c in "\n \t\r,#=")
ZERO, NINE, X = (ord(c) for c in "09x")
LOWER: Final = 32  # the bit that makes letters lower case
NO_NUMBER = -1


@part
def skip_blanks(text, i, end):  # type: ignore[no-untyped-def]
    """Where the next thing that is no blank stands, or the end."""
    while i < end and (text[i] == SPACE or text[i] == TAB or text[i] == CR):
        i += 1
    return i


@part
def digit(c):  # type: ignore[no-untyped-def]
    """Value of a hexadecimal digit; 16 if it is none."""
    if ZERO <= c <= NINE:
        return np.uint64(c - ZERO)
    low = c | LOWER
    if 97 <= low <= 102:
        return np.uint64(low - 87)
    return np.uint64(16)


@part
def number(text, i, end, base):  # type: ignore[no-untyped-def]
    """Read a number; return it and where it ends (-1: none there, or more than 64 bits).

    ``base`` 0: hexadecimal after 0x, else decimal.
    """
    hexadecimal = i + 1 < end and text[i] == ZERO and text[i + 1] | LOWER == X
    if hexadecimal and base != 10:
        i += 2
    elif base == 0:
        base = 10
    radix = np.uint64(10 if base == 10 else 16)
    value, start = np.uint64(0), i
    while i < end:
        d = digit(text[i])
        if d >= radix:
            break
        larger = value * radix + d
        if value > (np.uint64(0xFFFFFFFFFFFFFFFF) - d) // radix:
            return value, NO_NUMBER
        value = larger
        i += 1
    return value, (i if i > start else NO_NUMBER)


@part
def starts(text, i, end, word):  # type: ignore[no-untyped-def]
    """Whether a word (bytes) stands at a place, in lower or upper case."""
    if end - i < len(word):
        return False
    same = True
    for k in range(len(word)):
        same = same and text[i + k] | LOWER == word[k] | LOWER
    return same


@part
def kind_word(text, i, end):  # type: ignore[no-untyped-def]
    """Kind of access in a cell; -1 if it is none."""
    if end - i == 1 and ZERO <= text[i] <= ZERO + 3:
        return np.int64(text[i]) - ZERO
    c = text[i] | LOWER
    one = end - i == 1
    if c == 114 and (one or (end - i == 4 and starts(text, i, end, b"read"))):
        return READ
    if c == 119 and (one or (end - i == 5 and starts(text, i, end, b"write"))):
        return WRITE
    if c == 108 and (one or (end - i == 4 and starts(text, i, end, b"load"))):
        return READ
    if c == 115 and (one or (end - i == 5 and starts(text, i, end, b"store"))):
        return WRITE
    if c == 109 and (one or (end - i == 6 and starts(text, i, end, b"modify"))):
        return MODIFY
    if (c == 105 or c == 120 or c == 102) and one:
        return FETCH
    if end - i == 5 and starts(text, i, end, b"fetch"):
        return FETCH
    return FETCH if end - i == 6 and starts(text, i, end, b"ifetch") else -1


@part
def word_end(text, i, end):  # type: ignore[no-untyped-def]
    """Where the word at a place ends."""
    while i < end and text[i] != SPACE and text[i] != TAB and text[i] != CR:
        i += 1
    return i
