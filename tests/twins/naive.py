"""Slow, obviously right twins of the modes, written from the kernels' sources, not from the code.

Each operation is a method that does what the C function does, on plain Python objects: a list of
pending multicall entries, a set of pinned address spaces, a dictionary of table pages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pvmmu.guest.trace import Flag, Op, Trace
from pvmmu.modes.events import Event


class CannotRun(Exception):
    """The design breaks."""


@dataclass
class Cpu:
    """xen_mc: the multicall buffer of a CPU, and what its brackets and CR3 are."""

    entries: list[list] = field(default_factory=list)  # [hypercall, requests]
    argument_bytes: int = 0
    callbacks: int = 0
    lazy_mmu: bool = False
    lazy_cpu: bool = False
    cr3: int = -1


class NaiveXen:
    """A Linux guest on Xen.

    arch/x86/xen/mmu_pv.c and multicalls.c (6.1), mmu.c (2.6.27), arch/i386/xen/mmu.c (2.6.23); and
    XenLinux, linux-2.6-xen-sparse of Xen: 8a181133e2 (2005), 6b5e36a305^ (2006), 6b5e36a305 (2007).
    """

    def __init__(self, trace: Trace, hooks, backend="6.1", stores="emulate", without="birth"):
        self.trace, self.hooks, self.stores = trace, set(hooks), stores
        self.backend = backend
        self.sparse = backend in ("2005", "2006", "2007")  # XenLinux
        self.old = backend in ("2.6.23", "2.6.27")  # multicalls.c without the single-call bypass
        self.levels = trace.platform.levels
        self.roots = 2 if self.levels == 4 else 1
        self.without = without
        self.counts: Counter[Event] = Counter()
        self.calls: list[tuple[int, Event, int]] = []
        self.cpus = [Cpu() for _ in range(trace.platform.vcpus)]
        self.pinned = {m for m, mm in enumerate(trace.mms) if mm.older}
        self.tables: dict[int, dict[int, int]] = {}  # mm -> {(va, level)}
        self.writable: dict[str, tuple] = {}
        self.cpu = 0
        self.row = -1
        self.late = {"activate_mm", "dup_mmap"} <= self.hooks
        if "pte_val" not in self.hooks:
            raise CannotRun

    def run(self):
        for row in range(len(self.trace)):
            self.row = row
            self.step()
        return self.counts

    def col(self, name):
        return int(self.trace[name][self.row])

    def step(self):
        self.cpu = self.col("cpu")
        op, flags = Op(self.col("op")), self.col("flags")
        behind = bool(flags & Flag.NATIVE_ONLY)
        if behind and op == Op.LOAD_CR3 and "exit_mmap" in self.hooks:
            return
        if self.follows_establish(op):
            return
        if behind and op != Op.LOAD_CR3 and "flush_tlb_multi" in self.hooks:
            return
        name = op.name.lower()
        if op in (Op.SET_PMD, Op.SET_PUD, Op.SET_P4D):
            self.set_upper(op)
        elif name.startswith("alloc_"):
            self.alloc(op)
        elif name.startswith("release_"):
            self.release(op)
        elif hasattr(self, name):
            getattr(self, name)()

    def follows_establish(self, op):
        """ptep_establish: the flush is part of the hypercall before (UVMF_INVLPG|UVMF_MULTI)."""
        if not self.sparse:
            return False
        r = self.row
        if op not in (Op.FLUSH_ONE, Op.FLUSH_OTHERS, Op.SEND_IPI):
            return False
        while r > 0:
            r -= 1
            before = Op(self.trace["op"][r])
            flush = (Op.FLUSH_ONE, Op.FLUSH_OTHERS, Op.SEND_IPI, Op.FLUSH_RANGE)
            if self.trace["cpu"][r] == self.trace["cpu"][self.row] and before not in flush:
                return before == Op.PTE_RMW and bool(self.trace["flags"][r] & Flag.CURRENT_MM)
        return False

    # ---------------------------------------------------------------- multicalls.c
    def hypercall(self, event, requests=1):
        self.close_writable()
        self.counts[event] += 1
        self.calls.append((self.cpu, event, 1))
        if event in (Event.MMU_UPDATE, Event.MMUEXT_OP):
            self.counts[Event(event + 1)] += requests
            self.calls.append((self.cpu, Event(event + 1), requests))

    def mc_flush(self):
        c = self.cpus[self.cpu]
        if len(c.entries) == 1 and not self.old:
            self.hypercall(*c.entries[0])
        elif c.entries:
            self.close_writable()
            self.note(Event.MULTICALL, 1)
            self.note(Event.MULTICALL_SUBCALLS, len(c.entries))
            for call, requests in c.entries:
                if call == Event.UPDATE_VA_MAPPING:
                    self.note(Event.SUB_UPDATE_VA_MAPPING, 1)
                elif call == Event.MMU_UPDATE:
                    self.note(Event.SUB_MMU_UPDATE, 1)
                    self.note(Event.SUB_MMU_UPDATE_REQUESTS, requests)
                else:
                    self.note(Event.SUB_MMUEXT_OP, 1)
                    self.note(Event.SUB_MMUEXT_OP_REQUESTS, requests)
        c.entries, c.argument_bytes, c.callbacks = [], 0, 0

    def note(self, event, n):
        self.counts[event] += n
        self.calls.append((self.cpu, event, n))

    def full(self, nbytes):
        c = self.cpus[self.cpu]
        if self.old:
            return c.argument_bytes + nbytes > 512
        return c.argument_bytes + nbytes >= 512

    def mc_entry(self, call, nbytes):
        c = self.cpus[self.cpu]
        if len(c.entries) == 32 or self.full(nbytes):
            self.mc_flush()
        c.entries.append([call, 1])
        c.argument_bytes += nbytes

    def mc_extend(self, call, nbytes):
        c = self.cpus[self.cpu]
        if c.entries and c.entries[-1][0] == call and not self.full(nbytes):
            c.entries[-1][1] += 1
            c.argument_bytes += nbytes
        else:
            self.mc_entry(call, nbytes)

    def mc_callback(self):
        if self.cpus[self.cpu].callbacks == 32:
            self.mc_flush()
        self.cpus[self.cpu].callbacks += 1

    def mc_issue(self, waits):
        if not waits:
            self.mc_flush()

    # ---------------------------------------------------------------- entries
    def is_typed(self):
        mm = self.col("mm")
        return mm < 0 or mm in self.pinned

    def count(self):
        return 1

    def trap(self, stores=1):
        if self.stores == "refuse":
            raise CannotRun
        if self.stores == "batched" and len(self.cpus) == 1 and self.write_batched():
            return
        self.counts[Event.PTE_EMULATION] += stores

    def halves(self):
        """Stores of set_pte and pte_clear, ptep_get_and_clear: pgtable-3level.h for PAE."""
        op = Op(self.col("op"))
        if self.levels != 3:
            return 1
        if op in (Op.PTE_GET_AND_CLEAR, Op.MODIFY_PROT_START):
            return 1 if self.backend == "2007" else 2
        return 2 if op in (Op.SET_PTE, Op.PTE_CLEAR, Op.MODIFY_PROT_COMMIT) else 1

    def update(self, in_range_hook=None):
        """One mmu_update request for a leaf entry."""
        c = self.cpus[self.cpu]
        if in_range_hook in self.hooks:
            self.request()
            self.mc_issue(c.lazy_mmu or not self.last_of_run())
        elif c.lazy_mmu:
            self.request()
        else:
            self.hypercall(Event.MMU_UPDATE)

    def request(self):
        """xen_mc_extend_args came in 2.6.27."""
        (self.mc_entry if self.backend == "2.6.23" else self.mc_extend)(Event.MMU_UPDATE, 16)

    def last_of_run(self):
        """No later operation of this kind goes on with the next entry of the same table."""
        t, r = self.trace, self.row
        for n in range(r + 1, len(t)):
            if t["cpu"][n] != t["cpu"][r]:
                continue
            op = Op(t["op"][n])
            if op == t["op"][r]:
                return not (t["table"][n] == t["table"][r] and t["index"][n] == t["index"][r] + 1)
            if op > Op.SET_PGD:
                return True
        return True

    def is_mine(self):
        return bool(self.col("flags") & Flag.CURRENT_MM) or self.col("mm") == 0

    def va_mapping(self):
        """HYPERVISOR_update_va_mapping, or in a bracket its multicall entry."""
        if self.cpus[self.cpu].lazy_mmu:
            self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
        else:
            self.hypercall(Event.UPDATE_VA_MAPPING)

    def set_pte_at(self, plain=Event.STORE):
        if self.is_mine():
            self.va_mapping()
        else:
            self.plain_or_trap(plain)

    def set_pte(self, in_range="set_ptes"):
        if self.backend != "6.1":
            if "set_pte_at" in self.hooks:
                self.set_pte_at()
                return
            if "set_ptes" in self.hooks and self.is_typed():
                self.update(in_range)
                return
        elif self.hooks & {"set_pte", "set_pte_at", "set_ptes"}:
            self.update(in_range)
            return
        self.plain_or_trap(Event.STORE)

    def plain_or_trap(self, event):
        if self.is_typed():
            self.trap(self.halves())
        else:
            self.counts[event] += 1

    def rmw(self, names, in_range=None):
        if self.is_typed() and self.hooks & set(names):
            self.update(in_range)
        else:
            self.plain_or_trap(Event.LOCKED)

    def pte_get_and_clear(self, in_range="get_and_clear_ptes"):
        self.rmw(("ptep_get_and_clear", "get_and_clear_ptes"), in_range)

    def pte_wrprotect(self):
        if self.backend == "2007" and "ptep_set_wrprotect" in self.hooks:
            self.set_pte_at(Event.LOCKED)
        else:
            self.rmw(("ptep_set_wrprotect", "wrprotect_ptes"), "wrprotect_ptes")

    def pte_clear_young(self):
        if self.backend == "2007" and "ptep_test_and_clear_young" in self.hooks:
            self.set_pte_at(Event.LOCKED)
        else:
            self.rmw(("ptep_test_and_clear_young",))

    def pte_rmw(self):
        if not self.sparse:
            self.rmw(())
        elif self.is_mine():
            self.va_mapping()
        else:
            self.update()

    def pte_clear(self):
        hooked = "pte_clear" in self.hooks
        if hooked and self.sparse and not (self.backend == "2006" and self.levels == 3):
            self.set_pte_at()
        elif self.is_typed() and hooked and self.backend == "6.1":
            self.update()
        else:
            self.plain_or_trap(Event.STORE)

    def modify_prot_start(self):
        if "ptep_modify_prot" not in self.hooks:
            self.pte_get_and_clear(in_range=None)

    def modify_prot_commit(self):
        if "ptep_modify_prot" in self.hooks:
            self.update()
        else:
            self.set_pte(in_range=None)

    def set_upper(self, op):
        mm, level = self.col("mm"), {Op.SET_PMD: 2, Op.SET_PUD: 3, Op.SET_P4D: 4}[op]
        key = (self.col("va"), level - 1)
        tables = self.tables.setdefault(mm, {})
        if self.col("value") & 1:
            tables[key] = True
        else:
            tables.pop(key, None)
        known, present = (self.col("flags") & f for f in (Flag.OLD_KNOWN, Flag.OLD_PRESENT))
        frees = present if known else not self.col("value") & 1
        hooked = op.name.lower() in self.hooks
        by_call = hooked and (self.backend == "2.6.23" or (self.sparse and frees))
        if not self.is_typed() and not by_call:
            self.counts[Event.STORE] += 1
            return
        if not hooked:
            raise CannotRun
        for _ in range(2 if op == Op.SET_P4D else 1):
            self.request()
            if self.sparse:  # xen_l2_entry_update and kin
                self.mc_issue(self.cpus[self.cpu].lazy_mmu)
            self.counts[Event.CONTINUATION] += bool(frees) and self.backend == "6.1"
        self.mc_issue(self.cpus[self.cpu].lazy_mmu)

    # ---------------------------------------------------------------- table pages
    def alloc(self, op):
        if not self.is_typed():
            return
        if op.name.lower().replace("p4d", "pud") not in self.hooks:
            raise CannotRun
        new = not self.col("flags") & Flag.ALREADY_TABLE
        pin = op == Op.ALLOC_PTE and new and self.backend in ("2.6.27", "6.1")
        if self.by_store():
            self.make_readonly(self.col("table"))
            if new:
                self.hypercall(Event.MMUEXT_OP)
            return
        if self.old or self.sparse:
            self.hypercall(Event.UPDATE_VA_MAPPING)
            if pin:
                self.hypercall(Event.MMUEXT_OP)
            return
        self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
        if pin:
            self.mc_entry(Event.MMUEXT_OP, 24)
        self.mc_issue(self.cpus[self.cpu].lazy_mmu)

    def release(self, op):
        if not self.is_typed():
            return
        if op.name.lower().replace("p4d", "pud") not in self.hooks:
            raise CannotRun
        pin = op == Op.RELEASE_PTE and self.backend in ("2.6.27", "6.1")
        if self.by_store():
            if not self.col("flags") & Flag.ALREADY_TABLE:
                self.hypercall(Event.MMUEXT_OP)
            self.make_readonly(self.col("table"))
            return
        if self.old or self.sparse:
            if pin:
                self.hypercall(Event.MMUEXT_OP)
            self.hypercall(Event.UPDATE_VA_MAPPING)
            return
        if pin:
            self.mc_entry(Event.MMUEXT_OP, 24)
        self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
        self.mc_issue(self.cpus[self.cpu].lazy_mmu)

    def by_store(self):
        """make_page_readonly was a set_pte on the kernel's own entry until late pin came.

        PAE is younger than late pin on i386 (Xen 0ea8f12a67, 2005-07-11).
        """
        early = not self.late and self.without == "birth" and self.stores != "refuse"
        return self.backend == "2005" and early and self.levels != 3

    def make_readonly(self, frame):
        """A trapped store to the kernel's page table that maps a frame."""
        n = 1024 if self.levels == 2 else 512
        where = ("kernel", frame // n, frame % n) if frame >= 0 else None
        if self.stores == "batched" and len(self.cpus) == 1 and where and self.write_kernel(where):
            return
        self.counts[Event.PTE_EMULATION] += 1

    def write_kernel(self, where):
        return self.write_page(where[:2], where[2], "active", 0, 0)

    # ---------------------------------------------------------------- address spaces
    def walk(self):
        order = sorted(self.tables.get(self.col("mm"), ()), key=lambda k: (k[0], -k[1]))
        pages = [level for _, level in order]
        return [4, *pages] if self.backend == "2.6.27" else [*pages, 4]

    def do_pin(self):
        (self.mc_entry if self.old else self.mc_extend)(Event.MMUEXT_OP, 24)

    def pin(self, pages):
        self.pinned.add(self.col("mm"))
        if self.sparse:
            self.pin_by_calls(pages)
            return
        for level in pages:
            self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
            if level == 1 and self.backend != "2.6.23":
                self.do_pin()
                self.mc_callback()
        self.do_pin()
        if self.roots == 2:  # the user's root
            self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
            self.do_pin()
        self.mc_flush()

    def pin_by_calls(self, pages):
        """mm_pin of 2005: mm_walk, the root (and the user's), xen_pgd_pin."""
        for _ in range(len(pages) - 1 + self.roots):
            self.hypercall(Event.UPDATE_VA_MAPPING)
        for _ in range(self.roots):
            self.hypercall(Event.MMUEXT_OP)
        self.mc_flush()

    def unpin(self, pages):
        self.pinned.discard(self.col("mm"))
        if self.sparse:
            for _ in range(self.roots):
                self.hypercall(Event.MMUEXT_OP)
            for _ in range(len(pages) - 1 + self.roots):
                self.hypercall(Event.UPDATE_VA_MAPPING)
            if self.backend == "2005":
                self.hypercall(Event.MMUEXT_OP)  # xen_tlb_flush
            self.mc_flush()
            return
        self.do_pin()
        if self.roots == 2:
            self.do_pin()
            self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
        for level in pages:
            leaf = level == 1 and self.backend != "2.6.23"
            if leaf:
                self.do_pin()
            self.mc_entry(Event.UPDATE_VA_MAPPING, 0)
            if leaf:
                self.mc_callback()
        self.mc_flush()

    def root_frame(self):
        table = self.col("table")
        return table if table >= 0 else self.trace.mms[self.col("mm")].pgd

    def pgd_alloc(self):
        if "pgd_alloc" not in self.hooks:
            raise CannotRun
        if self.by_store():
            self.pinned.add(self.col("mm"))
            self.root_pages()
            for _ in range(self.roots):
                self.hypercall(Event.MMUEXT_OP)
        elif not self.late and self.without == "birth":
            self.pin([4])

    def ready(self):
        if self.late:
            self.pin(self.walk())

    dup_mmap = activate_mm = ready

    def exit_mmap(self):
        mm = self.col("mm")
        if "exit_mmap" in self.hooks and mm in self.pinned:
            here = self.cpu
            n = len(self.cpus)
            for self.cpu in [(here + i) % n for i in range(n)]:
                if self.cpus[self.cpu].cr3 == mm:
                    if self.cpu != here:
                        self.counts[Event.EVENT_CHANNEL_OP] += 1
                    self.new_base()
                    self.mc_flush()
                    self.cpus[self.cpu].cr3 = 0
            self.cpu = here
            self.unpin(self.walk())

    def pgd_free(self):
        if self.col("mm") in self.pinned:
            if "pgd_alloc" not in self.hooks:
                raise CannotRun
            here = self.cpu
            n = len(self.cpus)
            for self.cpu in [(here + i) % n for i in range(n)]:
                if self.cpus[self.cpu].cr3 == self.col("mm"):
                    if self.cpu != here:
                        self.counts[Event.EVENT_CHANNEL_OP] += 1
                    self.new_base()
                    self.mc_flush()
                    self.cpus[self.cpu].cr3 = 0
            self.cpu = here
            if self.by_store():
                self.pinned.discard(self.col("mm"))
                for _ in range(self.roots):
                    self.hypercall(Event.MMUEXT_OP)
                self.root_pages()
            else:
                self.unpin(self.walk())  # with PAE the PMD tables go with the root

    def root_pages(self):
        """The user's root lies behind the kernel's; both are mapped by one table, as a rule."""
        frame, n = self.root_frame(), 1024 if self.levels == 2 else 512
        for i in range(self.roots):
            if frame < 0:
                self.make_readonly(-1)
            elif self.stores == "batched" and len(self.cpus) == 1:
                self.write_kernel(("kernel", frame // n, frame % n + i))
            else:
                self.make_readonly(frame)

    def new_base(self):
        self.do_pin()
        self.mc_callback()
        if self.roots == 2:
            self.do_pin()

    def load_cr3(self):
        if "write_cr3" not in self.hooks:
            raise CannotRun
        mm = self.col("mm")
        if mm not in self.pinned and mm > 0 and not self.late and self.without == "cr3":
            self.pin(self.walk())
        self.new_base()
        self.mc_issue(self.cpus[self.cpu].lazy_cpu)
        self.cpus[self.cpu].cr3 = mm

    # ---------------------------------------------------------------- flushes, brackets, faults
    def privileged(self, hook, accesses=1):
        if hook in self.hooks:
            return False
        self.close_writable()
        self.counts[Event.PRIVOP_EMULATION] += accesses * max(1, self.col("count"))
        return True

    def flush(self, hook, nbytes=24):
        times = max(1, self.col("count")) if hook != "flush_tlb_multi" else 1
        for _ in range(times):
            self.mc_entry(Event.MMUEXT_OP, nbytes)
            self.mc_issue(self.cpus[self.cpu].lazy_mmu)

    def flush_one(self):
        if "flush_tlb_one_user" not in self.hooks:
            raise CannotRun
        self.flush("flush_tlb_one_user")

    def flush_user(self):
        if not self.privileged("flush_tlb_user", 2):
            self.flush("flush_tlb_user")

    def flush_kernel(self):
        if not self.privileged("flush_tlb_kernel", 2):
            self.flush("flush_tlb_kernel")

    def flush_others(self):
        if "flush_tlb_multi" in self.hooks:
            self.flush("flush_tlb_multi", 32)

    def send_ipi(self):
        self.counts[Event.EVENT_CHANNEL_OP] += self.col("count")

    def read_cr2(self):
        self.privileged("read_cr2")

    def read_cr3(self):
        self.privileged("read_cr3")

    def fault(self):
        hole = self.writable.get("active")
        if hole and hole[1] == self.col("va") >> 21 and hole[2] == self.col("mm"):
            self.counts[Event.PTWR_HOLE_FAULT] += 1
            self.close_one("active")
        self.counts[Event.PAGE_FAULT] += 1

    def lazy_enter(self):
        self.cpus[self.cpu].lazy_mmu = "lazy_mmu" in self.hooks

    lazy_resume = lazy_enter

    def lazy_leave(self):
        if "lazy_mmu" in self.hooks:
            self.cpus[self.cpu].lazy_mmu = False
            self.mc_flush()

    lazy_pause = lazy_leave

    def switch_start(self):
        self.cpus[self.cpu].lazy_cpu = "context_switch" in self.hooks

    def switch_end(self):
        if "context_switch" in self.hooks:
            self.cpus[self.cpu].lazy_cpu = False
            self.mc_flush()

    # ---------------------------------------------------------------- batched writable page tables
    def write_batched(self):
        table, index, mm = self.col("table"), self.col("index"), self.col("mm")
        if table < 0 or index < 0:
            return False
        which = "active" if self.cpus[self.cpu].cr3 == mm else "inactive"
        return self.write_page(table, index, which, self.col("va") >> 21, mm)

    def write_page(self, table, index, which, region, mm):
        for page in self.writable.values():
            if page[0] == table:
                page[3].add(index)
                self.counts[Event.STORE] += 1
                return True
        self.close_one(which)
        self.writable[which] = (table, region, mm, {index})
        self.counts[Event.PTWR_OPEN] += 1
        self.counts[Event.STORE] += 1
        return True

    def close_one(self, which):
        page = self.writable.pop(which, None)
        if page:
            self.counts[Event.PTWR_FLUSH] += 1
            self.counts[Event.PTWR_ENTRIES] += len(page[3])

    def close_writable(self):
        self.close_one("active")
        self.close_one("inactive")


def vmi_calls(trace: Trace, hooks, capacity: int) -> tuple[int, int]:
    """Return (calls, updates) of a VMI guest: arch/i386/kernel/vmi.c of v2.6.22."""
    hooks, calls, updates = set(hooks), 0, 0
    queue, lazy, switching = Counter(), set(), set()

    def enter(cpu):
        nonlocal calls
        if queue[cpu]:
            calls += 1
            queue[cpu] = 0

    tells = {
        Op.SET_PTE: {"set_pte", "set_pte_at", "set_ptes"},
        Op.SET_PMD: {"set_pmd"}, Op.SET_PUD: {"set_pud"}, Op.SET_P4D: {"set_p4d", "set_pud"},
        Op.PTE_GET_AND_CLEAR: {"pte_update", "ptep_get_and_clear", "get_and_clear_ptes"},
        Op.PTE_WRPROTECT: {"pte_update", "ptep_set_wrprotect", "wrprotect_ptes"},
        Op.PTE_CLEAR_YOUNG: {"pte_update", "ptep_test_and_clear_young"},
        Op.PTE_CLEAR: {"pte_update", "pte_clear"}, Op.PTE_RMW: {"pte_update"},
    }  # fmt: skip
    pages = {
        Op.ALLOC_PTE: {"alloc_pte"}, Op.ALLOC_PMD: {"alloc_pmd"}, Op.ALLOC_PUD: {"alloc_pud"},
        Op.RELEASE_PTE: {"release_pte"}, Op.RELEASE_PMD: {"release_pmd"},
        Op.RELEASE_PUD: {"release_pud"}, Op.PGD_ALLOC: {"alloc_pud", "pgd_alloc"},
        Op.PGD_FREE: {"release_pud", "pgd_alloc"},
    }  # fmt: skip
    flushes = {
        Op.FLUSH_ONE: "flush_tlb_one_user", Op.FLUSH_USER: "flush_tlb_user",
        Op.FLUSH_KERNEL: "flush_tlb_kernel",
    }  # fmt: skip
    for row in range(len(trace)):
        op, cpu = Op(trace["op"][row]), int(trace["cpu"][row])
        flags, n = int(trace["flags"][row]), max(0, int(trace["count"][row]))
        changes = [op]
        if op == Op.MODIFY_PROT_START:
            changes = [] if "ptep_modify_prot" in hooks else [Op.PTE_GET_AND_CLEAR]
        if op == Op.MODIFY_PROT_COMMIT:
            changes = ["commit"] if "ptep_modify_prot" in hooks else [Op.SET_PTE]
        upgrade = op in (Op.SET_PTE, Op.PTE_RMW) and vmi_may_defer(trace, row)
        if upgrade and "pte_update" in hooks:
            updates += 1
            queue[cpu] += 1
            changes = []
        elif op == Op.PTE_RMW and not flags & Flag.FULLMM and "pte_update" not in hooks:
            raise CannotRun
        in_place = op in (Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_RMW)
        if in_place and flags & Flag.FULLMM:
            changes = []
        for change in changes:
            if change == "commit" or change in tells:
                if change != "commit" and not hooks & tells[change]:
                    raise CannotRun
                updates += 1
                queue[cpu] += 1
                if cpu not in lazy or queue[cpu] >= capacity:
                    enter(cpu)
        if op in pages:
            if not hooks & pages[op]:
                raise CannotRun
            queue[cpu] += 1
            enter(cpu)
        elif (op in flushes and flushes[op] in hooks) or op == Op.SEND_IPI:
            for _ in range(n):
                queue[cpu] += 1
                enter(cpu)
        elif op == Op.LOAD_CR3 and "write_cr3" in hooks:
            queue[cpu] += 1
            if cpu not in switching:
                enter(cpu)
        elif op in (Op.LAZY_ENTER, Op.LAZY_RESUME) and "lazy_mmu" in hooks:
            lazy.add(cpu)
        elif op in (Op.LAZY_LEAVE, Op.LAZY_PAUSE) and "lazy_mmu" in hooks:
            lazy.discard(cpu)
            enter(cpu)
        elif op == Op.SWITCH_START and "context_switch" in hooks:
            switching.add(cpu)
        elif op == Op.SWITCH_END and "context_switch" in hooks:
            switching.discard(cpu)
            enter(cpu)
    return calls, updates


def vmi_may_defer(trace: Trace, row: int) -> bool:
    """An upgrade of a present entry of the running address space, and a flush comes next."""
    wanted = Flag.OLD_PRESENT | Flag.CURRENT_MM
    if int(trace["flags"][row]) & wanted != wanted:
        return False
    for n in range(row + 1, len(trace)):
        op = Op(trace["op"][n])
        if trace["cpu"][n] == trace["cpu"][row] and op != Op.FLUSH_RANGE:
            return op in (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
    return False
