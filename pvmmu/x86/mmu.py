"""Processors' MMUs in front of page tables: TLBs, walk caches, faults, flushes, stale entries.

`Mmu` lets a stream of events happen (`pvmmu.x86.mmu_events.Event`): accesses, stores to page
tables, invalidations, CR3 loads, on any number of CPUs. Accessed and dirty flags are written to
memory as a processor does. With ``validate=True`` each use of a cached translation is compared with
the tables as they are at that moment, so that a design that flushes too little is found out
(`pvmmu.x86.mmu_stale` says what counts as harmful).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pvmmu.x86.bits import (
    CR3_LAM_U48,
    CR3_LAM_U57,
    CR3_NOFLUSH,
    CR4_CET,
    CR4_PCIDE,
    EFER_TCE,
)
from pvmmu.x86.errors import TlbError, WalkError
from pvmmu.x86.geometry import Geometry, shipped_geometry
from pvmmu.x86.linear import seen_addresses
from pvmmu.x86.mmu_events import EVENT_DTYPE, HARMFUL, REFUSED_ACCESS, Count, Event, make_events
from pvmmu.x86.mmu_flush import RULES, TCE_RULES
from pvmmu.x86.mmu_kernel import BAD_PDPTE, TABLE_OUTSIDE, run_events
from pvmmu.x86.mmu_state import (
    COUNTS,
    FRAME_AT,
    LOG_COUNT,
    LOG_CPU,
    LOG_EVENT,
    LOG_VA,
    LOGGED,
    PCIDE,
    ROOT_MASK,
    SECOND_ROOT,
    VALIDATE,
    new_state,
)
from pvmmu.x86.plan import NO_PLAN, SHADOW_READ, first_plan, second_plan
from pvmmu.x86.registers import Ept, Npt, Registers
from pvmmu.x86.tlb import listing
from pvmmu.x86.tlb_sets import MAX_VPID
from pvmmu.x86.walk import guest_format
from pvmmu.x86.walk_arguments import check_words
from pvmmu.x86.walk_state import OUT, OUTSIDE

_MAX_CPUS: Final = 64
_MAX_PCID: Final = 0xFFF
_NONE: Final = np.zeros(0, np.int64)


def _accesses(op: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which events are accesses."""
    more = (op >= Event.SHADOW_READ) & (op <= Event.IMPLICIT_WRITE)
    return np.asarray((op <= Event.FETCH) | more, np.bool_)


