"""The rules that every trace keeps; each breach is reported with its first row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pvmmu.errors import TraceError
from pvmmu.guest.provenance import Platform
from pvmmu.guest.vocabulary import (
    ALLOC_OPS,
    ENTRY_OPS,
    OPS,
    RELEASE_OPS,
    Evidence,
    Flag,
    Op,
)


def validate(
    columns: Mapping[str, np.ndarray], n_mms: int, n_callers: int, platform: Platform
) -> None:
    """Check the rows of a trace.

    Parameters
    ----------
    columns : mapping of str to ndarray
        As in `COLUMNS`, already of the right dtypes.
    n_mms, n_callers : int
        Lengths of the lists that ``mm`` and ``caller`` index.
    platform : Platform
        Gives the size of a table and the number of CPUs.

    Raises
    ------
    TraceError
        Names the first row that breaks a rule.
    """
    op, mm, index = columns["op"], columns["mm"], columns["index"]
    if len(op) == 0:
        raise TraceError("empty trace: it has no operation")
    if n_mms < 1:
        raise TraceError("a trace needs at least one address space (init_mm)")

    _first(
        ~np.isin(op, [int(o) for o in OPS]), lambda i: f"operation {op[i]} is not in the vocabulary"
    )
    _first(
        (mm < -1) | (mm >= n_mms),
        lambda i: f"address space {mm[i]} is unknown; the trace has {n_mms} (0 to {n_mms - 1})",
    )
    caller = columns["caller"]
    _first((caller < -1) | (caller >= n_callers), lambda i: f"caller {caller[i]} is unknown")
    cpu = columns["cpu"]
    _first(cpu >= platform.vcpus, lambda i: f"CPU {cpu[i]} of a guest with {platform.vcpus}")
    for name in ("evidence", "place"):
        bad = ~np.isin(columns[name], [int(e) for e in Evidence])
        _first(bad, lambda i, name=name: f"{name} {columns[name][i]} is none of 0, 1, 2")

    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    known = entry & (columns["evidence"] != Evidence.UNKNOWN)
    _first(
        (entry & (index >= platform.entries)) | (known & (index < 0)),
        lambda i: (
            f"entry {index[i]} is outside its table: {_name(op[i])} writes entries "
            f"0 to {platform.entries - 1}"
        ),
    )
    tabled = known | np.isin(op, [int(o) for o in ALLOC_OPS + RELEASE_OPS])
    _first(tabled & (columns["table"] < 0), lambda i: f"{_name(op[i])} names no table page")
    _brackets(op, cpu, platform)
    _tables(op, columns["table"], columns["flags"])


def _brackets(op: np.ndarray, cpu: np.ndarray, platform: Platform) -> None:
    """Lazy MMU brackets and context switches open and close in turn on each CPU."""
    pairs = (
        ("lazy bracket", (Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)),
        ("context switch", (Op.SWITCH_START,), (Op.SWITCH_END,)),
    )
    for what, opens, closes in pairs:
        deepest = 255 if platform.lazy_nests and what == "lazy bracket" else 1
        for c in range(platform.vcpus):
            rows = np.flatnonzero((cpu == c) & np.isin(op, [*opens, *closes]))
            if not len(rows):
                continue
            depth = np.cumsum(np.where(np.isin(op[rows], opens), 1, -1))
            _first(depth < 0, lambda i, w=what: f"{_name(op[i])} without an open {w}", rows)
            _first(depth > deepest, lambda i, w=what: f"{_name(op[i])} inside an open {w}", rows)
            if depth[-1] != 0:
                left = rows[np.flatnonzero(depth == 0)[-1] + 1] if (depth == 0).any() else rows[0]
                raise TraceError(f"row {left}: the {what} opened here on CPU {c} is left open")


def _tables(op: np.ndarray, table: np.ndarray, flags: np.ndarray) -> None:
    """A table page is not allocated twice, nor released twice."""
    alloc, release = np.isin(op, ALLOC_OPS), np.isin(op, RELEASE_OPS)
    rows = np.flatnonzero((alloc & ((flags & Flag.ALREADY_TABLE) == 0)) | release)
    rows = rows[np.argsort(table[rows], kind="stable")]
    same = table[rows[1:]] == table[rows[:-1]]
    twice = np.flatnonzero(same & (alloc[rows[1:]] == alloc[rows[:-1]]))
    if len(twice):
        i = rows[1:][twice].min()
        done = "allocated" if alloc[i] else "released"
        raise TraceError(f"row {i}: {_name(op[i])} of table page {table[i]:#x}, already {done}")


def _first(bad: np.ndarray, say, rows: np.ndarray | None = None) -> None:  # type: ignore[no-untyped-def]
    """Raise for the first row in the mask `bad` (over `rows`, where given)."""
    hits = np.flatnonzero(bad)
    if len(hits):
        i = int(hits[0] if rows is None else rows[hits[0]])
        raise TraceError(f"row {i}: {say(i)}")


def _name(op: np.ndarray) -> str:
    return Op(int(op)).name
