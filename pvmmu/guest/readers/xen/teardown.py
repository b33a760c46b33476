"""The clears of exit_mmap, which leave no record.

When an address space dies under Xen PV its tables are ordinary memory already, and zap_pte_range
clears them with plain stores that nobody sees. But all its tables were born inside the recording,
so their contents are known: every live entry is cleared once, in order of addresses, inside the
brackets that unmap_page_range opens (one for each VMA and PTE table).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pvmmu.guest.readers.xen.identity import Page

_KIND = 1 << 63 | 0x6  # NX, U/S, R/W: entries of one VMA agree in them (but for copy on write)


def split_by_bracket(vma: Sequence[int], pages: Sequence[Page]) -> list[list[tuple[Page, int]]]:
    """Distribute the live entries of the dying tables over the brackets of their tear-down.

    Parameters
    ----------
    vma : sequence of int
        For each bracket, in order, the number of the VMA (call of unmap_page_range) it belongs to.
    pages : sequence of Page
        PTE tables in order of addresses.

    Returns
    -------
    list of list of (Page, int)
        For each bracket the entries cleared in it; all live entries appear exactly once.

    Notes
    -----
    A bracket works on one table. The next bracket of one VMA works on the next table; that of the
    next VMA on the same table or the next. Where this leaves a choice, the one is taken in which
    the number of brackets of a table is nearest to the number of runs of like entries in it.
    """
    runs = [_runs(p) for p in pages]
    if not vma:
        return [[(p, i) for p in pages for i in p.live()]] if any(runs) else []
    table_of = _align(vma, [max(1, len(r)) for r in runs])
    out: list[list[tuple[Page, int]]] = [[] for _ in vma]
    for t, page in enumerate(pages):
        brackets = [b for b, at in enumerate(table_of) if at == t] or [len(vma) - 1]
        for bracket, run in _share(runs[t], brackets):
            out[bracket] += [(page, i) for i in run]
    return out


def _runs(page: Page) -> list[list[int]]:
    """Split the live entries where neighbours are apart or of another kind."""
    out: list[list[int]] = []
    for i in page.live():
        last = out[-1][-1] if out else None
        like = last == i - 1 and page.entries[i] & _KIND == page.entries[i - 1] & _KIND
        if like:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def _align(vma: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the table of each bracket, least sum of |brackets - wanted| (dynamic programme)."""
    n, m = len(wanted), len(vma)
    infinite = 10**9
    # best[t][b]: least cost when table t ends before bracket b
    best = [[infinite] * (m + 1) for _ in range(n + 1)]
    back = [[0] * (m + 1) for _ in range(n + 1)]
    best[0][0] = 0
    for t in range(1, n + 1):
        for stop in range(m + 1):
            for start in range(stop, -1, -1):
                group = vma[start:stop]
                if any(a == b for a, b in pairwise(group)):
                    break  # two brackets of one VMA cannot share a table
                cost = best[t - 1][start] + abs(stop - start - wanted[t - 1])
                if cost < best[t][stop]:
                    best[t][stop], back[t][stop] = cost, start
    table_of, stop = [n - 1] * m, m
    if best[n][m] >= infinite:  # fewer tables than brackets need: they all end on the last ones
        return [min(i, n - 1) for i in range(m)]
    for t in range(n, 0, -1):
        start = back[t][stop]
        table_of[start:stop] = [t - 1] * (stop - start)
        stop = start
    return table_of


def _share(runs: list[list[int]], brackets: list[int]) -> list[tuple[int, list[int]]]:
    """Give the runs of a table to its brackets, cutting at the widest gaps."""
    gaps = sorted(
        range(1, len(runs)), key=lambda k: (runs[k - 1][-1] - runs[k][0], k)
    )  # widest first: the difference is negative
    cuts = sorted(gaps[: len(brackets) - 1])
    out, part = [], 0
    for k, run in enumerate(runs):
        part += k in cuts
        out.append((brackets[part], run))
    return out
