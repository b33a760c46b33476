"""Slow twins of the modes that are told of changes (VMI, lguest), from the kernels' sources.

Shadows are dictionaries and sets; each operation does what the C function does.
"""

from __future__ import annotations

from collections import Counter

from naive import CannotRun

from pvmmu.guest.trace import Flag, Op, Trace
from pvmmu.modes.events import Event

IN_PLACE = (Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_RMW)
RMW_HOOKS = {
    Op.PTE_GET_AND_CLEAR: {"pte_update", "ptep_get_and_clear", "get_and_clear_ptes"},
    Op.PTE_WRPROTECT: {"pte_update", "ptep_set_wrprotect", "wrprotect_ptes"},
    Op.PTE_CLEAR_YOUNG: {"pte_update", "ptep_test_and_clear_young"},
    Op.PTE_RMW: {"pte_update"},
}


class NaiveLguest:
    """arch/x86/lguest/boot.c and drivers/lguest/page_tables.c of v2.6.27, one CPU."""

    def __init__(self, trace: Trace, hooks, ring=64, slots=4, returns=0):
        self.trace, self.hooks = trace, set(hooks)
        self.ring_size, self.returns = ring, returns
        self.counts: Counter[Event] = Counter()
        self.lazy, self.ring = False, 0
        self.shadow: dict[int, dict[int, set[int]]] = {}  # mm -> region -> pages
        self.mapped: set[tuple[int, int]] = set()
        self.dying: set[int] = set()
        self.gone: set[int] = set()
        self.fault = None
        self.ever = {m for m, mm in enumerate(trace.mms) if mm.older}
        self.loaded = self.first_loaded()
        self.ever.add(self.loaded)
        self.directory = self.loaded  # what the host runs on (cpu_pgd): it learns of loads only
        self.slots = [self.loaded] + [-1] * (slots - 1)
        self.random = 0
        if trace.platform.vcpus > 1:
            raise CannotRun

    def first_loaded(self):
        t = self.trace
        for row in range(len(t)):
            if t["op"][row] == Op.LOAD_CR3 and row == 0:
                return int(t["mm"][row])
        for row in range(len(t)):
            if t["flags"][row] & Flag.CURRENT_MM and t["mm"][row] > 0:
                return int(t["mm"][row])
        return -1

    def run(self):
        t = self.trace
        for row in range(len(t)):
            self.op = Op(t["op"][row])
            self.mm, self.va = int(t["mm"][row]), int(t["va"][row])
            self.page = self.va >> 12
            self.region = self.va >> (22 if t.platform.levels == 2 else 21)
            self.value, self.flags = int(t["value"][row]), int(t["flags"][row])
            self.n = max(1, int(t["count"][row]))
            self.step()
        return self.counts

    # ------------------------------------------------------------ arch/x86/lguest/boot.c
    def lazy_hcall(self):
        if self.lazy and self.ring < self.ring_size:
            self.ring += 1
            self.counts[Event.LGUEST_RING] += 1
        else:
            self.ring = 0
            self.counts[Event.LGUEST_CALL] += 1

    def step(self):
        op, hooks = self.op, self.hooks
        if (op in (Op.LAZY_ENTER, Op.LAZY_RESUME) and "lazy_mmu" in hooks) or (
            op == Op.SWITCH_START and "context_switch" in hooks
        ):
            self.lazy = True
        elif (op in (Op.LAZY_LEAVE, Op.LAZY_PAUSE) and "lazy_mmu" in hooks) or (
            op == Op.SWITCH_END and "context_switch" in hooks
        ):
            self.lazy, self.ring = False, 0
            self.counts[Event.LGUEST_CALL] += 1
        elif op in IN_PLACE:
            self.in_place(op)
        elif op == Op.SET_PTE:
            self.set_pte()
        elif op == Op.PTE_CLEAR:
            self.tell() if "pte_clear" in hooks else self.untold(Event.STORE, harmless=True)
        elif op == Op.MODIFY_PROT_START and "ptep_modify_prot" not in hooks:
            self.in_place(Op.PTE_GET_AND_CLEAR)
        elif op == Op.MODIFY_PROT_COMMIT:
            self.tell() if "ptep_modify_prot" in hooks else self.set_pte()
        elif op in (Op.SET_PMD, Op.SET_PUD, Op.SET_P4D):
            self.set_upper()
        elif op in (Op.READ_CR2, Op.READ_CR3):
            self.need({Op.READ_CR2: "read_cr2", Op.READ_CR3: "read_cr3"}[op])
        elif op == Op.LOAD_CR3:
            self.write_cr3()
        elif op == Op.FLUSH_ONE:
            self.need("flush_tlb_one_user")
            for _ in range(self.n):
                self.lazy_hcall()
            self.do_set_pte(False)
        elif op == Op.FLUSH_USER:
            self.need("flush_tlb_user")
            for _ in range(self.n):
                self.lazy_hcall()
            self.drop_space(self.directory)
        elif op == Op.FLUSH_KERNEL:
            self.need("flush_tlb_kernel")
            for _ in range(self.n):
                self.lazy_hcall()
            self.clear_all()
        elif op == Op.FAULT:
            self.program_ran()
            self.counts[Event.PAGE_FAULT] += 1
            self.fault = (self.mm, self.page)
        elif op == Op.TOUCH:
            self.touch()
        elif op == Op.EXIT_MMAP and self.mm >= 0:
            self.dying.add(self.mm)

    def need(self, hook):
        if hook not in self.hooks:
            raise CannotRun

    def kept_elsewhere(self):
        """A shadow of this address space may exist, no flush that the kernel makes reaches it."""
        absent = self.flags & Flag.OLD_KNOWN and not self.flags & Flag.OLD_PRESENT
        return self.mm > 0 and self.mm in self.ever and self.mm != self.loaded and not absent

    def untold(self, event, harmless=False):
        if not harmless and self.kept_elsewhere():
            raise CannotRun
        self.counts[event] += 1
        self.change()
        if self.returns and not self.value & 1:
            self.forget()
        self.after()

    def tell(self):
        self.counts[Event.STORE] += 1
        self.lazy_hcall()
        self.change()
        self.do_set_pte(bool(self.value & 1 and self.value & 0x60))
        self.after()

    def in_place(self, op):
        if self.flags & Flag.FULLMM:
            self.untold(Event.STORE, harmless=True)
        elif self.hooks & RMW_HOOKS[op]:
            self.tell()
        else:
            self.untold(Event.LOCKED)

    def set_pte(self):
        if self.hooks & {"set_pte_at", "set_ptes"}:
            self.tell()
        elif "set_pte" in self.hooks:
            self.counts[Event.STORE] += 1
            self.lazy_hcall()
            self.change()
            if self.returns and not self.value & 1:
                self.forget()
            self.clear_all()
            self.after()
        else:
            self.untold(Event.STORE)

    def set_upper(self):
        name = self.op.name.lower()
        if name in self.hooks:
            self.counts[Event.STORE] += 1
            self.lazy_hcall()
            pages = self.shadow.get(self.mm, {}).pop(self.region, set())
            self.counts[Event.SHADOW_DROPPED] += len(pages)
            return
        if self.op == Op.SET_PMD and not self.value & 1 and self.kept_elsewhere():
            raise CannotRun
        self.untold(Event.STORE, harmless=True)

    def write_cr3(self):
        if self.flags & Flag.NATIVE_ONLY and "exit_mmap" in self.hooks:
            self.loaded_by_trace()
            return
        self.need("write_cr3")
        self.program_ran()
        self.lazy_hcall()
        self.loaded_by_trace()
        self.directory = self.mm
        if self.mm in self.slots:
            return
        self.random = (self.random * 1664525 + 1013904223) % 2**32
        victim = (self.random >> 16) % len(self.slots)
        if self.slots[victim] > 0:
            self.drop_space(self.slots[victim])
        self.slots[victim] = self.mm

    def loaded_by_trace(self):
        self.loaded = self.mm
        self.ever.add(self.mm)

    # ------------------------------------------------------------ drivers/lguest/page_tables.c
    def pages(self):
        return self.shadow.get(self.mm, {}).get(self.region)

    def shadowed(self):
        return self.mm == 0 or self.mm in self.slots

    def change(self):
        if self.mm >= 0:
            (self.mapped.add if self.value & 1 else self.mapped.discard)((self.mm, self.page))

    def forget(self):
        if self.pages() and self.page in self.pages():
            self.pages().discard(self.page)

    def do_set_pte(self, fill):
        if self.mm < 0 or not self.shadowed() or self.pages() is None:
            return
        if fill:
            self.pages().add(self.page)
        elif self.page in self.pages():
            self.counts[Event.SHADOW_DROPPED] += 1
            back = (self.mm, self.page) in self.mapped and self.mm not in self.dying
            if self.returns and back:
                self.counts[Event.SHADOW_FAULT] += 1
            else:
                self.pages().discard(self.page)

    def after(self):
        if self.fault == (self.mm, self.page) and self.value & 1:
            self.fault = None
            self.touch()

    def touch(self):
        if self.mm < 0 or (self.mm, self.page) not in self.mapped or not self.shadowed():
            return
        if self.pages() is None:
            self.shadow.setdefault(self.mm, {})[self.region] = set()
        if self.page not in self.pages():
            self.counts[Event.SHADOW_FAULT] += 1
            self.pages().add(self.page)

    def drop_space(self, mm):
        live = sum(map(len, self.shadow.get(mm, {}).values()))
        if mm < 0 or mm in self.gone:
            return
        self.counts[Event.SHADOW_DROPPED] += live
        if self.returns and live and mm not in self.dying:
            self.gone.add(mm)
        elif live:
            self.shadow[mm] = {}

    def clear_all(self):
        for mm in list(self.shadow):
            self.drop_space(mm)
        if not self.returns:
            self.shadow = {}

    def program_ran(self):
        for mm in (self.directory, 0):
            if mm in self.gone:
                self.gone.discard(mm)
                live = sum(map(len, self.shadow[mm].values()))
                self.counts[Event.SHADOW_FAULT] += min(live, self.returns)
