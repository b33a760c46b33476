"""Random guests that use what they map: tables come and go in frames that are used again."""

from __future__ import annotations

import random

from pvmmu.guest.trace import Op, Platform, Provenance, Trace, TraceBuilder

P, RW, US, A, D = 1, 2, 4, 32, 64
SHIFTS = {1: 12, 2: 21, 3: 30, 4: 39}
_STORES = {1: Op.SET_PTE, 2: Op.SET_PMD, 3: Op.SET_PUD, 4: Op.SET_P4D}
_ADDRESSES = tuple(
    (a << 39) + (b << 30) + (c << 21) + (d << 12)
    for a in (0, 255) for b in (0, 7) for c in (1, 2) for d in (3, 4, 9, 40, 200)
)  # fmt: skip


class Guest:
    """Address spaces with tables of their own; frames of freed tables are taken first."""

    def __init__(self, seed: int) -> None:
        self.r, self.b = random.Random(seed), TraceBuilder()
        self.free = list(range(40, 20, -1))
        self.memory: dict[int, dict[int, int]] = {}
        self.roots: dict[int, int] = {}
        self.running = 0

    def add(self, op: Op, **kw: int) -> None:
        self.b.add(op, **kw)

    def take(self, mm: int, level: int, va: int) -> int:
        frame = self.free.pop()
        self.add(Op.ZERO_TABLE, mm=mm, table=frame)
        self.add((Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD)[level - 1], mm=mm, table=frame, va=va)
        self.memory[frame] = {}
        return frame

    def release(self, mm: int, level: int, frame: int, va: int) -> None:
        op = (Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD)[level - 1]
        self.add(op, mm=mm, table=frame, va=va)
        self.free.append(frame)

    def put(
        self, mm: int, level: int, frame: int, va: int, value: int, op: Op | None = None
    ) -> None:
        index = va >> SHIFTS[level] & 511
        self.memory[frame][index] = value
        self.add(op or _STORES[level], mm=mm, table=frame, index=index, va=va, value=value)

    def path(self, mm: int, va: int, make: bool) -> list[int]:
        """Tables from the root to level 1, made as needed (else as far as they go)."""
        frames = [self.roots[mm]]
        for level in (4, 3, 2):
            value = self.memory[frames[-1]].get(va >> SHIFTS[level] & 511, 0)
            if not value & P:
                if not make or not self.free:
                    break
                below = self.take(mm, level - 1, va)
                value = below << 12 | 0x67
                self.put(mm, level, frames[-1], va, value)
            frames.append(value >> 12 & 0xFFFFFFF)
        return frames

    # ------------------------------------------------------------------ steps
    def birth(self) -> None:
        if len(self.roots) < 3 and len(self.free) > 10:
            frame = self.free.pop()
            mm = self.b.mm("process", pgd=frame)
            self.memory[frame], self.roots[mm] = {}, frame
            self.add(Op.PGD_ALLOC, mm=mm)

    def switch(self) -> None:
        if self.roots:
            self.running = self.r.choice(list(self.roots))
            self.add(Op.LOAD_CR3, mm=self.running)

    def touch(self) -> None:
        """Access an address; the kernel maps it, or lets it be written, if it must."""
        mm, va, write = self.running, self.r.choice(_ADDRESSES), self.r.random() < 0.6
        if mm not in self.roots:
            return
        tables = self.path(mm, va, make=False)
        value = self.memory[tables[-1]].get(va >> 12 & 511, 0) if len(tables) == 4 else 0
        if not value & P or (write and not value & RW):
            self.add(Op.FAULT, mm=mm, va=va, value=6)
            tables = self.path(mm, va, make=True)
            if len(tables) < 4:
                return
            value = self.r.randrange(500, 520) << 12 | P | US | A
            value |= RW | D if write or self.r.random() < 0.3 else 0
            value &= ~A if self.r.random() < 0.2 else -1
            self.put(mm, 1, tables[3], va, value)
        self.add(Op.TOUCH, mm=mm, va=va, value=int(write))

    def change(self) -> None:
        """Clear or protect an entry; perhaps flush."""
        mm = self.r.choice(list(self.roots)) if self.roots else 0
        va = self.r.choice(_ADDRESSES)
        tables = self.path(mm, va, make=False) if mm else []
        if len(tables) < 4:
            return
        old = self.memory[tables[3]].get(va >> 12 & 511, 0)
        op = self.r.choice((Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.MODIFY_PROT_COMMIT))
        new = {Op.PTE_GET_AND_CLEAR: 0, Op.PTE_WRPROTECT: old & ~RW}.get(
            op, old | (RW | D if old & P else 0)
        )
        self.put(mm, 1, tables[3], va, new, op)
        if self.r.random() < 0.7:
            flush = self.r.choice((Op.FLUSH_ONE, Op.FLUSH_ONE, Op.FLUSH_USER))
            self.add(flush, mm=mm, va=va if flush == Op.FLUSH_ONE else 0)

    def unmap(self) -> None:
        """Free a level-1 table, and those above that only it used."""
        mm = self.r.choice(list(self.roots)) if self.roots else 0
        va = self.r.choice(_ADDRESSES)
        tables = self.path(mm, va, make=False) if mm else []
        for level in (2, 3, 4):
            if len(tables) < 4 or (level > 2 and any(self.memory[tables[5 - level]].values())):
                return
            self.put(mm, level, tables[4 - level], va, 0)
            self.release(mm, level - 1, tables[5 - level], va)

    def death(self) -> None:
        mm = self.r.choice(list(self.roots)) if self.roots else 0
        if not mm or self.r.random() < 0.6:
            return
        self.add(Op.EXIT_MMAP, mm=mm)
        for va in _ADDRESSES:
            tables = self.path(mm, va, make=False)
            for level in (2, 3, 4):
                if len(tables) < 4 or (level > 2 and any(self.memory[tables[5 - level]].values())):
                    break
                self.put(mm, level, tables[4 - level], va, 0)
                self.release(mm, level - 1, tables[5 - level], va)
        if self.running == mm:
            self.add(Op.LOAD_CR3, mm=0)
            self.running = 0
        self.free.append(self.roots.pop(mm))
        self.add(Op.PGD_FREE, mm=mm)

    def trace(self, steps: int) -> Trace:
        """Make some steps and return the trace."""
        self.birth()
        self.switch()
        for _ in range(steps):
            self.r.choices(
                (self.touch, self.change, self.unmap, self.switch, self.birth, self.death),
                (12, 5, 2, 2, 1, 1),
            )[0]()
        self.add(Op.MARK)
        self.add(Op.TOUCH, mm=self.running, va=0x1000)
        return self.b.build(Provenance("random", "6.1.0", "tests", Platform(guest="hvm")))


def random_shadow_trace(seed: int, steps: int = 60) -> Trace:
    """Return a random, valid trace with touches."""
    return Guest(seed).trace(steps)
