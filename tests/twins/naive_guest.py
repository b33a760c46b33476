"""What must hold in a guest at any time, found by walking its page tables in plain Python."""

from __future__ import annotations

from collections import Counter

from pvmmu.guest.linux.state import FILE, FREE, FRESH, RETURNED, TABLE

_FRAME = 0x000F_FFFF_FFFF_F000


def tables_of(guest, number):
    """Return [(level, frame)] of all tables of an address space, the top one first."""
    s = guest.machine.s
    root = int(s.mms[number]["root"]) >> 12
    return list(_walk(guest, root, guest.platform.levels))


def _walk(guest, frame, level):
    yield level, frame
    if level > 1:
        for entry in entries(guest, frame, level):
            if entry & 1 and not is_kernel_slot(guest, frame, level, entry):
                yield from _walk(guest, (entry & _FRAME) >> 12, level - 1)


def is_kernel_slot(guest, frame, level, entry):
    return False


def entries(guest, frame, level):
    """Return the present entries of a table as Python ints."""
    s, fmt = guest.machine.s, guest.machine.format
    if fmt.entry_bytes == 4:
        words = s.words32[frame * 1024 : frame * 1024 + 1024]
        return [int(w) for w in words]
    n = 4 if guest.platform.levels == 3 and level == 3 else 512
    return [int(w) & (1 << 64) - 1 for w in s.words[frame * 512 : frame * 512 + n]]


def check(guest, live):
    """Check reference counts, uses and ownership of all frames against the tables.

    Parameters
    ----------
    live : iterable of Mm
        Address spaces whose top-level table is not freed.
    """
    s = guest.machine.s
    protnone = int(s.par[26])
    mapped, used = Counter(), Counter()
    for mm in live:
        for level, frame in tables_of(guest, mm.number):
            used[frame] += 1
            assert s.kind[frame] == TABLE, f"frame {frame:#x} is a table of level {level}"
            if level > 1:
                continue
            for entry in entries(guest, frame, 1):
                if entry & (1 | protnone):
                    inverted = bool(s.par[27]) and not entry & 1
                    number = (~entry if inverted else entry) & _FRAME
                    mapped[number >> 12] += 1
    assert not [f for f, n in used.items() if n > 1], "a table with two owners"
    zero = int(s.par[3]) >> 12
    for frame, n in mapped.items():
        if frame == zero or frame in vvar(guest):
            continue
        assert s.kind[frame] not in (FREE, TABLE), f"frame {frame:#x} is mapped but free or a table"
        if s.kind[frame] != FILE:
            assert s.maps[frame] == n, f"frame {frame:#x}: {s.maps[frame]} counted, {n} mapped"
    free = free_frames(guest)
    assert len(free) == len(set(free)), "a frame is free twice"
    assert not set(free) & (mapped.keys() | used.keys()), "a frame in use is on a free list"


def vvar(guest):
    """Return frames that belong to the kernel and are mapped without a count."""
    return set()


def free_frames(guest):
    """Return the frames on all free lists."""
    s = guest.machine.s
    out = [int(f) for row, n in zip(s.pool, s.pool_n, strict=True) for f in row[:n]]
    return out + [int(f) for f in s.returned[: s.zone[RETURNED]]]


def in_use(guest):
    """Return how many frames are neither free nor untouched."""
    s = guest.machine.s
    return int(s.zone[FRESH]) - len(free_frames(guest))
