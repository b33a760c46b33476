"""A slow twin of soundness: memory as the kernel believes it to be, memory as it is, and queues.

It shares no code with the package beyond the vocabulary: entries are dictionaries, an update that
waits is a list element, and what a send would leave behind is found by sending a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Operations that read the entry which they change.
READING = {
    "PTE_GET_AND_CLEAR", "PTE_WRPROTECT", "PTE_CLEAR_YOUNG", "PTE_RMW", "MODIFY_PROT_START",
}  # fmt: skip


@dataclass
class Step:
    """One row: what it does to which entry, and what its mechanism means."""

    cpu: int = 0
    entry: object = None
    value: int = 0
    reads: bool = False
    read_back: bool = False
    walks: bool = False
    unlocks: bool = False
    loses_dirty: bool = False
    commits: bool = False  # end of a protection change
    how: frozenset = frozenset()  # words: now, waits, told, opens, closes, sends, apart, peeks


@dataclass
class TwoImages:
    """Replays steps; `lost` and `stale` are (row, older row), `apart` a row; None: never."""

    believed: dict = field(default_factory=dict)
    hardware: dict = field(default_factory=dict)
    queues: dict = field(default_factory=dict)  # cpu -> [(row, entry, value)]
    shadows: dict = field(default_factory=dict)  # the same for what a shadow is told
    open: set = field(default_factory=set)
    peeked: dict = field(default_factory=dict)
    lost: tuple | None = None
    stale: tuple | None = None
    apart: int | None = None

    def run(self, steps):
        for row, step in enumerate(steps):
            self.step(row, step)
        return self

    def waiting(self, queues, entry):
        return max((r for q in queues.values() for r, e, _ in q if e == entry), default=None)

    def notice(self, row, older):
        if self.stale is None and older is not None:
            self.stale = (row, older)

    def step(self, row, s):
        if s.entry is not None:
            one_access = s.commits and not self.peeked.get(s.entry)
            if "apart" in s.how and s.loses_dirty and not one_access and self.apart is None:
                self.apart = row
            self.peeked[s.entry] = "peeks" in s.how
            if s.reads:
                self.notice(row, self.waiting(self.queues, s.entry))
            if s.walks:  # another CPU may find an entry as it was before
                for queues in (self.queues, self.shadows):
                    mine = {s.cpu: queues.get(s.cpu, [])}
                    self.notice(row, self.waiting(mine, s.entry))
            self.change(row, s)
        if s.unlocks and self.queues.get(s.cpu):
            self.notice(row, self.queues[s.cpu][0][0])
        if "opens" in s.how:
            self.open.add(s.cpu)
        if {"closes", "sends"} & s.how:
            for _, entry, value in self.queues.pop(s.cpu, []):
                self.hardware[entry] = value
            self.shadows.pop(s.cpu, None)
        if "closes" in s.how:
            self.open.discard(s.cpu)

    def change(self, row, s):
        bracket = s.cpu in self.open
        if "waits" in s.how and bracket:
            if s.read_back:
                self.notice(row, row)
            self.believed[s.entry] = s.value
            self.queues.setdefault(s.cpu, []).append((row, s.entry, s.value))
        elif {"now", "waits"} & s.how:
            self.believed[s.entry] = self.hardware[s.entry] = s.value
            older = self.waiting(self.queues, s.entry)
            if older is not None and self.lost is None:
                after = dict(self.hardware)
                pending = sorted(u for q in self.queues.values() for u in q)
                after.update((e, v) for _, e, v in pending)
                if after[s.entry] != self.believed[s.entry]:
                    self.lost = (row, older)
        if "told" in s.how and bracket:
            self.shadows.setdefault(s.cpu, []).append((row, s.entry, s.value))
