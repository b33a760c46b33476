"""Direct paging (Xen): the guest's tables are the machine's, and the hypervisor checks each change.

A table page is *typed* while its address space is pinned: Xen has validated it, maps it read-only
to the guest, and every change goes through a hypercall or a trap. Otherwise it is ordinary memory.

When tables become typed depends on the hooks:

* ``activate_mm`` and ``dup_mmap`` both hooked: late, when an address space is complete;
* else, as in Xen 1 and 2, at birth (``pgd_alloc``), each table page as it is allocated; with
  ``without="cr3"`` at the first load of CR3 (which in reality runs under the scheduler's locks).

They stop being typed at ``exit_mmap``, if that is hooked, else when the root is freed.

Stores that no hook carries hit typed tables and fault. ``stores`` says what Xen makes of it:
``emulate`` each one (since 2006-08; L1 tables only), ``batched`` (writable page tables, 2004-2006,
see `pvmmu.modes.ptwr`), or ``refuse``. A hook that no backend ever implemented is carried as
today's backend would: by an ``mmu_update`` request if the table is typed.

Sources: Linux v2.6.27 and 6.1.166 arch/x86/xen/mmu_pv.c (mmu.c), multicalls.c, enlighten.c; Xen
4.17 xen/arch/x86/pv/ro-page-fault.c, emul-priv-op.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.lifecycle import NEVER, Lifecycle, lifecycle
from pvmmu.guest.ops import Trace
from pvmmu.guest.vocabulary import ALLOC_OPS, ENTRY_OPS, N_OPS, OPS, RELEASE_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.base import Infeasible, Outcome, choice, counts_of_rows, covered_hooks, outcome
from pvmmu.modes.direct_kernel import ROW, Backend, Carrier, Walks, run_direct
from pvmmu.modes.multicall import new_buffer

#: Backends: numbers of the loop, limits of the multicall buffer (entries, bytes, single-call
#: bypass), and whether stores with a known address go by address (update_va_mapping).
BACKENDS: Final = {
    "2.6.27": (Backend(0, 0, 1, 1, 1, 1), (32, 512, 0), True),
    "6.1": (Backend(1, 1, 0, 1, 1, 1), (32, 511, 1), False),
}
STORES: Final = ("emulate", "batched", "refuse")
WITHOUT: Final = ("birth", "cr3")

#: Hooks that direct mode reads.
HOOKS: Final = (
    "set_pte", "set_pte_at", "set_ptes", "pte_clear", "ptep_get_and_clear", "get_and_clear_ptes",
    "ptep_set_wrprotect", "wrprotect_ptes", "ptep_test_and_clear_young", "ptep_modify_prot",
    "set_pmd", "set_pud", "set_p4d", "alloc_pte", "alloc_pmd", "alloc_pud", "release_pte",
    "release_pmd", "release_pud", "pgd_alloc", "write_cr3", "read_cr2", "read_cr3",
    "flush_tlb_user", "flush_tlb_kernel", "flush_tlb_one_user", "flush_tlb_multi", "lazy_mmu",
    "context_switch", "activate_mm", "dup_mmap", "exit_mmap",
)  # fmt: skip
#: A range hook, the operation it covers, and the hook of one entry that it stands for.
RANGES: Final = (
    ("set_ptes", Op.SET_PTE),
    ("get_and_clear_ptes", Op.PTE_GET_AND_CLEAR),
    ("wrprotect_ptes", Op.PTE_WRPROTECT),
)
_UPPER: Final = {
    Op.SET_PMD: "set_pmd", Op.SET_PUD: "set_pud", Op.SET_P4D: "set_p4d", Op.SET_PGD: "set_p4d",
}  # fmt: skip
_ALLOC: Final = dict(
    zip(ALLOC_OPS, ("alloc_pte", "alloc_pmd", "alloc_pud", "alloc_pud"), strict=True)
)
_RELEASE: Final = dict(
    zip(RELEASE_OPS, ("release_pte", "release_pmd", "release_pud", "release_pud"), strict=True)
)
# States of a row: bit 0, its table is typed; bit 1, the address space is the running task's.
_TYPED, _CURRENT = 1, 2
_NAMES: Final = {int(c): c.name.lower().replace("_", " ") for c in Carrier}


@dataclass(frozen=True)
class Direct:
    """Direct paging.

    Parameters
    ----------
    backend : str
        Whose rules the hooks follow: ``6.1`` (set_pte is always an mmu_update) or ``2.6.27``
        (set_pte_at goes by address, to an unpinned table it is a plain store).
    stores : str
        What Xen makes of stores that no hook carries: ``emulate``, ``batched`` or ``refuse``.
    without : str
        When tables become typed if address-space hooks are missing: at ``birth`` or first ``cr3``.

    Raises
    ------
    ModeError
        No such backend or policy.
    """

    backend: str = "6.1"
    stores: str = "emulate"
    without: str = "birth"
    name: ClassVar[str] = "direct"

    def __post_init__(self) -> None:
        choice("direct mode: backend", self.backend, tuple(BACKENDS))
        choice("direct mode: stores", self.stores, STORES)
        choice("direct mode: without", self.without, WITHOUT)

    @property
    def spec(self) -> str:
        """``direct``, followed by the parameters that differ from the default."""
        return "direct" + "".join(
            f":{k}={v}"
            for k, v, default in (
                ("backend", self.backend, "6.1"),
                ("stores", self.stores, "emulate"),
                ("without", self.without, "birth"),
            )
            if v != default
        )

    def levers(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        if "pte_val" not in hooks:
            return Infeasible("frames are never translated to machine frames (pte_val, make_pte)")
        pinned, unpinned = self._pinned_rows(trace, hooks)
        carrier = self._carriers(trace, hooks, pinned, unpinned)
        broken = np.flatnonzero(carrier == Carrier.MISSING)
        if len(broken):
            return Infeasible(self._why(trace, int(broken[0]), hooks), int(broken[0]))
        numbers, limits, _ = BACKENDS[self.backend]
        numbers = numbers._replace(
            split_ptlock=int(trace.platform.split_ptlock),
            user_root=int(trace.platform.user_root),
            emulated_per_store=2 if trace.platform.levels == 3 else 1,
        )
        rows, in_range = _rows(trace), _in_range_call(trace, hooks)
        life, cpus = lifecycle(trace), trace.platform.vcpus
        walks = Walks(life.walk_start, life.walk_level)
        results = []
        for times in counts_of_rows(trace):
            batched = self.stores == "batched" and cpus == 1
            buffer = new_buffer(cpus, limits, batched, 16 * len(trace) + 4096 if log else 0)
            loaded = np.full(cpus, -1, np.int32)
            run_direct(rows, carrier, times, in_range, walks, numbers, buffer, loaded)
            results.append(buffer.tally)
        return outcome(results, carrier, _NAMES)

    # ------------------------------------------------------------------ typed or not
    def _pinned_rows(self, trace: Trace, hooks: HookSet) -> tuple[np.ndarray, np.ndarray]:
        """Return for each address space the rows at which it is pinned and unpinned."""
        life = lifecycle(trace)
        older = np.array([m.older for m in trace.mms])
        if "activate_mm" in hooks and "dup_mmap" in hooks:
            start = life.finished
        else:
            start = life.born if self.without == "birth" else life.loaded
        end = life.exits if "exit_mmap" in hooks else life.freed
        return np.where(older, -1, start), np.where(np.arange(len(end)) == 0, NEVER, end)

    def _carriers(
        self, trace: Trace, hooks: HookSet, pinned: np.ndarray, unpinned: np.ndarray
    ) -> np.ndarray:
        """Return the carrier of each row."""
        op, mm, row = trace["op"], trace["mm"], np.arange(len(trace))
        typed = (mm < 0) | ((pinned[mm] < row) & (row < unpinned[mm]))
        current = (trace["flags"] & Flag.CURRENT) != 0
        state = typed * _TYPED + (current | (mm == 0)) * _CURRENT
        out = self._table(trace, hooks)[op, state]
        self._moments(trace, hooks, pinned, unpinned, lifecycle(trace), out)
        behind, cr3 = (trace["flags"] & Flag.BEHIND) != 0, op == Op.LOAD_CR3
        if "flush_tlb_multi" in hooks:
            out[behind & ~cr3] = Carrier.NOTHING
        if "exit_mmap" in hooks:
            out[behind & cr3] = Carrier.NOTHING
        return out

    def _table(self, trace: Trace, hooks: HookSet) -> np.ndarray:
        """Return the carrier of each (operation, state)."""
        out = np.full((N_OPS, 4), Carrier.NOTHING, np.uint8)
        trap = Carrier.MISSING if self.stores == "refuse" else Carrier.TRAP
        by_address = BACKENDS[self.backend][2]

        def put(op: Op, plain: Carrier, typed: Carrier) -> None:
            out[op, [0, _CURRENT]], out[op, [_TYPED, _TYPED | _CURRENT]] = plain, typed

        put(Op.SET_PTE, Carrier.STORE, trap)
        store_hooks = {"set_pte", "set_ptes", "set_pte_at"} & set(hooks)
        if by_address and store_hooks & {"set_pte_at"}:
            out[Op.SET_PTE, [_CURRENT, _TYPED | _CURRENT]] = Carrier.UPDATE_VA
        elif not by_address and store_hooks:
            put(Op.SET_PTE, Carrier.MMU_UPDATE, Carrier.MMU_UPDATE)
        elif by_address and "set_ptes" in hooks:
            put(Op.SET_PTE, Carrier.STORE, Carrier.MMU_UPDATE)
        for op, names in (
            (Op.PTE_GET_AND_CLEAR, {"ptep_get_and_clear", "get_and_clear_ptes"}),
            (Op.PTE_WRPROTECT, {"ptep_set_wrprotect", "wrprotect_ptes"}),
            (Op.PTE_CLEAR_YOUNG, {"ptep_test_and_clear_young"}),
            (Op.PTE_RMW, set()),
        ):
            put(op, Carrier.LOCKED, Carrier.MMU_UPDATE if names & set(hooks) else trap)
        clear_hooked = not by_address and "pte_clear" in hooks
        put(Op.PTE_CLEAR, Carrier.STORE, Carrier.MMU_UPDATE if clear_hooked else trap)
        if "ptep_modify_prot" in hooks:
            put(Op.MODIFY_PROT_COMMIT, Carrier.MMU_UPDATE, Carrier.MMU_UPDATE)
        else:  # the default: clear, then store, each hooked or not
            out[Op.MODIFY_PROT_START] = out[Op.PTE_GET_AND_CLEAR]
            out[Op.MODIFY_PROT_COMMIT] = out[Op.SET_PTE]
        for op, name in _UPPER.items():
            top = OPS[op].level == trace.platform.levels and trace.platform.user_root
            hooked = Carrier.MMU_UPDATE_TWICE if top else Carrier.MMU_UPDATE
            put(op, Carrier.STORE, hooked if name in hooks else Carrier.MISSING)
        for op, name in _ALLOC.items():
            put(op, Carrier.NOTHING, Carrier.ANNOUNCE if name in hooks else Carrier.MISSING)
        for op, name in _RELEASE.items():
            put(op, Carrier.NOTHING, Carrier.DISMISS if name in hooks else Carrier.MISSING)
        self._registers_and_flushes(trace, hooks, out)
        return out

    def _registers_and_flushes(self, trace: Trace, hooks: HookSet, out: np.ndarray) -> None:
        """Fill in what does not depend on tables."""
        privileged = {
            Op.READ_CR2: ("read_cr2", Carrier.NOTHING),
            Op.READ_CR3: ("read_cr3", Carrier.NOTHING),
            Op.FLUSH_USER: ("flush_tlb_user", Carrier.FLUSH_CALL),
            Op.FLUSH_KERNEL: ("flush_tlb_kernel", Carrier.FLUSH_CALL),
            Op.FLUSH_ONE: ("flush_tlb_one_user", Carrier.FLUSH_CALL),
            Op.LOAD_CR3: ("write_cr3", Carrier.CR3_CALL),
        }
        for op, (name, hooked) in privileged.items():
            out[op] = hooked if name in hooks else Carrier.PRIVOP
        if "write_cr3" not in hooks and trace.platform.user_root:
            out[Op.LOAD_CR3] = Carrier.MISSING
        if "flush_tlb_multi" in hooks:
            out[Op.FLUSH_OTHERS] = Carrier.FLUSH_CALL_MULTI
        out[Op.SEND_IPI] = Carrier.EVENT_CHANNEL
        out[Op.FAULT] = Carrier.FAULT
        if "lazy_mmu" in hooks:
            out[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Carrier.LAZY_BRACKET
            out[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Carrier.LAZY_BRACKET_END
        if "context_switch" in hooks:
            out[Op.SWITCH_START] = Carrier.SWITCH_BRACKET
            out[Op.SWITCH_END] = Carrier.SWITCH_BRACKET_END

    def _moments(
        self, trace: Trace, hooks: HookSet, pinned: np.ndarray, unpinned: np.ndarray,
        life: Lifecycle, out: np.ndarray,
    ) -> None:  # fmt: skip
        """Fill in the rows at which address spaces are pinned and unpinned."""
        needs_root = trace.platform.user_root and "pgd_alloc" not in hooks
        at_birth = pinned == life.born
        for mm in range(1, len(trace.mms)):
            start, end, born = int(pinned[mm]), int(unpinned[mm]), int(life.born[mm])
            if 0 <= born < NEVER and (needs_root or (at_birth[mm] and "pgd_alloc" not in hooks)):
                out[born] = Carrier.MISSING
            elif 0 <= start < NEVER:
                out[start] = Carrier.PIN_ROOT if at_birth[mm] else Carrier.PIN
            if 0 <= end < NEVER and start < end:
                last = end == life.freed[mm]
                out[end] = Carrier.UNPIN_ROOT if last else Carrier.UNPIN
                if last and "pgd_alloc" not in hooks:
                    out[end] = Carrier.MISSING

    def _why(self, trace: Trace, row: int, hooks: HookSet) -> str:
        """Say why a row cannot be carried."""
        op = Op(trace["op"][row])
        if op in _UPPER:
            return f"an unhooked store to an upper-level table of a pinned tree ({_UPPER[op]})"
        if op in _ALLOC:
            return f"a new {op.name[6:]} table is never announced ({_ALLOC[op]})"
        if op in _RELEASE:
            return f"a {op.name[8:]} table is freed while typed ({_RELEASE[op]})"
        if op == Op.LOAD_CR3:
            return "a 64-bit guest's user page tables have no instruction to trap (write_cr3)"
        if op == Op.PGD_ALLOC:
            return "a new top-level table is never announced (pgd_alloc)"
        if op == Op.PGD_FREE:
            return "a pinned top-level table is freed (exit_mmap, pgd_alloc)"
        return f"a store to a typed table is refused ({op.name})"


def _rows(trace: Trace) -> np.ndarray:
    """Return the rows as the loop reads them (kept with the trace)."""
    if "direct rows" not in trace.derived:
        life = lifecycle(trace)
        level = np.zeros(N_OPS, np.uint8)
        for op, info in OPS.items():
            level[op] = info.level
        rows = np.zeros(len(trace), ROW)
        for name in ("op", "cpu", "mm", "table", "va"):
            rows[name] = trace[name]
        rows["slot"], rows["level"] = trace["index"], level[trace["op"]]
        rows["again"] = (trace["flags"] & Flag.AGAIN) != 0
        rows["run_end"] = _run_ends(trace)
        rows["walk"], rows["present"] = life.walk_of, life.present
        trace.derived["direct rows"] = rows
    out: np.ndarray = trace.derived["direct rows"]
    return out


def _in_range_call(trace: Trace, hooks: HookSet) -> np.ndarray:
    """Return the rows that a hooked range call carries."""
    ops = [int(op) for name, op in RANGES if name in hooks]
    return np.isin(trace["op"], ops) if ops else np.zeros(len(trace), np.bool_)


def _run_ends(trace: Trace) -> np.ndarray:
    """Return the rows at which a run of like operations on consecutive entries ends.

    A run goes on over operations on other entries, as fork alternates between parent and child.
    """
    op, cpu, table, index = (trace[name] for name in ("op", "cpu", "table", "index"))
    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    ends = np.ones(len(trace), np.bool_)
    for c in range(trace.platform.vcpus):
        here = cpu == c
        broken = np.cumsum(here & ~entry)
        for _, kind in RANGES:
            rows = np.flatnonzero(here & (op == kind))
            a, b = rows[:-1], rows[1:]
            goes_on = (table[a] == table[b]) & (index[a] + 1 == index[b]) & (broken[a] == broken[b])
            ends[a[goes_on]] = False
    return ends
