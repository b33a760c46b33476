"""Slow twins of the modes that are told of changes (VMI, lguest), from the kernels' sources.

Shadows are dictionaries and sets; each operation does what the C function does.
"""

from __future__ import annotations

from collections import Counter

from naive import CannotRun

from pvmmu.guest.ops import Flag, Op, Trace
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
            if t["flags"][row] & Flag.CURRENT and t["mm"][row] > 0:
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
            self.drop_space(self.loaded)
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
        if self.flags & Flag.BEHIND and "exit_mmap" in self.hooks:
            self.loaded_by_trace()
            return
        self.need("write_cr3")
        self.program_ran()
        self.lazy_hcall()
        self.loaded_by_trace()
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
                self.counts[Event.HIDDEN_FAULT] += 1
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
            self.counts[Event.HIDDEN_FAULT] += 1
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
        for mm in (self.loaded, 0):
            if mm in self.gone:
                self.gone.discard(mm)
                live = sum(map(len, self.shadow[mm].values()))
                self.counts[Event.HIDDEN_FAULT] += min(live, self.returns)


class NaiveKvm:
    """arch/x86/kernel/kvm.c and the writes of arch/x86/kvm/mmu.c of v2.6.27 (and out of sync)."""

    def __init__(self, trace: Trace, hooks, shadow="2.6.27", queue=1024, buffer=512):
        self.trace, self.hooks, self.oos = trace, set(hooks), shadow == "2.6.28"
        self.capacity, self.buffer = queue, buffer
        self.counts: Counter[Event] = Counter()
        self.queues: dict[int, list[int]] = {}
        self.lazy: set[int] = set()
        self.shadows: dict[int, set] = {}  # table -> (mm, page) that its shadow has
        self.unsynced: set[int] = set()
        self.mapped: set = set()
        self.tables: dict = {}
        self.last: dict[int, list] = {}
        self.faults: dict = {}

    def run(self):
        t = self.trace
        for row in range(len(t)):
            self.op, self.cpu = Op(t["op"][row]), int(t["cpu"][row])
            self.table, self.present = int(t["table"][row]), bool(t["value"][row] & 1)
            self.place = (int(t["mm"][row]), int(t["va"][row]) >> 12)
            shift = 22 if t.platform.levels == 2 else 21
            self.region = (int(t["mm"][row]), int(t["va"][row]) >> shift)
            self.n = max(0, int(t["count"][row]))
            self.step()
        return self.counts

    def step(self):
        op, name, hooks = self.op, self.op.name.lower(), self.hooks
        stores = {"set_pte", "set_pte_at", "set_ptes"} & hooks
        protect = "ptep_modify_prot" in hooks
        if op == Op.SET_PTE or (op == Op.MODIFY_PROT_COMMIT and not protect):
            self.leaf(bool(stores))
        elif op == Op.MODIFY_PROT_COMMIT:
            self.leaf(True)
        elif op in IN_PLACE or (op == Op.MODIFY_PROT_START and not protect):
            self.leaf(False)
        elif op == Op.PTE_CLEAR:
            self.leaf("pte_clear" in hooks)
        elif op in (Op.SET_PMD, Op.SET_PUD, Op.SET_P4D):
            if name in hooks:
                self.record(24)
                self.pte_write(False)
            elif self.table in self.shadows:
                self.counts[Event.PTE_EMULATION] += 1
                self.pte_write(False)
            else:
                self.counts[Event.STORE] += 1
        elif name.startswith("release_") and name.replace("p4d", "pud") in hooks:
            self.counts[Event.MMU_OP] += 1
            self.counts[Event.MMU_OP_RECORDS] += 1
            self.forget(self.table)
        elif op == Op.FLUSH_USER and "flush_tlb_user" in hooks:
            for _ in range(self.n):
                self.record(8)
            self.unsynced.clear()
        elif op in (Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3):
            self.counts[Event.PRIVOP_EMULATION] += 1 if op == Op.LOAD_CR3 else self.n
            self.unsynced.clear()
        elif op in (Op.FLUSH_ONE, Op.READ_CR3):
            self.counts[Event.PRIVOP_EMULATION] += self.n
        elif op == Op.LAZY_ENTER and "lazy_mmu" in hooks:
            self.lazy.add(self.cpu)
        elif op == Op.LAZY_LEAVE and "lazy_mmu" in hooks:
            self.lazy.discard(self.cpu)
            self.mmu_op()
        elif op == Op.FAULT:
            self.counts[Event.PAGE_FAULT] += 1
            self.faults[self.cpu] = self.place
            self.last.pop(self.cpu, None)
        elif op == Op.TOUCH and self.place in self.mapped:
            self.touch(self.tables.get(self.region, -1))
        elif op == Op.SEND_IPI:
            self.counts[Event.EVENT_CHANNEL_OP] += self.n

    def leaf(self, hooked):
        table = self.table
        if table >= 0:
            self.tables[self.region] = table
        if hooked:
            self.record(24)
            self.pte_write(True)
        elif table not in self.shadows or table in self.unsynced:
            self.counts[Event.STORE] += 1
        elif self.oos:
            self.counts[Event.HIDDEN_FAULT] += 1
            self.unsynced.add(table)
            self.last.pop(self.cpu, None)
        else:
            self.counts[Event.PTE_EMULATION] += 1
            self.pte_write(True)
        (self.mapped.add if self.present else self.mapped.discard)(self.place)
        if table in self.unsynced or not self.present:
            self.shadows.get(table, set()).discard(self.place)
        if self.faults.get(self.cpu) == self.place and self.present:
            del self.faults[self.cpu]
            self.touch(table)

    def pte_write(self, leaf):
        """kvm_mmu_pte_write."""
        if self.table not in self.shadows:
            return
        table, count = self.last.get(self.cpu, (None, 0))
        count = count + 1 if table == self.table else 1
        self.last[self.cpu] = (self.table, count)
        if count >= 3:
            del self.shadows[self.table]
        elif leaf:
            shadow = self.shadows[self.table]
            (shadow.add if self.present else shadow.discard)(self.place)

    def forget(self, table):
        self.shadows.pop(table, None)
        self.unsynced.discard(table)

    def touch(self, table):
        if table < 0 or self.place in self.shadows.get(table, ()):
            return
        self.counts[Event.HIDDEN_FAULT] += 1
        self.last.pop(self.cpu, None)
        self.shadows.setdefault(table, set()).add(self.place)

    def record(self, size):
        """kvm_deferred_mmu_op."""
        queue = self.queues.setdefault(self.cpu, [])
        if self.cpu in self.lazy and sum(queue) + size > self.capacity:
            self.mmu_op()
        self.queues[self.cpu].append(size)
        if self.cpu not in self.lazy:
            self.mmu_op()

    def mmu_op(self):
        """kvm_mmu_op and kvm_pv_mmu_op: as many whole records as the host's buffer takes."""
        queue = self.queues.get(self.cpu, [])
        self.counts[Event.MMU_OP_RECORDS] += len(queue)
        while queue:
            taken = 0
            while queue and taken + queue[0] <= self.buffer:
                taken += queue.pop(0)
            self.counts[Event.MMU_OP] += 1
        self.queues[self.cpu] = []
