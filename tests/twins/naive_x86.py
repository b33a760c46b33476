"""Slow twins of pvmmu.x86, written from the manuals and from nothing else.

Page walks: Intel SDM vol. 3A ch. 4 and vol. 3C §28.3, AMD APM vol. 2 §15.25, one function for each
format, plain ints, exceptions for faults. TLBs: dictionaries in order of last use.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass, field


def bit(x: int, i: int) -> int:
    return x >> i & 1


def field_of(x: int, high: int, low: int) -> int:
    return (x >> low) & ((1 << (high - low + 1)) - 1)


class PageFault(Exception):
    def __init__(self, code: int):
        self.code = code


class GeneralProtection(Exception):
    pass


class VmExit(Exception):
    def __init__(self, reason: int, qualification: int, gpa: int):
        self.reason, self.qualification, self.gpa = reason, qualification, gpa


@dataclass
class Access:
    kind: int  # 0 read, 1 write, 2 fetch, 3/4 shadow-stack read/write, 5/6 implicit read/write
    user: bool
    ac: bool = False

    @property
    def by_user(self) -> bool:
        return self.user and self.kind < 5

    @property
    def writes(self) -> bool:
        return self.kind in (1, 4, 6)

    @property
    def shadow_stack(self) -> bool:
        return self.kind in (3, 4)


@dataclass
class Guest:
    """Registers, as plain numbers."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    maxphyaddr: int = 40
    pdptes: tuple | None = None  # PAE: the registers; None: in memory (AMD nested paging)
    amd: bool = False
    pkru: int = 0
    pkrs: int = 0
    c_bit: int = 0
    reduction: int = 0

    @property
    def long(self) -> bool:
        return bool(bit(self.efer, 10))

    @property
    def m(self) -> int:
        """Physical-address bits that are left (APM vol. 2 §7.10.1)."""
        return self.maxphyaddr - self.reduction

    def too_high(self, entry: int, top: int) -> bool:
        """Whether an entry has address bits from M to `top`, the C-bit apart."""
        if self.c_bit:
            entry &= ~(1 << self.c_bit)
        return bool(entry & ((1 << top + 1) - 1) >> self.m << self.m)

    @property
    def nxe(self) -> bool:
        return bool(bit(self.efer, 11)) and bool(bit(self.cr4, 5))


