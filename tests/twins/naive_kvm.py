"""A slow twin of KVM's pv mmu: the twin of shadow mode, and a queue of things to do."""

from __future__ import annotations

from naive_shadow import NaiveShadow

from pvmmu.guest.trace import Op
from pvmmu.hooks import HookSet
from pvmmu.modes.events import Event

HOOK_OF = {
    Op.PTE_CLEAR: {"pte_clear"},
    Op.SET_PMD: {"set_pmd"},
    Op.SET_PUD: {"set_pud"},
    Op.SET_P4D: {"set_p4d"},
    Op.SET_PGD: {"set_p4d"},
}


class NaiveKvm(NaiveShadow):
    """arch/x86/kernel/kvm.c and kvm_pv_mmu_op of arch/x86/kvm/mmu.c, v2.6.27; one vCPU."""

    def __init__(self, trace, hooks, shadow="2.6.23", queue=1024, buffer=512):
        super().__init__(trace, HookSet(), f"kvm-{shadow}")
        self.have, self.size, self.buffer = set(hooks), queue, buffer
        self.waiting: list = []  # (bytes, what to do)
        self.in_bracket = False

    def step(self, op, row):
        have = self.have
        protect = "ptep_modify_prot" in have
        frame, index, value = row["table"], row["index"], row["value"]
        if op == Op.MODIFY_PROT_START and protect:
            return
        if self.is_told(op, protect):
            if frame >= 0 and index >= 0:
                self.record(24, lambda: self.written_by_host(frame, index, value))
        elif op.name.startswith("RELEASE") and op.name.lower().replace("p4d", "pud") in have:
            if frame >= 0:
                self.n[Event.MMU_OP] += 1
                self.n[Event.MMU_OP_RECORDS] += 1
                for page in list(self.of(frame)):
                    self.zap(page)
        elif op == Op.FLUSH_USER and "flush_tlb_user" in have:
            for _ in range(max(row["count"], 0)):
                self.record(8, self.flushed_by_host)
        elif op in (Op.LAZY_ENTER, Op.LAZY_RESUME):
            self.in_bracket = "lazy_mmu" in have
        elif op in (Op.LAZY_LEAVE, Op.LAZY_PAUSE):
            self.in_bracket = False
            self.mmu_op()
        else:
            super().step(op, row)

    def is_told(self, op, protect):
        if op == Op.SET_PTE or (op == Op.MODIFY_PROT_COMMIT and not protect):
            return bool({"set_pte", "set_pte_at", "set_ptes"} & self.have)
        if op == Op.MODIFY_PROT_COMMIT:
            return True
        return bool(HOOK_OF.get(op, set()) & self.have)

    def record(self, size, work):
        """kvm_deferred_mmu_op."""
        if self.in_bracket and sum(n for n, _ in self.waiting) + size > self.size:
            self.mmu_op()
        self.waiting.append((size, work))
        if not self.in_bracket:
            self.mmu_op()

    def mmu_op(self):
        """kvm_mmu_op and kvm_pv_mmu_op: as many whole records as the host's buffer takes."""
        self.n[Event.MMU_OP_RECORDS] += len(self.waiting)
        while self.waiting:
            taken = 0
            self.n[Event.MMU_OP] += 1
            while self.waiting and taken + self.waiting[0][0] <= self.buffer:
                size, work = self.waiting.pop(0)
                taken += size
                work()

    def written_by_host(self, frame, index, value):
        """kvm_pv_mmu_write."""
        self.memory.setdefault(frame, {})[index] = value
        if self.of(frame):
            self.apply(frame, index)

    def flushed_by_host(self):
        """kvm_pv_mmu_flush_tlb."""
        self.n[Event.TLB_FLUSH] += 1
        self.flush()
