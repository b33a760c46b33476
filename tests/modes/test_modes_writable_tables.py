"""Batched writable page tables, page by page: what opens, closes and is seen through the hole."""

from __future__ import annotations

import numpy as np
import pytest

from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.direct.writable_tables import (
    close_writable,
    fault_in_hole,
    new_slots,
    write_to_table,
)
from pvmmu.modes.events import Event

MIB = 1 << 20
VA, MM = np.uint64(64 * MIB), np.int64(3)


class Tables:
    """Xen's two writable pages, and what it counts."""

    def __init__(self, enabled=True):
        self.state = new_slots(enabled), new_counts(), new_log(64), np.int64(0)

    def write(self, table, index=0, in_use=True, va=VA):
        return write_to_table(
            *self.state, np.int64(table), np.int64(index), np.bool_(in_use), np.uint64(va), MM
        )

    def fault(self, va, mm=MM):
        fault_in_hole(*self.state, np.uint64(va), np.int64(mm))

    def close(self):
        close_writable(*self.state)

    def __getitem__(self, event):
        return int(self.state[1][event])


@pytest.mark.parametrize(
    ("table", "index", "carried"),
    [(0, 0, True), (0, 1023, True), (7, 5, True), (-1, 0, False), (7, -1, False), (-1, -1, False)],
)
def test_a_store_at_a_known_place_is_carried(table, index, carried):
    t = Tables()
    assert t.write(table, index) == carried
    assert t[Event.PTWR_OPEN] == t[Event.STORE] == carried


def test_only_a_table_in_use_is_unhooked():
    """The page of another address space needs no flush of the TLB: nobody walks it."""
    t = Tables()
    t.write(7, in_use=False)
    assert t[Event.TLB_FLUSH] == 0
    t.write(8, in_use=True)
    assert t[Event.TLB_FLUSH] == 1
    assert t[Event.PTWR_FLUSH] == 0  # one page of each kind
    t.write(9, in_use=True)
    assert t[Event.PTWR_FLUSH] == 1


def test_an_entry_is_validated_once():
    t = Tables()
    for index in (0, 0, 1, 511, 0):
        t.write(7, index)
    assert (t[Event.STORE], t[Event.PTWR_OPEN]) == (5, 1)
    t.close()
    assert (t[Event.PTWR_FLUSH], t[Event.PTWR_ENTRIES], t[Event.TLB_FLUSH_ONE]) == (1, 3, 1)
    t.write(7, 1)
    t.close()
    assert (t[Event.PTWR_FLUSH], t[Event.PTWR_ENTRIES]) == (2, 4)
    t.close()
    assert t[Event.PTWR_FLUSH] == 2


@pytest.mark.parametrize(
    ("va", "mm", "seen"),
    [(VA, MM, 1), (int(VA) + 2 * MIB - 1, MM, 1), (int(VA) + 2 * MIB, MM, 0),
     (int(VA) - 1, MM, 0), (VA, MM + 1, 0), (VA, MM - 1, 0)],
)  # fmt: skip
@pytest.mark.parametrize("table", [0, 7])
def test_a_fault_through_the_hole(va, mm, seen, table):
    t = Tables()
    t.write(table, va=int(VA) + 4096)
    t.fault(va, mm)
    assert t[Event.PTWR_HOLE_FAULT] == t[Event.PTWR_FLUSH] == seen


def test_there_is_no_hole_where_nothing_is_unhooked():
    t = Tables()
    t.fault(VA)
    t.write(7, in_use=False)
    t.fault(VA)
    assert t[Event.PTWR_HOLE_FAULT] == 0


def test_without_the_mechanism_nothing_happens():
    t = Tables(enabled=False)
    assert not t.write(7)
    t.fault(VA)
    t.close()
    assert not t.state[1].any()
