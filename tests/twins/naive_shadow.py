"""A slow twin of shadow mode: shadow pages are objects, tables are dicts, nothing is numbered.

Written from KVM's and Xen's code, not from the kernels: sets of parents instead of the one linked
last, a walk of the whole tree where the kernels climb, recursion where they keep a stack.
"""

from __future__ import annotations

from collections import Counter

from pvmmu.guest.trace import Op
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.mechanisms import QUEUE, Mechanism
from pvmmu.modes.shadow.rules import (
    EXIT_REGIONS,
    IMPLEMENTATIONS,
    REGIONS,
    USER_REGIONS,
    Flood,
    Links,
)

P, RW, A, D = 1, 2, 32, 64
FRAME = 0x000F_FFFF_FFFF_F000
SHIFTS = {1: 12, 2: 21, 3: 30, 4: 39}


class Page:
    """A shadow page. ``entries`` of level 1 are (frame, writable, used), of others pages."""

    def __init__(self, table, level, born):
        self.table, self.level, self.born = table, level, born
        self.entries, self.parents = {}, set()
        self.unsync = self.invalid = self.pinned = False
        self.flood = self.roots = 0

    def below(self):
        if self.level > 1:
            for child in self.entries.values():
                yield child
                yield from child.below()


class NaiveShadow:
    """Replays a trace that has touches, one vCPU, no page-table isolation but where `user` says."""

    def __init__(self, trace, hooks, code):
        self.t, self.rules = trace, IMPLEMENTATIONS[code]
        self.table = Shadow().mechanism_table(trace, hooks)[0]
        self.n = Counter()
        self.memory, self.shadows, self.read_only, self.dying = {}, {}, set(), set()
        self.root, self.remembered, self.top = None, [], None
        self.out, self.snap = {}, {}  # place -> table, table -> entries when it went out
        self.born = self.queued = 0
        self.lazy = self.told = self.process_dying = False
        self.last, self.times, self.last_index = None, 0, None
        self.user, self.tops = False, (None, None)
        self.pgd = {i: m.pgd if m.pgd >= 0 else -10 - i for i, m in enumerate(trace.mms)}

    # ------------------------------------------------------------------ helpers
    def of(self, frame):
        return self.shadows.setdefault(frame, [])

    def find(self, frame, level):
        return next((p for p in self.of(frame) if p.level == level), None)

    def pages(self):
        return [p for ps in self.shadows.values() for p in ps]

    def entry(self, frame, index):
        return self.memory.setdefault(frame, {}).get(index, 0)

    def leaf(self, value):
        if not value & P or not value & A:
            return None
        target = (value & FRAME) >> 12
        guarded = any(not p.unsync for p in self.of(target))
        return (target, bool(value & RW and value & D and not guarded), False)

    def index(self, va, level):
        return va >> SHIFTS[level] & 511

    # ------------------------------------------------------------------ pages
    def get(self, frame, level):
        if self.rules.counted:
            if level > 1 and frame in self.out.values():
                self.resync_out(frame)
        elif level > 1:
            for p in list(self.of(frame)):
                if p.unsync and p.level != level:
                    self.zap(p)
        page = self.find(frame, level)
        if page is None:
            return self.make(frame, level)
        page.flood = 0
        if page.unsync and not self.rules.counted:
            (self.resync if self.rules.reused_synced else self.refresh)(page)
        return page

    def make(self, frame, level):
        if not self.of(frame):
            self.dying.discard(frame)
        self.born += 1
        page = Page(frame, level, self.born)
        self.of(frame).insert(0, page)
        self.read_only.add(frame)
        self.n[Event.SHADOW_MADE] += 1
        return page

    def link(self, parent, index, child):
        parent.entries[index] = child
        child.parents.add((parent, index))

    def drop(self, page, index):
        child = page.entries.pop(index, None)
        if child is not None and page.level > 1:
            child.parents.discard((page, index))
            if self.rules.counted and not child.parents:
                self.destroy(child)

    def forget(self, page):
        self.of(page.table).remove(page)

    # ------------------------------------------------------------------ KVM
    def zap(self, page):
        for p in [p for p in self.pages() if p.unsync and p in list(page.below())]:
            self.zap_one(p)
        self.zap_one(page)

    def zap_one(self, page):
        self.n[Event.SHADOW_ZAPPED] += 1
        for i in list(page.entries):
            self.drop(page, i)
        for parent, i in page.parents:
            del parent.entries[i]
        page.parents = set()
        self.forget(page)
        if page.unsync:
            page.unsync = False
            self.n[Event.RESYNC] += 1
        page.invalid = True

    def put_root(self, page):
        page.roots -= 1
        if page.invalid and not page.roots:
            self.n[Event.SHADOW_ZAPPED] += 1

    def resync(self, page):
        self.read_only.add(page.table)
        page.unsync = False
        self.n[Event.RESYNC] += 1
        self.refresh(page)

    def refresh(self, page):
        for i, (frame, _, used) in list(page.entries.items()):
            new = self.leaf(self.entry(page.table, i))
            if new is None or new[0] != frame:
                del page.entries[i]
            else:
                page.entries[i] = (*new[:2], used)

    def resync_below(self, page):
        for p in list(page.below()):
            if p.unsync:
                self.resync(p)

    # ------------------------------------------------------------------ Xen
    def destroy(self, page):
        if page.pinned or page.roots:
            return
        self.n[Event.SHADOW_ZAPPED] += 1
        self.forget(page)
        for place in [k for k, f in self.out.items() if f == page.table]:
            del self.out[place]
        for i in list(page.entries):
            self.drop(page, i)

    def put_out(self, page):
        size, frame = self.rules.out_of_sync, page.table
        home = frame % size if frame >= 0 else 0
        at, guest = home, frame
        there = self.out.get(home)
        if there is not None and there % size == home:
            at, guest = (home + 1) % size, there
        if at in self.out:
            self.resync_out(self.out[at])
        if guest is not frame:
            self.out[home] = frame
        self.out[at] = guest
        self.snap[frame] = dict(self.memory.setdefault(frame, {}))
        page.unsync = True
        self.n[Event.UNSYNC] += 1

    def resync_out(self, frame):
        for place in [k for k, f in self.out.items() if f == frame]:
            del self.out[place]
        self.read_only.add(frame)
        self.n[Event.RESYNC] += 1
        if self.rules.flood == Flood.DYING:
            self.process_dying = frame in self.dying
        page = self.find(frame, 1)
        page.unsync = False
        for i in range(512):
            value = self.entry(frame, i)
            if value != self.snap[frame].get(i, 0):
                self.set_leaf(page, i, self.leaf(value))

    def set_leaf(self, page, i, new):
        if new is None:
            page.entries.pop(i, None)
        else:
            page.entries[i] = new

    def unhook(self, page):
        page.pinned = False
        if page.parents:
            parent, i = next(iter(page.parents))
            self.drop(parent, i)
        elif not page.roots:
            self.destroy(page)

    # ------------------------------------------------------------------ faults
    def touch(self, va, write):
        page = self.root
        for level in range(self.t.platform.levels, 1, -1):
            page = page and page.entries.get(self.index(va, level))
        at = self.index(va, 1)
        if page and at in page.entries and (not write or page.entries[at][1]):
            page.entries[at] = (*page.entries[at][:2], True)
            return
        path, frame = {}, self.top
        for level in range(self.t.platform.levels, 0, -1):
            path[level] = frame
            value = self.entry(frame, self.index(va, level))
            if not value & P or (level == 1 and write and not value & RW):
                self.n[Event.SHADOW_FAULT] += 1
                return
            frame = (value & FRAME) >> 12
        self.memory[path[1]][at] = value | A | (D if write else 0)
        self.fill(va, path)
        self.other_fault()

    def fill(self, va, path):
        top = self.t.platform.levels
        if self.rules.counted:
            for level in range(top - 1, 0, -1):
                if level > 1 and path[level] in self.out.values():
                    self.resync_out(path[level])
                if not self.of(path[level]):
                    self.read_only.add(path[level])
        page, linked = self.root, False
        for level in range(top, 1, -1):
            page.flood = 0
            i = self.index(va, level)
            if i not in page.entries:
                child = self.get(path[level - 1], level - 1)
                if level > 2 and not self.rules.counted:
                    self.resync_below(child)
                self.link(page, i, child)
                linked |= level > 2
            page = page.entries[i]
        if linked and self.rules.counted:
            for frame in list(self.out.values()):
                self.resync_out(frame)
        self.fill_leaf(page, self.index(va, 1))

    def fill_leaf(self, page, at):
        value = self.entry(page.table, at)
        if value & RW:
            self.no_table((value & FRAME) >> 12)
        new, old = self.leaf(value), page.entries.get(at)
        same = old is not None and old[:2] == new[:2]
        page.entries[at] = (*new[:2], True)
        self.remember(page.table, at)
        if same and self.rules.links == Links.IDENTICAL_SPURIOUS:
            self.n[Event.SPURIOUS_FAULT] += 1
            return
        self.n[Event.SHADOW_FAULT] += 1
        w = self.rules.window
        if self.rules.window_ahead:
            for k in range(at + 1, min(at + w, 512)):
                v = self.entry(page.table, k)
                if k in page.entries or (v & P and (not v & A or (v & RW and not v & D))):
                    return
                self.set_leaf(page, k, self.leaf(v))
                self.remember(page.table, k)
            return
        for k in range(at // w * w, at // w * w + w):
            if k == at or k in page.entries:
                continue
            v = self.entry(page.table, k)
            if not v & P or not v & A:
                return
            self.set_leaf(page, k, self.leaf(v))

    def remember(self, frame, index):
        if frame in self.out.values():
            self.snap[frame][index] = self.entry(frame, index)

    def no_table(self, frame):
        for p in list(self.of(frame)):
            self.unhook(p) if self.rules.counted else self.zap(p)

    def invalidate(self, va):
        page = self.root
        for level in range(self.t.platform.levels, 1, -1):
            page = page and page.entries.get(self.index(va, level))
        if page and page.unsync:
            at = self.index(va, 1)
            page.entries.pop(at, None)
            if self.rules.fills_on_invlpg:
                self.set_leaf(page, at, self.leaf(self.entry(page.table, at)))

    # ------------------------------------------------------------------ writes
    def trapped(self, frame):
        if self.rules.out_of_sync == 0:
            return bool(self.of(frame))
        return any(p.level > 1 for p in self.of(frame))

    def store(self, frame, index, value):
        if frame in self.read_only and self.trapped(frame):
            self.emulate(frame, index, value)
            return
        if frame in self.read_only:
            self.let_write(frame)
        self.memory.setdefault(frame, {})[index] = value

    def let_write(self, frame):
        for p in list(self.of(frame)):
            if not p.unsync:
                if self.rules.counted:
                    self.put_out(p)
                else:
                    p.unsync = True
                    self.n[Event.UNSYNC] += 1
        self.read_only.discard(frame)
        self.n[Event.SHADOW_FAULT] += 1
        self.use_root()
        self.other_fault()

    def other_fault(self):
        if self.rules.counted:
            self.last = None
        elif self.rules.flood in (Flood.SINCE_FAULT, Flood.LAST_UNUSED):
            self.times = 0

    def use_root(self):
        if self.rules.flood == Flood.PER_PAGE and self.root:
            self.root.flood = 0

    def zero(self, frame):
        if frame in self.read_only and self.trapped(frame):
            if self.rules.retry:
                self.n[Event.PTE_EMULATION] += 1
                for p in list(self.of(frame)):
                    self.zap(p)
            else:
                for i in range(512):
                    if self.trapped(frame):
                        self.emulate(frame, i, 0)
        if frame in self.read_only and not self.trapped(frame):
            self.let_write(frame)
        self.memory[frame] = {}

    def emulate(self, frame, index, value):
        self.n[Event.PTE_EMULATION] += 1
        if self.rules.counted:
            if frame in self.dying and self.top != frame:
                for p in list(self.of(frame)):
                    self.unhook(p)
            before = self.entry(frame, index)
            self.memory.setdefault(frame, {})[index] = value
            if value == 0:
                self.early_unshadow(frame)
            else:
                self.last = None
            if before & P or value & P:
                self.validate(frame, index)
            return
        self.use_root()
        self.memory.setdefault(frame, {})[index] = value
        self.apply(frame, index)

    def apply(self, frame, index):
        self.n[Event.PTE_WRITES_APPLIED] += 1
        flooded = False
        if self.rules.flood in (Flood.LAST_PAGE, Flood.SINCE_FAULT, Flood.LAST_UNUSED):
            used = self.rules.flood == Flood.LAST_UNUSED and self.last_used()
            self.times = self.times + 1 if self.last == frame and not used else 1
            self.last, self.last_index = frame, index
            flooded = self.times >= 3
        for p in list(self.of(frame)):
            if self.rules.flood == Flood.PER_PAGE and p.level > 1:
                p.flood += 1
                flooded = p.flood >= 3
            if flooded:
                self.zap(p)
                continue
            self.drop(p, index)
            if p.level == 1 and self.rules.fills_on_write:
                self.set_leaf(p, index, self.leaf(self.entry(frame, index)))

    def last_used(self):
        page = self.find(self.last, 1) if self.last is not None else None
        return bool(page and page.entries.get(self.last_index, (0, 0, False))[2])

    def early_unshadow(self, frame):
        told = self.rules.flood == Flood.DYING and self.told
        wanted = self.process_dying if told else self.last == frame
        top = self.find(frame, self.t.platform.levels)
        if wanted and (not top or (self.rules.flood == Flood.DYING and not told)):
            for p in list(self.of(frame)):
                self.unhook(p)
        self.last = frame

    def validate(self, frame, index):
        value = self.entry(frame, index)
        for p in list(self.of(frame)):
            self.n[Event.PTE_WRITES_APPLIED] += 1
            if p.level == 1:
                self.set_leaf(p, index, self.leaf(value))
                continue
            child = self.find((value & FRAME) >> 12, p.level - 1) if value & P else None
            if child is not None and p.entries.get(index) is child:
                continue
            if child is not None:
                child.parents.add("held")
            self.drop(p, index)
            if child is not None:
                child.parents.discard("held")
                self.link(p, index, child)

    # ------------------------------------------------------------------ registers
    def flush(self):
        if self.rules.out_of_sync == 0:
            return
        if self.rules.counted:
            for frame in list(self.out.values()):
                self.resync_out(frame)
        elif self.root:
            self.resync_below(self.root)

    def new_root(self, frame):
        page = self.find(frame, self.t.platform.levels)
        if page is None:
            page = self.get(frame, self.t.platform.levels)
            regions = list(USER_REGIONS) if self.user else list(REGIONS)
            fixed = [r for r in regions if not self.user and REGIONS[r]]
            if self.rules.links == Links.COUNTED:
                fixed = regions
            self.n[Event.SHADOW_FAULT] += len(fixed)
            self.n[Event.SPURIOUS_FAULT] += len(regions) - len(fixed)
        page.roots += 1
        return page

    def load(self, frame, flush=True):
        if self.rules.counted:
            self.flush()
            old, self.top = self.root, frame
            if old and old.table == frame and old in self.of(frame):
                return
            self.root = self.new_root(frame)
            self.root.pinned = True
            if old:
                old.roots -= 1
                if not old.parents:
                    self.destroy(old)
            return
        self.top = frame
        if self.root is None or self.root.table != frame:
            old = [self.root, *self.remembered]
            hit = [p for p in old[1:] if p and p.table == frame and not p.invalid]
            if hit:
                old.remove(hit[0])
                hit[0].flood = 0
            flush = flush or not hit
            evicted = [] if hit else old[self.rules.roots :]
            old = old[: self.rules.roots]
            for p in evicted:
                if p:
                    self.put_root(p)
            self.root = hit[0] if hit else self.new_root(frame)
            self.remembered = old
        if flush:
            self.flush()

    def free_obsolete(self):
        for i, p in enumerate(self.remembered):
            if p and p.invalid:
                self.put_root(p)
                self.remembered[i] = None
        if self.root and self.root.invalid:
            self.put_root(self.root)
            self.root = self.new_root(self.top)

    def dies(self, frame):
        page = self.find(frame, self.t.platform.levels)
        if self.rules.counted:
            if page:
                for i in list(page.entries):
                    self.drop(page, i)
                if page is self.root:
                    self.n[Event.SHADOW_FAULT] += len(EXIT_REGIONS)
                self.dying.add(frame)
            self.told = self.process_dying = True
            return
        if page:
            for p in list(dict.fromkeys(page.below())):
                if p in self.of(p.table):
                    self.zap(p)
            if not page.roots:
                self.zap(page)

    # ------------------------------------------------------------------ the loop
    def send(self):
        if self.queued:
            self.n[Event.VMCALL] += 1
        self.queued = 0

    def queue(self):
        self.n[Event.VMCALL_UPDATES] += 1
        self.queued += 1
        if not self.lazy or self.queued >= QUEUE:
            self.send()

    def run(self):
        for row in self.t.to_frame().to_dict("records"):
            self.step(Op[row["op"]], row)
            self.free_obsolete()
        return +self.n

    def step(self, op, row):
        how = Mechanism(int(self.table[op]))
        frame, index, va, value = row["table"], row["index"], row["va"], row["value"]
        if op in (Op.LOAD_CR3, Op.PGD_ALLOC, Op.EXIT_MMAP):
            frame = self.pgd[row["mm"]]
        times = max(row["count"], 0) if row["count"] != -1 else 0
        n = self.n
        if how == Mechanism.STORE:
            self.store(frame, index, value)
        elif how == Mechanism.ZERO:
            self.zero(frame)
        elif how == Mechanism.TOUCH:
            self.touch(va, bool(value & 1))
        elif how == Mechanism.FAULT:
            n[Event.PAGE_FAULT] += 1
            self.other_fault()
        elif how == Mechanism.LOAD_CR3:
            n[Event.CR3_WRITE_EXIT] += 1
            self.load(frame, not value >> 63)
        elif how == Mechanism.FLUSH_ALL:
            n[Event.CR3_READ_EXIT] += times
            n[Event.CR3_WRITE_EXIT] += times
            self.flush()
        elif how == Mechanism.FLUSH_GLOBAL:
            n[Event.CR4_WRITE_EXIT] += 2 * times
            self.flush()
        elif how == Mechanism.FLUSH_ONE:
            n[Event.INVLPG_EXIT] += times
            self.invalidate(va)
        elif how == Mechanism.IPI:
            n[Event.IPI_EXIT] += times
        elif how == Mechanism.READ_CR3:
            n[Event.CR3_READ_EXIT] += 1
        elif how == Mechanism.CALL_STORE:
            before = self.entry(frame, index)
            self.memory.setdefault(frame, {})[index] = value
            if self.of(frame) and not self.rules.counted:
                self.apply(frame, index)
            elif self.of(frame) and (before & P or value & P):
                self.validate(frame, index)
            self.queue()
        elif how == Mechanism.BRACKET:
            self.lazy = True
        elif how == Mechanism.BRACKET_END:
            self.lazy = False
            self.send()
        elif how > Mechanism.CALL_STORE:
            self.send()
            n[Event.VMCALL] += 1
            self.call(how, frame, va, value, times)

    def call(self, how, frame, va, value, times):
        if how == Mechanism.CALL_UNSHADOW:
            for p in list(self.of(frame)):
                self.unhook(p) if self.rules.counted else self.zap(p)
        elif how == Mechanism.CALL_DYING:
            self.dies(frame)
        elif how == Mechanism.CALL_LOAD_CR3:
            self.load(frame, not value >> 63)
        elif how == Mechanism.CALL_FLUSH_ALL or how == Mechanism.CALL_FLUSH_MULTI:
            self.n[Event.TLB_FLUSH] += times
            self.flush()
        elif how == Mechanism.CALL_FLUSH_ONE:
            self.invalidate(va)