@dataclass
class Machine:
    """Physical memory, the entries changed by this walk, and what it did."""

    words: object
    changed: dict = field(default_factory=dict)
    references: int = 0
    host_references: int = 0
    gpa: int = 0  # of the access itself, if there is a second dimension
    level: int = 0

    def read(self, pa: int, size: int) -> int:
        self.references += 1
        return self.peek(pa, size)

    def peek(self, pa: int, size: int) -> int:
        if pa in self.changed:
            return self.changed[pa]
        word = int(self.words[pa // 8])
        return word if size == 8 else word >> 8 * (pa % 8) & 0xFFFFFFFF

    def set_bits(self, pa: int, size: int, flags: int) -> None:
        old = self.peek(pa, size)
        if old | flags != old:
            self.changed[pa] = old | flags


class Identity:
    """No second dimension."""

    def __init__(self):
        self.rights = {}

    def table(self, m, gpa):
        return gpa

    def rights_of_table(self, gpa):
        return 1, 1, 1, 1

    def may_write_table(self, m, gpa, level):
        pass

    def final(self, m, gpa, kind):
        return gpa, 63


# ---------------------------------------------------------------- first dimension


def error_code(g: Guest, a: Access, present: bool, reserved: bool) -> int:
    """SDM vol. 3A §4.7."""
    code = 0
    if present:
        code |= 1
    if a.writes:
        code |= 2
    if a.by_user:
        code |= 4
    if a.shadow_stack:
        code |= 64
    if reserved:
        code |= 8
    if a.kind == 2 and (bit(g.cr4, 20) or (bit(g.cr4, 5) and bit(g.efer, 11))):
        code |= 16
    return code


def key_violation(g: Guest, a: Access, user_page: bool, key: int) -> bool:
    """SDM vol. 3A §4.6.2."""
    if not g.long or a.kind == 2:
        return False
    if user_page:
        on, rights = bit(g.cr4, 22), g.pkru
    else:
        on, rights = bit(g.cr4, 24) and not a.by_user, g.pkrs
    if not on:
        return False
    if bit(rights, 2 * key):
        return True
    return bool(a.writes and bit(rights, 2 * key + 1) and (a.by_user or bit(g.cr0, 16)))


def check_rights(g: Guest, a: Access, writable, user_page, xd, key=0, shadow_page=False) -> None:
    """SDM vol. 3A §4.6.1."""
    wp, smep, smap = bit(g.cr0, 16), bit(g.cr4, 20), bit(g.cr4, 21)
    ok, forbidden_key = True, key_violation(g, a, user_page, key)
    excused = a.ac and a.kind < 5  # EFLAGS.AC is no excuse for an implicit access
    if a.shadow_stack:
        ok = bool(shadow_page) and bool(user_page) == a.by_user
    elif not a.by_user:
        if a.kind in (0, 5):
            ok = not user_page or not smap or excused
        elif a.kind in (1, 6):
            ok = (not smap or excused) and (not wp or writable) if user_page else not wp or writable
        else:
            ok = not (user_page and smep) and not (g.nxe and xd)
    else:
        if not user_page:
            ok = False
        elif a.kind == 1:
            ok = writable
        elif a.kind == 2:
            ok = not (g.nxe and xd)
    if not ok or forbidden_key:
        raise PageFault(error_code(g, a, True, False) | (32 if forbidden_key else 0))


def seen_address(g: Guest, va: int, a: Access) -> int:
    """The address that is translated (SDM vol. 3A §4.4, LAM; APM vol. 2 §5.10, UAI)."""
    if not g.long or a.kind == 2:
        return va
    if g.amd:
        if bit(g.efer, 20):
            low = field_of(va, 56, 0)
            return low | (0x7F << 57 if bit(va, 56) else 0)
        return va
    if not bit(va, 63):
        width = 57 if bit(g.cr3, 61) else 48 if bit(g.cr3, 62) else 64
    else:
        width = 64 if not bit(g.cr4, 28) else 57 if bit(g.cr4, 12) else 48
    if width == 64:
        return va
    for i in range(width, 63):
        va = va & ~(1 << i) | bit(va, width - 1) << i
    return va


def check_lass(g: Guest, va: int, a: Access) -> None:
    """SDM vol. 3A §4.2 (linear-address-space separation)."""
    if not g.long or not bit(g.cr4, 27):
        return
    if a.by_user:
        wrong = bit(va, 63)
    elif a.kind == 2:
        wrong = not bit(va, 63)
    else:
        wrong = not bit(va, 63) and bit(g.cr4, 21) and (a.kind >= 5 or not a.ac)
    if wrong:
        raise GeneralProtection


def walk(m: Machine, g: Guest, va: int, a: Access, second=None, start=None, seen=None):
    """Return physical address and page shift (the smaller of both dimensions).

    `start` (long mode only) is a level, its table in host-physical memory, the rights above it and
    the second dimension's rights to the table; `seen` gets these for each level, then the outcome.
    """
    second = second or Identity()
    check_lass(g, va, a)
    va = seen_address(g, va, a)
    if bit(g.efer, 10):
        levels = 5 if bit(g.cr4, 12) else 4
        top = 56 if levels == 5 else 47
        if field_of(va, 63, top) not in (0, (1 << (64 - top)) - 1):
            raise GeneralProtection
        used, gpa, shift, rights = walk_long(m, g, va, a, second, levels, start, seen)
        size = 8
    elif bit(g.cr4, 5):
        used, gpa, shift, rights = walk_pae(m, g, va, a, second)
        size = 8
    else:
        used, gpa, shift, rights = walk_32(m, g, va, a, second)
        size = 4
    last = m.peek(used[-1][0], size)
    # §4.6.1: R/W clear and dirty in the entry that maps the page, R/W set in all others
    above = start[2][0] if start else 1
    for at, _, _ in used[:-1]:
        above &= bit(m.peek(at, size), 1)
    shadow_page = bit(g.cr4, 23) and above and not bit(last, 1) and bit(last, 6)
    rights = (*rights, field_of(last, 62, 59) if g.long else 0, bool(shadow_page))
    check_rights(g, a, *rights)
    # §4.8: A in each entry used, D in the one that maps the page
    for i, (where, entry_gpa, level) in enumerate(used):
        flags = 0x20
        if i == len(used) - 1 and a.writes:
            flags |= 0x40
        if m.peek(where, size) | flags != m.peek(where, size):
            second.may_write_table(m, entry_gpa, level)
            m.set_bits(where, size, flags)
    if seen is not None:
        seen.append({"rights": rights, "leaf": m.peek(used[-1][0], size), "guest shift": shift})
    kind = 1 if a.writes else 2 if a.kind == 2 else 0
    second.of_user_page = bool(rights[1])
    pa, host_shift = second.final(m, gpa, kind)
    m.gpa = gpa
    return pa, min(shift, host_shift)


def present_or_fault(g, a, entry):
    if not bit(entry, 0):
        raise PageFault(error_code(g, a, False, False))


def reserved_fault(g, a, wrong):
    if wrong:
        raise PageFault(error_code(g, a, True, True))


def walk_32(m, g, va, a, second):
    """SDM vol. 3A §4.3."""
    pse = bit(g.cr4, 4)
    pde_at = (g.cr3 & 0xFFFFF000) + field_of(va, 31, 22) * 4
    where = second.table(m, pde_at)
    pde = m.read(where, 4)
    used = [(where, pde_at, 2)]
    m.level = 2
    present_or_fault(g, a, pde)
    if pse and bit(pde, 7):
        width = min(g.maxphyaddr, 40)
        # bits 21:(M-19) are reserved; bits (M-20):13 are bits (M-1):32 of the address
        for i in range(width - 19, 22):
            reserved_fault(g, a, bit(pde, i))
        pa = field_of(pde, 31, 22) << 22 | field_of(va, 21, 0)
        for i in range(13, width - 19):
            pa |= bit(pde, i) << (32 + i - 13)
        return used, pa, 22, (bit(pde, 1), bit(pde, 2), False)
    pte_at = (pde & 0xFFFFF000) + field_of(va, 21, 12) * 4
    where = second.table(m, pte_at)
    pte = m.read(where, 4)
    used.append((where, pte_at, 1))
    m.level = 1
    present_or_fault(g, a, pte)
    rights = (bit(pde, 1) and bit(pte, 1), bit(pde, 2) and bit(pte, 2), False)
    return used, (pte & 0xFFFFF000) | field_of(va, 11, 0), 12, rights


def address(g, entry, low):
    if g.c_bit:
        entry &= ~(1 << g.c_bit)
    return entry & ((1 << g.m) - 1) & ~((1 << low) - 1)


def walk_pae(m, g, va, a, second):
    """SDM vol. 3A §4.4; PDPTEs in memory: AMD APM vol. 2 §15.25.10."""
    i = field_of(va, 31, 30)
    if g.pdptes is not None:
        pdpte = g.pdptes[i]
    else:
        pdpte = m.read(second.table(m, (g.cr3 & 0xFFFFFFE0) + 8 * i), 8)
    m.level = 3
    present_or_fault(g, a, pdpte)
    wrong = field_of(pdpte, 2, 1) or field_of(pdpte, 8, 5) or g.too_high(pdpte, 63)
    reserved_fault(g, a, wrong)
    pde_at = address(g, pdpte, 12) + field_of(va, 29, 21) * 8
    where = second.table(m, pde_at)
    pde = m.read(where, 8)
    used = [(where, pde_at, 2)]
    m.level = 2
    present_or_fault(g, a, pde)
    reserved_fault(g, a, g.too_high(pde, 62) or (bit(pde, 63) and not g.nxe))
    if bit(pde, 7):
        reserved_fault(g, a, field_of(pde, 20, 13))
        pa = address(g, pde, 21) | field_of(va, 20, 0)
        return used, pa, 21, (bit(pde, 1), bit(pde, 2), bit(pde, 63))
    pte_at = address(g, pde, 12) + field_of(va, 20, 12) * 8
    where = second.table(m, pte_at)
    pte = m.read(where, 8)
    used.append((where, pte_at, 1))
    m.level = 1
    present_or_fault(g, a, pte)
    reserved_fault(g, a, g.too_high(pte, 62) or (bit(pte, 63) and not g.nxe))
    rights = (
        bit(pde, 1) and bit(pte, 1),
        bit(pde, 2) and bit(pte, 2),
        bit(pde, 63) or bit(pte, 63),
    )
    return used, address(g, pte, 12) | field_of(va, 11, 0), 12, rights


def walk_long(m, g, va, a, second, levels, start=None, seen=None):
    """SDM vol. 3A §4.5."""
    table, host_table = address(g, g.cr3, 12), None
    used = []
    writable, user_page, xd = 1, 1, 0
    if start:
        levels, host_table, (writable, user_page, xd), second.rights[None] = start
    for level in range(levels, 0, -1):
        low = 12 + 9 * (level - 1)
        at = table + field_of(va, low + 8, low) * 8
        if host_table is not None:  # known from a walk cache
            at, where = None, host_table + field_of(va, low + 8, low) * 8
            host_table = None
        else:
            where = second.table(m, at)
        if seen is not None:
            above = writable, user_page, xd
            seen.append((level, where & ~0xFFF, above, second.rights_of_table(at)))
        entry = m.read(where, 8)
        m.level = level
        present_or_fault(g, a, entry)
        reserved_fault(g, a, g.too_high(entry, 51))
        reserved_fault(g, a, bit(entry, 63) and not g.nxe)
        if level >= 4:
            reserved_fault(g, a, bit(entry, 7))
        page = level == 1 or (level in (2, 3) and bit(entry, 7))
        if g.amd and level >= 3 and not page:  # APM vol. 2 §5.3.3, §5.3.4
            reserved_fault(g, a, bit(entry, 8))
        if page and level == 3:
            reserved_fault(g, a, field_of(entry, 29, 13))
        if page and level == 2:
            reserved_fault(g, a, field_of(entry, 20, 13))
        used.append((where, at, level))
        writable &= bit(entry, 1)
        user_page &= bit(entry, 2)
        xd |= bit(entry, 63)
        if page:
            pa = address(g, entry, low) | field_of(va, low - 1, 0)
            return used, pa, low, (writable, user_page, xd)
        table = address(g, entry, 12)
    raise AssertionError


# ---------------------------------------------------------------- second dimension


@dataclass
class EptTables:
    """SDM vol. 3C §28.3."""

    eptp: int
    maxphyaddr: int = 40
    execute_only: bool = True
    mode_based: bool = False
    of_user_page: bool = False  # whether the guest's tables call the page a user's
    last: tuple = ()  # rights (read, write, fetch) and dirty flag of the last translation
    rights: dict = field(default_factory=dict)  # those of tables, by the address of an entry

    @property
    def flags_kept(self) -> bool:
        return bool(bit(self.eptp, 6))

    def table(self, m, gpa):
        # §28.3.3.2: with flags kept, accesses to guest paging structures are writes
        at = self.translate(m, gpa, read=True, write=self.flags_kept, fetch=False, final=False)[0]
        self.rights[gpa] = self.last[0]
        return at

    def rights_of_table(self, gpa):
        return self.rights[gpa]

    def may_write_table(self, m, gpa, level):
        """Setting a flag in a guest's table is a write; where flags are kept, reading it was."""
        r, w, x, *xu = self.rights[gpa]
        if not self.flags_kept and not w:
            m.level = level
            # bit 0 is the implementation's choice; KVM and its tests expect it
            raise VmExit(48, 1 << 7 | self.reported(r, w, x, xu[0]) | 1 << 1 | 1, gpa)

    def reported(self, r, w, x, xu):
        """Table 28-7: rights in bits 5:3, and of mode-based execute control in bit 6."""
        return (r | w << 1 | x << 2) << 3 | (xu << 6 if self.mode_based else 0)

    def final(self, m, gpa, kind):
        return self.translate(m, gpa, kind == 0, kind == 1, kind == 2, final=True)

    def translate(self, m, gpa, read, write, fetch, final):
        levels = field_of(self.eptp, 5, 3) + 1
        qualification = read | write << 1 | fetch << 2 | 1 << 7 | final << 8
        if gpa >> (12 + 9 * levels):
            raise VmExit(48, qualification, gpa)
        table = self.eptp & ((1 << self.maxphyaddr) - 1) & ~0xFFF
        r = w = x = xu = 1
        used = []
        for level in range(levels, 0, -1):
            low = 12 + 9 * (level - 1)
            at = table + field_of(gpa, low + 8, low) * 8
            e = m.read(at, 8)
            m.host_references += 1
            r, w, x, xu = r & bit(e, 0), w & bit(e, 1), x & bit(e, 2), xu & bit(e, 10)
            if field_of(e, 2, 0) == 0 and not (self.mode_based and bit(e, 10)):
                raise VmExit(48, qualification | self.reported(r, w, x, xu), gpa)
            page = level == 1 or (level in (2, 3) and bit(e, 7))
            executable = bit(e, 2) or (self.mode_based and bit(e, 10))
            wrong = not bit(e, 0) and (bit(e, 1) or (executable and not self.execute_only))
            if self.maxphyaddr < 52:
                wrong = wrong or field_of(e, 51, self.maxphyaddr)
            if level >= 4:
                wrong = wrong or field_of(e, 7, 3)
            elif not page:
                wrong = wrong or field_of(e, 6, 3)
            if page:
                wrong = wrong or field_of(e, 5, 3) in (2, 3, 7)
                if level == 3:
                    wrong = wrong or field_of(e, 29, 12)
                if level == 2:
                    wrong = wrong or field_of(e, 20, 12)
            if wrong:
                raise VmExit(49, 0, gpa)
            used.append(at)
            if page:
                break
            table = e & ((1 << self.maxphyaddr) - 1) & ~0xFFF
        may_fetch = xu if self.mode_based and self.of_user_page and final else x
        if (read and not r) or (write and not w) or (fetch and not may_fetch):
            raise VmExit(48, qualification | self.reported(r, w, x, xu), gpa)
        if self.flags_kept:
            for i, at in enumerate(used):
                m.set_bits(at, 8, 0x100 | (0x200 if write and i == len(used) - 1 else 0))
        e = m.peek(used[-1], 8)
        self.last = (r, w, x, xu), not self.flags_kept or bool(bit(e, 9))
        pa = e & ((1 << self.maxphyaddr) - 1) & ~((1 << low) - 1) | gpa & ((1 << low) - 1)
        return pa, low


@dataclass
class NptTables:
    """AMD APM vol. 2 §15.25: an ordinary walk by a user; the guest's tables are written."""

    host: Guest

    def table(self, m, gpa):
        return self.translate(m, gpa, 1, final=False)[0]

    def rights_of_table(self, gpa):
        return 1, 1, 1

    def may_write_table(self, m, gpa, level):
        pass  # reading it was a write

    def final(self, m, gpa, kind):
        return self.translate(m, gpa, kind, final=True)

    def translate(self, m, gpa, kind, final):
        level = m.level
        a = Access(kind, user=True)
        width = 48 if bit(self.host.efer, 10) else 32
        if bit(self.host.efer, 10) and bit(self.host.cr4, 12):
            width = 57
        code = (1 << 32) if final else (1 << 33)
        h = self.host
        host = Guest(h.cr0, h.cr3, h.cr4, h.efer, h.maxphyaddr, amd=True, c_bit=h.c_bit,
                     reduction=h.reduction)  # fmt: skip
        # all accesses are the user's: SMEP forbids none of them, but I/D is reported with it
        if gpa >> width:
            raise VmExit(0x400, error_code(host, a, False, False) | code, gpa)
        try:
            # guest-physical addresses are not sign-extended
            if width > 32:
                used, pa, shift, rights = walk_long(m, host, gpa, a, Identity(), 4 + (width == 57))
            elif bit(host.cr4, 5):
                used, pa, shift, rights = walk_pae(m, host, gpa, a, Identity())
            else:
                used, pa, shift, rights = walk_32(m, host, gpa, a, Identity())
            check_rights(host, a, *rights)
        except PageFault as e:
            raise VmExit(0x400, e.code | code, gpa) from None
        finally:
            m.level = level
        size = 8 if bit(host.cr4, 5) else 4
        for i, (at, _, _) in enumerate(used):
            m.set_bits(at, size, 0x20 | (0x40 if kind == 1 and i == len(used) - 1 else 0))
        return pa, shift


def rmp_violation(m: Machine, a: Access, pa: int, shift: int, owned) -> bool:
    """APM vol. 2 §15.36.10: the host writes to a frame that a guest or firmware has."""
    shift = min(shift, 21)
    first = pa >> shift << shift
    targets = range(first, first + (1 << shift), 4096) if a.writes else ()
    return any(owned[at // 4096] for at in (*targets, *m.changed) if at // 4096 < len(owned))


def judge(words, g: Guest, va: int, a: Access, second=None, owned=None) -> dict:
    """One access: everything that the kernels report."""
    m = Machine(words)
    out = {"vector": 0, "error": -1, "pa": 0, "shift": 0, "reason": 0, "qualification": 0, "gpa": 0}
    try:
        pa, shift = walk(m, g, va, a, second)
        if owned is not None and rmp_violation(m, a, pa, shift, owned):
            raise PageFault(error_code(g, a, True, False) | 1 << 31)
        out["pa"], out["shift"], out["gpa"] = pa, shift, m.gpa
    except GeneralProtection:
        out["vector"] = 13
    except PageFault as e:
        out["vector"], out["error"] = 14, e.code
        if second is None:
            m.changed.clear()
    except VmExit as e:
        out |= {"reason": e.reason, "qualification": e.qualification, "gpa": e.gpa}
    return out | {
        "level": m.level,
        "references": m.references,
        "updates": sorted(m.changed.items()),
    }


# ---------------------------------------------------------------- TLBs

SHIFTS = {"4K": 12, "2M": 21, "4M": 22, "1G": 30}


class Tree:
    """Tree-PLRU of one set: each node says on which side the older half is."""

    def __init__(self, ways: int):
        self.ways = ways
        self.left_is_older = {}  # node (first way, number of ways) -> bool

    def touch(self, way: int) -> None:
        first, n = 0, self.ways
        while n > 1:
            half = n // 2
            on_left = way < first + half
            self.left_is_older[first, n] = not on_left
            first, n = (first, half) if on_left else (first + half, half)

    def victim(self) -> int:
        first, n = 0, self.ways
        while n > 1:
            half = n // 2
            left = self.left_is_older.get((first, n), True)
            first, n = (first, half) if left else (first + half, half)
        return first


class NaiveSet:
    """One set: keys and what belongs to them, oldest first (LRU) or by way (PLRU)."""

    def __init__(self, ways: int, policy: str = "lru"):
        self.ways, self.policy = ways, policy
        self.lru: OrderedDict = OrderedDict()
        self.slots, self.tree = [None] * ways, Tree(ways)

    def get(self, key):
        if self.policy == "lru":
            if key not in self.lru:
                return None
            self.lru.move_to_end(key)
            return self.lru[key]
        for way, slot in enumerate(self.slots):
            if slot is not None and slot[0] == key:
                self.tree.touch(way)
                return slot[1]
        return None

    def put(self, key, value):
        if self.policy == "lru":
            self.lru.pop(key, None)
            self.lru[key] = value
            if len(self.lru) > self.ways:
                self.lru.popitem(last=False)
            return
        way = next((w for w, s in enumerate(self.slots) if s is None), None)
        way = self.tree.victim() if way is None else way
        self.slots[way] = (key, value)
        self.tree.touch(way)

    def items(self):
        if self.policy == "lru":
            return list(self.lru.items())
        return [s for s in self.slots if s is not None]

    def drop(self, unwanted) -> int:
        """Remove the items for which a function of key and value is true."""
        gone = [k for k, v in self.items() if unwanted(k, v)]
        for key in gone:
            self.lru.pop(key, None)
        self.slots = [None if s and s[0] in gone else s for s in self.slots]
        return len(gone)


class NaiveArray:
    """A set-associative array; the set is chosen by the page number."""

    def __init__(self, sets: int, ways: int, policy: str = "lru"):
        self.sets = [NaiveSet(ways, policy) for _ in range(sets)]

    def of(self, page: int) -> NaiveSet:
        return self.sets[page % len(self.sets)]

    def drop(self, unwanted) -> int:
        return sum(s.drop(unwanted) for s in self.sets)

    def items(self):
        return [i for s in self.sets for i in s.items()]


class NaiveTlb:
    """Levels of arrays; an entry is (size, page, vpid, pcid or "global")."""

    def __init__(self, geometry):
        self.geometry = geometry
        self.arrays = [NaiveArray(s.sets, s.ways, s.policy) for s in geometry.structure]
        self.vpid = self.pcid = 0

    def homes(self, level: int, fetch: bool):
        for array, s in zip(self.arrays, self.geometry.structure, strict=True):
            if s.level == level and s.holds in ("both", "instruction" if fetch else "data"):
                yield array, s

    def place(self, level: int, size: str, fetch: bool):
        """Array of a level for pages of a size, and the size under which it keeps them."""
        for array, s in self.homes(level, fetch):
            if size in s.pages:
                return array, size
            if size in s.splits:
                return array, max((p for p in s.pages), key=lambda p: SHIFTS[p])
        return None

    def key(self, va: int, size: str, is_global: bool):
        return size, va >> SHIFTS[size], self.vpid, "global" if is_global else self.pcid

    def access(self, va: int, size: str = "4K", is_global=False, fetch=False) -> int:
        """Return the level that had the page, from 0; the number of levels if none."""
        levels = max(s.level for s in self.geometry.structure)
        for level in range(1, levels + 1):
            place = self.place(level, size, fetch)
            if place is None:
                continue
            array, own = place
            key = self.key(va, own, is_global)
            if array.of(key[1]).get(key) is not None:
                return level - 1
            array.of(key[1]).put(key, size)
        return levels

    # SDM vol. 3A §4.10.4.1; an entry's value is the size of the page it is a piece of
    def drop(self, unwanted) -> int:
        return sum(a.drop(unwanted) for a in self.arrays)

    def same_page(self, key, value, va: int) -> bool:
        large = SHIFTS[value]
        return (key[1] << SHIFTS[key[0]]) >> large == (va & (1 << 57) - 1) >> large

    def invlpg(self, va):
        return self.drop(
            lambda k, v: (
                self.same_page(k, v, va) and k[2] == self.vpid and k[3] in (self.pcid, "global")
            )
        )

    def invpcid(self, kind, pcid=0, va=0):
        def unwanted(k, v):
            mine, nonglobal = k[2] == self.vpid, k[3] != "global"
            return (
                mine
                and {
                    "address": k[3] == pcid and self.same_page(k, v, va),
                    "single": k[3] == pcid,
                    "all": True,
                    "all nonglobal": nonglobal,
                }[kind]
            )

        return self.drop(unwanted)

    def load_cr3(self, pcid=0, *, noflush=False):
        self.pcid = pcid
        return 0 if noflush else self.invpcid("single", pcid)

    def toggle_pge(self):
        return self.invpcid("all")

    def enter(self, vpid, pcid=0):
        self.vpid, self.pcid = vpid, pcid
        return 0

    def invvpid(self, kind, vpid=0, va=0):
        def unwanted(k, v):
            return {
                "address": k[2] == vpid and self.same_page(k, v, va),
                "single": k[2] == vpid,
                "all": k[2] != 0,
                "single nonglobal": k[2] == vpid and k[3] != "global",
            }[kind]

        return self.drop(unwanted)

    def contents(self):
        return sorted(
            (s.name, k[0], k[1] << SHIFTS[k[0]], k[3] == "global", k[2], k[3])
            for a, s in zip(self.arrays, self.geometry.structure, strict=True)
            for k, _ in a.items()
        )


def misses_of(pages, sets: int, ways: int) -> int:
    """Misses of one level of 4-KiB pages."""
    array, n = NaiveArray(sets, ways), 0
    for page in pages:
        s = array.of(page)
        if s.get(page) is None:
            s.put(page, True)
            n += 1
    return n


# ---------------------------------------------------------------- an MMU


class NaiveMmu:
    """One CPU in long mode: TLBs, walk caches, nested TLB, in front of page tables."""

    def __init__(self, words, guest: Guest, geometry, second=None):
        self.words, self.g, self.geometry = words, guest, geometry
        self.tlb = NaiveTlb(geometry)
        self.tlb.pcid = guest.cr3 & 0xFFF if bit(guest.cr4, 17) else 0
        levels = {"PDE": 2, "PDPTE": 3, "PML4E": 4, "PML5E": 5}
        self.walk = {levels[w.caches]: NaiveArray(w.sets, w.ways) for w in geometry.walk_cache}
        self.second = second
        if second is not None and geometry.nested_tlb:
            n = geometry.nested_tlb
            self.second = CachedEpt(second.eptp, second.maxphyaddr, second.execute_only,
                                    second.mode_based)  # fmt: skip
            self.second.cache = NaiveArray(n.sets, n.ways)
        self.top = 5 if bit(guest.cr4, 12) else 4
        self.n = dict.fromkeys(
            ("ACCESSES", "HITS_1", "HITS_2", "WALKS", "DIRTY_WALKS", "REFERENCES",
             "HOST_REFERENCES", "WALK_CACHE_HITS", "LEVELS_SKIPPED", "FLAGS_SET", "FAULTS",
             "SPURIOUS_FAULTS", "EXITS"), 0)  # fmt: skip

    # entries of walk caches are (page, vpid, pcid)
    def walk_key(self, level, va):
        return (va & (1 << 57) - 1) >> 12 + 9 * (level - 1), self.tlb.vpid, self.tlb.pcid

    def look_up(self, va, fetch):
        t = self.tlb
        for level in (1, 2):
            for array, s in t.homes(level, fetch):
                for size in s.pages:
                    for is_global in (False, True):
                        key = t.key(va, size, is_global)
                        entry = array.of(key[1]).get(key)
                        if entry is not None:
                            if level == 2:
                                self.put_first(va, size, is_global, fetch, entry)
                            return level, entry
        return 0, None

    def put_first(self, va, size, is_global, fetch, entry):
        place = self.tlb.place(1, size, fetch)
        if place:
            array, own = place
            key = self.tlb.key(va, own, is_global)
            array.of(key[1]).put(key, entry)

    def fill(self, va, size, is_global, fetch, entry):
        for level in (1, 2):
            place = self.tlb.place(level, size, fetch)
            if place:
                array, own = place
                key = self.tlb.key(va, own, is_global)
                array.of(key[1]).put(key, entry)

    def forget(self, va, tables=True):
        mine = (self.tlb.pcid, "global")
        self.tlb.drop(
            lambda k, e: (
                k[2] == self.tlb.vpid
                and k[3] in mine
                and (k[1] << SHIFTS[k[0]]) >> e["page"] == (va & (1 << 57) - 1) >> e["page"]
            )
        )
        if tables:
            for level, array in self.walk.items():
                array.drop(lambda k, e, level=level: k == self.walk_key(level, va))

    def walk_once(self, va, a, cached):
        """Return what a walk finds, or None after a fault, and whether a walk cache was used."""
        start = None
        for level in sorted(self.walk) if cached else ():
            key = self.walk_key(level, va)
            entry = self.walk[level].of(key[0]).lru.get(key)
            if entry is not None:
                self.walk[level].of(key[0]).get(key)
                start = (level - 1, *entry)
                break
        if start:
            self.n["WALK_CACHE_HITS"] += 1
            self.n["LEVELS_SKIPPED"] += self.top - start[0]
        m, seen = Machine(self.words), []
        try:
            pa, shift = walk(m, self.g, va & (1 << 64) - 1, a, self.second, start, seen)
        except (PageFault, GeneralProtection, VmExit) as e:
            if self.second is None:
                m.changed.clear()
            self.account(m)
            return e, start is not None
        self.account(m)
        *tables, info = seen
        for (level, *_), (_, *below) in itertools.pairwise(tables):
            if level in self.walk:
                key = self.walk_key(level, va)
                self.walk[level].of(key[0]).put(key, below)
        return (pa, shift, info), start is not None

    def account(self, m):
        self.n["REFERENCES"] += m.references
        self.n["HOST_REFERENCES"] += m.host_references
        self.n["FLAGS_SET"] += len(m.changed)
        for at, value in m.changed.items():
            self.words[at // 8] = value

    def access(self, va, kind, user, ac=False):
        a, n, again = Access(kind, user, ac), self.n, False
        n["ACCESSES"] += 1
        top = 56 if self.top == 5 else 47
        if field_of(va, 63, top) not in (0, (1 << (64 - top)) - 1):
            n["WALKS"] += 1
            n["FAULTS"] += 1
            return
        level, entry = self.look_up(va & (1 << 57) - 1, kind == 2)
        if entry is None:
            n["WALKS"] += 1
        else:
            n["HITS_1" if level == 1 else "HITS_2"] += 1
            try:
                check_rights(self.g, a, *entry["rights"])
                fetch = 3 if entry["rights"][1] and getattr(self.second, "mode_based", 0) else 2
                again = not entry["host"][{2: fetch}.get(kind, int(a.writes))]
            except PageFault:
                again = True
            if not again and (not a.writes or entry["dirty"]):
                return
            n["DIRTY_WALKS"] += not again
            self.forget(va, tables=again)
        found, cached = self.walk_once(va, a, not again)
        if cached and isinstance(found, PageFault | GeneralProtection):
            self.forget(va)
            again = True
            found, _ = self.walk_once(va, a, False)
        if isinstance(found, VmExit):
            n["EXITS"] += 1
        elif isinstance(found, Exception):
            n["FAULTS"] += 1
            # Nothing is left for its page number. Entries of other parts of a large page may be:
            # SDM vol. 3A §4.10.4.1 demands them dropped of INVLPG, not of a fault.
            assert self.look_up(va & (1 << 57) - 1, kind == 2)[1] is None
        else:
            n["SPURIOUS_FAULTS"] += again
            _, shift, info = found
            host, host_dirty = self.second.last if self.second else ((True,) * 4, True)
            size = {12: "4K", 21: "2M", 30: "1G"}[shift]
            dirty = a.writes or (bit(info["leaf"], 6) and host_dirty)
            entry = {"rights": info["rights"], "dirty": dirty, "host": host}
            entry["page"] = info["guest shift"]
            is_global = bool(bit(info["leaf"], 8) and bit(self.g.cr4, 7))
            self.fill(va & (1 << 57) - 1, size, is_global, kind == 2, entry)

    # SDM vol. 3A §4.10.4.1
    def drop_walk(self, unwanted):
        for array in self.walk.values():
            array.drop(lambda k, e: unwanted(k))

    def invlpg(self, va):
        self.forget(va, tables=False)
        self.drop_walk(lambda k: k[1:] == (self.tlb.vpid, self.tlb.pcid))

    def invpcid(self, kind, pcid=0, va=0):
        t = self.tlb
        if kind == "address":
            t.drop(
                lambda k, e: (
                    k[2:] == (t.vpid, pcid)
                    and (k[1] << SHIFTS[k[0]]) >> e["page"] == (va & (1 << 57) - 1) >> e["page"]
                )
            )
            for level, array in self.walk.items():
                page = self.walk_key(level, va)[0]
                array.drop(lambda k, e, page=page: k == (page, t.vpid, pcid))
            return
        if kind == "single":
            t.drop(lambda k, e: k[2:] == (t.vpid, pcid))
            self.drop_walk(lambda k: k[1:] == (t.vpid, pcid))
            return
        t.drop(lambda k, e: k[2] == t.vpid and (kind == "all" or k[3] != "global"))
        self.drop_walk(lambda k: k[1] == t.vpid)

    def load_cr3(self, value):
        self.g.cr3 = value & (1 << 63) - 1
        self.tlb.pcid = value & 0xFFF if bit(self.g.cr4, 17) else 0
        if not value >> 63:
            self.invpcid("single", self.tlb.pcid)

    def enter(self, cr3, vpid):
        self.tlb.vpid = vpid
        self.load_cr3(cr3 | 1 << 63)

    def invvpid(self, kind, vpid=0, va=0):
        t = self.tlb
        if kind == "address":
            t.drop(
                lambda k, e: (
                    k[2] == vpid
                    and (k[1] << SHIFTS[k[0]]) >> e["page"] == (va & (1 << 57) - 1) >> e["page"]
                )
            )
            for level, array in self.walk.items():
                page = self.walk_key(level, va)[0]
                array.drop(lambda k, e, page=page: k[:2] == (page, vpid))
            return
        if kind == "all":
            t.drop(lambda k, e: k[2] != 0)
            self.drop_walk(lambda k: k[1] != 0)
            return
        t.drop(lambda k, e: k[2] == vpid and (kind == "single" or k[3] != "global"))
        self.drop_walk(lambda k: k[1] == vpid)

    def invept(self):
        self.tlb.drop(lambda k, e: True)
        self.drop_walk(lambda k: True)
        if isinstance(self.second, CachedEpt):
            self.second.cache.drop(lambda k, e: True)


@dataclass
class CachedEpt(EptTables):
    """EPT with a nested TLB."""

    cache: NaiveArray | None = None

    def translate(self, m, gpa, read, write, fetch, final):
        for low in (12, 21, 30):
            own = self.cache.of(gpa >> low)
            e = own.lru.get((low, gpa >> low))
            if e is None:
                continue
            base, rights, dirty = e
            by_user = self.mode_based and self.of_user_page and final
            wanted = (read, write, fetch and not by_user, fetch and by_user)
            allowed = all(r or not w for r, w in zip(rights, wanted, strict=True))
            if allowed and (not write or dirty):
                own.get((low, gpa >> low))
                self.last = rights, dirty
                return base | gpa & (1 << low) - 1, low
        pa, low = super().translate(m, gpa, read, write, fetch, final)
        self.cache.of(gpa >> low).put((low, gpa >> low), (pa >> low << low, *self.last))
        return pa, low
