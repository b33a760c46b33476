"""Random guests for property tests: small, but with every kind of operation in lawful order."""

from __future__ import annotations

import random

from pvmmu.guest.trace import Flag, Op, Platform, Provenance, Trace, TraceBuilder

_LEAF = (
    Op.SET_PTE, Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_CLEAR,
    Op.PTE_RMW,
)  # fmt: skip


class Guest:
    """Makes a trace step by step."""

    def __init__(self, seed: int, vcpus: int = 1) -> None:
        self.r, self.b, self.vcpus = random.Random(seed), TraceBuilder(), vcpus
        self.old = self.b.mm("older", older=True)
        self.spaces = {self.old: []}  # mm -> [(frame, va)] of PTE tables
        self.frame = 100
        self.lazy: set[int] = set()
        self.ready = [self.old]

    def add(self, op: Op, mm: int = -1, **kw: int) -> None:
        kw.setdefault("cpu", self.cpu)
        self.b.add(op, mm=mm, task=mm, **kw)

    def table(self, mm: int) -> None:
        """Three levels of new tables somewhere in an address space."""
        slot = self.r.randrange(128)
        va = slot << 39
        if any(v >> 39 == slot for _, v in self.spaces[mm]):
            return
        below = None
        for level, (alloc, store) in enumerate(
            ((Op.ALLOC_PUD, Op.SET_P4D), (Op.ALLOC_PMD, Op.SET_PUD), (Op.ALLOC_PTE, Op.SET_PMD))
        ):
            self.frame += 1
            self.add(alloc, mm, table=self.frame, va=va)
            upper = below if below is not None else 10 + mm
            index = slot if level == 0 else 0
            self.add(store, mm, table=upper, index=index, va=va, value=self.frame << 12 | 0x67)
            below = self.frame
        self.spaces[mm].append((below, va))

    def leaf(self, mm: int) -> None:
        """A run of like operations on consecutive entries."""
        if not self.spaces[mm]:
            return self.table(mm)
        frame, va = self.r.choice(self.spaces[mm])
        op, index = self.r.choice(_LEAF), self.r.randrange(500)
        current = int(Flag.CURRENT_MM) if self.r.random() < 0.7 else 0
        for i in range(self.r.choice((1, 1, 2, 5, 40))):
            at = (index + i) % 512
            self.add(
                op, mm, table=frame, index=at, va=va + (at << 12), value=self.r.choice((0, 0x5067)),
                flags=current,
            )  # fmt: skip
        return None

    def protect(self, mm: int) -> None:
        if self.spaces[mm]:
            frame, va = self.r.choice(self.spaces[mm])
            kw = {"table": frame, "index": 7, "va": va + (7 << 12)}
            self.add(Op.MODIFY_PROT_START, mm, **kw)
            self.add(Op.MODIFY_PROT_COMMIT, mm, value=0x5065, **kw)

    def fork(self) -> None:
        mm = self.b.mm("child")
        self.spaces[mm] = []
        self.add(Op.PGD_ALLOC, mm)
        for _ in range(self.r.randrange(3)):
            self.table(mm)
        for _ in range(self.r.randrange(4)):
            self.leaf(mm)
        self.add(self.r.choice((Op.DUP_MMAP, Op.ACTIVATE_MM)), mm)
        self.ready.append(mm)

    def switch(self, mm: int) -> None:
        if self.cpu in self.lazy:
            return
        self.add(Op.SWITCH_START)
        self.add(Op.LOAD_CR3, mm)
        self.add(Op.SWITCH_END)

    def die(self) -> None:
        young = [m for m in self.ready if m != self.old]
        if not young or self.lazy:
            return
        mm = self.r.choice(young)
        self.ready.remove(mm)
        self.add(Op.EXIT_MMAP, mm)
        for frame, va in sorted(self.spaces.pop(mm), key=lambda t: t[1]):
            for i in range(self.r.randrange(3)):
                self.add(
                    Op.PTE_GET_AND_CLEAR, mm, table=frame, index=i, va=va + (i << 12),
                    flags=int(Flag.FULLMM),
                )  # fmt: skip
            uppers = (
                (Op.SET_PMD, 0, frame - 1, Op.RELEASE_PTE, frame),
                (Op.SET_PUD, 0, frame - 2, Op.RELEASE_PMD, frame - 1),
                (Op.SET_P4D, va >> 39, 10 + mm, Op.RELEASE_PUD, frame - 2),
            )
            for store, index, upper, release, gone in uppers:
                self.add(store, mm, table=upper, index=index, va=va)
                self.add(release, mm, table=gone, va=va)
        if self.r.random() < 0.5:
            self.add(Op.LOAD_CR3, 0, flags=int(Flag.NATIVE_ONLY))
        self.add(Op.PGD_FREE, mm)

    def flush(self, mm: int) -> None:
        op = self.r.choice((Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS))
        if op == Op.FLUSH_OTHERS and self.vcpus > 1:
            self.add(op, mm, count=2, value=1)
            self.add(Op.SEND_IPI, mm, count=1, flags=int(Flag.NATIVE_ONLY))
            self.add(Op.FLUSH_ONE, mm, count=2, flags=int(Flag.NATIVE_ONLY))
        elif op != Op.FLUSH_OTHERS:
            self.add(op, mm)

    def bracket(self) -> None:
        if self.cpu in self.lazy:
            self.lazy.discard(self.cpu)
            self.add(Op.LAZY_LEAVE)
        else:
            self.lazy.add(self.cpu)
            self.add(Op.LAZY_ENTER)

    def trace(self, steps: int) -> Trace:
        """Make some steps and return the trace."""
        for _ in range(steps):
            self.cpu = self.r.randrange(self.vcpus)
            mm = self.r.choice(self.ready)
            step = self.r.choices(
                (self.leaf, self.table, self.protect, self.switch, self.flush, self.fault,
                 self.fork, self.die, self.bracket),
                (8, 2, 2, 2, 2, 2, 1, 1, 5),
            )[0]  # fmt: skip
            step() if step in (self.fork, self.die, self.bracket) else step(mm)
        for cpu in sorted(self.lazy):
            self.add(Op.LAZY_LEAVE, cpu=cpu)
        if not self.b._rows:
            self.cpu = 0
            self.add(Op.MARK)
        platform = Platform(guest="xen-pv", vcpus=self.vcpus)
        return self.b.build(Provenance("random", "6.1.0", "tests", platform))

    def fault(self, mm: int) -> None:
        va = self.r.choice([va for _, va in self.spaces[mm]] or [0])
        self.add(Op.FAULT, mm, va=va + 0x1000, value=6)
        self.add(Op.READ_CR2)


def random_trace(seed: int, steps: int = 40, vcpus: int = 1) -> Trace:
    """Return a random, valid trace."""
    return Guest(seed, vcpus).trace(steps)