class Mmu:
    """MMUs of one or more CPUs that share a memory.

    Parameters
    ----------
    words : uint64[m]
        Physical memory (the host's, if there is a second dimension). Flags are written to it.
    registers : Registers
        Control registers of all CPUs; CR3 is that with which they start.
    geometry_ : Geometry or str
        TLBs and walk caches, or the name of a geometry that ships with the package.
    second : Ept or Npt, optional
        The second dimension; all VPIDs share it.
    cpus : int
        CPUs, 1 to 64.
    validate : bool
        Compare each use of a cached translation with the tables.
    log_rows : int
        Harmful uses to remember.

    Raises
    ------
    TlbError, WalkError
        An argument is wrong; names it.

    Notes
    -----
    Walk caches hold entries that reference tables, never those that map pages, and never PDPTE
    registers (SDM vol. 3A §4.10.3). A write through an entry that was made by a read walks again to
    set the dirty flag. A page fault drops what was cached for its address (§4.10.4.1); if the
    tables would have allowed the access, the fault was spurious, and the access is repeated.
    """

    def __init__(
        self,
        words: npt.NDArray[np.uint64],
        registers: Registers,
        geometry_: Geometry | str,
        *,
        second: Ept | Npt | None = None,
        cpus: int = 1,
        validate: bool = False,
        log_rows: int = 1000,
    ) -> None:
        check_words(words)
        g = shipped_geometry(geometry_) if isinstance(geometry_, str) else geometry_
        if not isinstance(g, Geometry):
            raise TlbError(f"not a geometry: {g!r}")
        if not isinstance(registers, Registers):
            raise WalkError(f"registers must be Registers, not {type(registers).__name__}")
        if not 1 <= cpus <= _MAX_CPUS:
            raise TlbError(f"cpus must be 1 to {_MAX_CPUS}, not {cpus}")
        fmt = guest_format(registers, second)
        self.registers, self.geometry, self.second, self.cpus = registers, g, second, cpus
        self._format = fmt
        self._state = new_state(
            words,
            first_plan(registers, fmt),
            NO_PLAN if second is None else second_plan(second),
            g,
            cpus,
            log_rows,
        )
        self._rules = RULES if not registers.efer & EFER_TCE else TCE_RULES
        control = self._state.control
        control[VALIDATE], control[PCIDE] = validate, bool(registers.cr4 & CR4_PCIDE)
        control[ROOT_MASK] = registers.root_mask
        control[SECOND_ROOT] = 0 if second is None else second.root
        self.run(make_events(Event.ENTER, registers.cr3, cpu=np.arange(cpus)))

    # ------------------------------------------------------------------ events
    def run(self, events: npt.NDArray[np.void]) -> None:
        """Let `events` (`EVENT_DTYPE`[n], of `make_events`) happen in order.

        Raises
        ------
        TlbError
            An event is unknown or has an argument out of range; nothing has happened then.
        WalkError
            A table lies outside of memory, or PDPTEs cannot be loaded; the events before that one
            have happened.
        """
        if not isinstance(events, np.ndarray) or events.dtype != EVENT_DTYPE or events.ndim != 1:
            raise TlbError("events must be a one-dimensional array of EVENT_DTYPE (make_events)")
        self._check(events)
        op, cpu, a, b, c = (np.ascontiguousarray(events[x]) for x in EVENT_DTYPE.names or ())
        op, a = self._seen(op, a, b)
        c = np.where((op == Event.STORE) & (c == 0), np.uint64(self._format.entry_bytes), c)
        stop, why = run_events(self._state, self._rules, _NONE, op, cpu, a, b, c, 0)
        if why == TABLE_OUTSIDE:
            at = int(self._state.scratch.work[OUT, OUTSIDE]) & ~1
            va = int(events["a"][stop])
            raise WalkError(f"event {stop} (va {va:#x}): the entry at {at:#x} is outside of memory")
        if why == BAD_PDPTE:
            raise WalkError(f"event {stop}: CR3 {int(events['a'][stop]):#x}: no PDPTEs to load")

    def access(
        self,
        va: npt.ArrayLike,
        kind: npt.ArrayLike = Event.READ,
        user: bool = True,
        ac: bool = False,
        cpu: int = 0,
    ) -> None:
        """Make accesses.

        Parameters
        ----------
        va : uint64[n] or int
            Linear addresses.
        kind : int[n] or int
            ``Event.READ``, ``WRITE``, ``FETCH``, ``SHADOW_READ``, ... ``IMPLICIT_WRITE``.
        user, ac : bool
            Whether in user mode; EFLAGS.AC.
        cpu : int
            Who makes them.

        Raises
        ------
        TlbError
            An argument is out of range.
        """
        kinds = np.asarray(kind)
        if kinds.size and not _accesses(kinds).all():
            wrong = int(kinds[~_accesses(kinds)][0]) if kinds.ndim else int(kinds)
            raise TlbError(f"kind of access must be one of Event's, READ for instance, not {wrong}")
        self.run(make_events(kinds, va, int(user) | int(ac) << 1, cpu=cpu))

    def do(self, event: Event, a: int = 0, b: int = 0, c: int = 0, cpu: int = 0) -> None:
        """Let one `event` with arguments `a`, `b` and `c` (see `Event`) happen on `cpu`."""
        self.run(make_events(event, a, b, c, cpu))

    def _seen(
        self, op: npt.NDArray[np.uint8], a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
        """Events and their addresses as LAM, UAI and LASS let them through; #GP is an event, too.

        TLBs keep 57 bits of an address: one that is not canonical must not get there.
        """
        access = _accesses(op)
        if self.registers.modifies_addresses:
            kind = np.where(op >= Event.SHADOW_READ, op - (Event.SHADOW_READ - SHADOW_READ), op)
            how = (x.astype(np.uint8) for x in (kind, b & np.uint64(1), b >> np.uint64(1)))
            a = np.where(access, seen_addresses(self.registers, a, *how), a)
        if not self._format.canonical:
            return op, a
        refused = access & ~self._canonical(a)
        return (np.where(refused, np.uint8(REFUSED_ACCESS), op) if refused.any() else op), a

    def _canonical(self, a: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which addresses this paging mode can have (SDM vol. 1 §3.3.7.1)."""
        sign = np.uint64(1 << self._format.width - 1 if self._format.canonical else 0)
        return np.asarray(a + sign >> np.uint64(self._format.width) == 0, np.bool_)

    def _check(self, e: npt.NDArray[np.void]) -> None:
        """Refuse what would make no sense, or make a kernel leave its arrays."""
        op, a, b = e["op"], e["a"], e["b"]
        size = np.uint64(8 * self._state.words.size)
        store = op == Event.STORE
        width = np.where(e["c"] == 0, self._format.entry_bytes, e["c"]).astype(np.uint64)
        pcid = np.isin(op, (Event.INVPCID_ADDRESS, Event.INVPCID_SINGLE))
        vpid = np.isin(op, (Event.INVVPID_ADDRESS, Event.INVVPID_SINGLE, Event.ENTER))
        vpid |= op == Event.INVVPID_SINGLE_NONGLOBAL
        load = (op == Event.LOAD_CR3) | (op == Event.ENTER)
        wide = _accesses(op) & (not self._format.canonical)
        shadow = np.isin(op, (Event.SHADOW_READ, Event.SHADOW_WRITE))
        by_address = (op == Event.INVPCID_ADDRESS) | (op == Event.INVVPID_ADDRESS)
        keyed = bool(self.registers.cr4 & CR4_PCIDE)
        invvpid = vpid & (op != Event.ENTER)
        rules = (
            (op > max(Event), "no event has the number {op}"),
            (e["cpu"] >= self.cpus, f"CPU {{cpu}}; there are {self.cpus}"),
            (store & ~np.isin(width, (4, 8)), "a store of {c} bytes"),
            (store & ((a % width != 0) | (a > size - width)), "a store to {a:#x}"),
            (pcid & (b > _MAX_PCID), "PCID {b}"),
            (pcid & (b != 0) & (not keyed), "INVPCID of PCID {b} without CR4.PCIDE raises #GP"),
            (vpid & (b > MAX_VPID), f"VPID {{b}}; there are 0 to {MAX_VPID}"),
            (invvpid & (b == 0), "INVVPID of VPID 0, which is the host's, fails"),
            (by_address & ~self._canonical(a), "{a:#x} is not canonical: the instruction fails"),
            ((op == Event.FREE) & (a >= self._state.freed.size), "frame {a:#x}"),
            (_accesses(op) & (b > 3), "flags {b} of an access"),
            (shadow & (not self.registers.cr4 & CR4_CET), "no shadow stack: CR4.CET is 0"),
            (wide & (a >> np.uint64(self._format.width) != 0), "address {a:#x} is too wide"),
        )
        for wrong, text in rules:
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                values = {name: int(e[name][i]) for name in EVENT_DTYPE.names or ()}
                raise TlbError(f"event {i}: {text.format(**values)}")
        for i in np.flatnonzero(load).tolist():
            root = int(a[i])
            if op[i] == Event.LOAD_CR3 and self.registers.cr4 & CR4_PCIDE:
                root &= CR3_NOFLUSH - 1
            try:
                self.registers.check_cr3(root)
            except WalkError as error:
                raise TlbError(f"event {i}: {error}") from None
            if (root ^ self.registers.cr3) & (CR3_LAM_U57 | CR3_LAM_U48):
                raise TlbError(f"event {i}: CR3 {root:#x} changes LAM; that is not modelled")

    # ------------------------------------------------------------------ results
    def counts(self, cpu: int | None = None) -> dict[Count, int]:
        """Return what was counted so far, on `cpu` or (None) on all together."""
        table = self._state.cpu[:, COUNTS:]
        row = table.sum(axis=0) if cpu is None else table[cpu]
        return {c: int(row[c]) for c in Count}

    def count_table(self) -> pd.DataFrame:
        """Return the counts with a row for each CPU and a column for each `Count`."""
        names = [c.name.lower() for c in Count]
        return pd.DataFrame(
            self._state.cpu[:, COUNTS:].astype(np.int64), columns=names
        ).rename_axis("cpu")

    def entries(self, cpu: int = 0) -> pd.DataFrame:
        """Return the TLB entries of `cpu`: as `Tlb.entries`, and ``pa``, the physical address."""
        first = cpu * len(self.geometry.structure)
        table, slots = listing(self._state.tlb, self.geometry, first, 0)
        ids = self._state.tlb.ids[slots]
        return table.assign(pa=self._state.data[ids, FRAME_AT])

    @property
    def harmful(self) -> int:
        """Harmful uses of stale translations so far; 0 for a design that flushes enough."""
        return int(self._state.cpu[:, [COUNTS + c for c in HARMFUL]].sum())

    def harmful_uses(self) -> pd.DataFrame:
        """Return the first harmful uses: ``event`` (from 0), ``cpu``, ``va``, ``why``."""
        rows = self._state.log[: int(self._state.control[LOGGED])]
        why = [Count(int(c)).name.lower() for c in rows[:, LOG_COUNT]]
        return pd.DataFrame(
            {
                "event": rows[:, LOG_EVENT].astype(np.int64) - self.cpus,
                "cpu": rows[:, LOG_CPU].astype(np.int64),
                "va": rows[:, LOG_VA],
                "why": pd.array(why, dtype="str") if why else pd.Series([], dtype="str"),
            }
        )
