"""Slow twins of pvmmu.x86, written from the manuals and from nothing else.

Page walks: Intel SDM vol. 3A ch. 4 and vol. 3C §28.3, AMD APM vol. 2 §15.25, one function for each
format, plain ints, exceptions for faults. TLBs: dictionaries in order of last use.
"""

from __future__ import annotations

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
    kind: int  # 0 read, 1 write, 2 fetch
    user: bool
    ac: bool = False


@dataclass
class Guest:
    """Registers, as plain numbers."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    maxphyaddr: int = 40
    pdptes: tuple | None = None  # PAE: the registers; None: in memory (AMD nested paging)

    @property
    def nxe(self) -> bool:
        return bool(bit(self.efer, 11)) and bool(bit(self.cr4, 5))


@dataclass
class Machine:
    """Physical memory, the entries changed by this walk, and what it did."""

    words: object
    changed: dict = field(default_factory=dict)
    references: int = 0
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

    exists = False

    def table(self, m, gpa):
        return gpa

    def table_write(self, m, gpa):
        return gpa

    def final(self, m, gpa, kind):
        return gpa, 63


# ---------------------------------------------------------------- first dimension


def error_code(g: Guest, a: Access, present: bool, reserved: bool) -> int:
    """SDM vol. 3A §4.7."""
    code = 0
    if present:
        code |= 1
    if a.kind == 1:
        code |= 2
    if a.user:
        code |= 4
    if reserved:
        code |= 8
    if a.kind == 2 and (bit(g.cr4, 20) or (bit(g.cr4, 5) and bit(g.efer, 11))):
        code |= 16
    return code


def check_rights(g: Guest, a: Access, writable: bool, user_page: bool, xd: bool) -> None:
    """SDM vol. 3A §4.6.1."""
    wp, smep, smap = bit(g.cr0, 16), bit(g.cr4, 20), bit(g.cr4, 21)
    ok = True
    if not a.user:
        if a.kind == 0:
            ok = not user_page or not smap or a.ac
        elif a.kind == 1:
            ok = (not smap or a.ac) and (not wp or writable) if user_page else not wp or writable
        else:
            ok = not (user_page and smep) and not (g.nxe and xd)
    else:
        if not user_page:
            ok = False
        elif a.kind == 1:
            ok = writable
        elif a.kind == 2:
            ok = not (g.nxe and xd)
    if not ok:
        raise PageFault(error_code(g, a, True, False))


def walk(m: Machine, g: Guest, va: int, a: Access, second=None):
    """Return physical address and page shift (the smaller of both dimensions)."""
    second = second or Identity()
    if bit(g.efer, 10):
        levels = 5 if bit(g.cr4, 12) else 4
        top = 56 if levels == 5 else 47
        if field_of(va, 63, top) not in (0, (1 << (64 - top)) - 1):
            raise GeneralProtection
        used, gpa, shift, rights = walk_long(m, g, va, a, second, levels)
        size = 8
    elif bit(g.cr4, 5):
        used, gpa, shift, rights = walk_pae(m, g, va, a, second)
        size = 8
    else:
        used, gpa, shift, rights = walk_32(m, g, va, a, second)
        size = 4
    check_rights(g, a, *rights)
    # §4.8: A in each entry used, D in the one that maps the page
    for i, entry_gpa in enumerate(used):
        flags = 0x20
        if i == len(used) - 1 and a.kind == 1:
            flags |= 0x40
        where = second.table_peek(m, entry_gpa) if second.exists else entry_gpa
        if m.peek(where, size) | flags != m.peek(where, size):
            level = m.level + len(used) - 1 - i
            where = second.table_write_at(m, entry_gpa, level) if second.exists else entry_gpa
            m.set_bits(where, size, flags)
    pa, host_shift = second.final(m, gpa, a.kind)
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
    pde = m.read(second.table(m, pde_at), 4)
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
        return [pde_at], pa, 22, (bit(pde, 1), bit(pde, 2), False)
    pte_at = (pde & 0xFFFFF000) + field_of(va, 21, 12) * 4
    pte = m.read(second.table(m, pte_at), 4)
    m.level = 1
    present_or_fault(g, a, pte)
    rights = (bit(pde, 1) and bit(pte, 1), bit(pde, 2) and bit(pte, 2), False)
    return [pde_at, pte_at], (pte & 0xFFFFF000) | field_of(va, 11, 0), 12, rights


def address(g, entry, low):
    return entry & ((1 << g.maxphyaddr) - 1) & ~((1 << low) - 1)


def walk_pae(m, g, va, a, second):
    """SDM vol. 3A §4.4; PDPTEs in memory: AMD APM vol. 2 §15.25.10."""
    i = field_of(va, 31, 30)
    if g.pdptes is not None:
        pdpte = g.pdptes[i]
    else:
        pdpte = m.read(second.table(m, (g.cr3 & 0xFFFFFFE0) + 8 * i), 8)
    m.level = 3
    present_or_fault(g, a, pdpte)
    wrong = field_of(pdpte, 2, 1) or field_of(pdpte, 8, 5) or pdpte >> g.maxphyaddr
    reserved_fault(g, a, wrong)
    pde_at = address(g, pdpte, 12) + field_of(va, 29, 21) * 8
    pde = m.read(second.table(m, pde_at), 8)
    m.level = 2
    present_or_fault(g, a, pde)
    reserved_fault(g, a, field_of(pde, 62, g.maxphyaddr) or (bit(pde, 63) and not g.nxe))
    if bit(pde, 7):
        reserved_fault(g, a, field_of(pde, 20, 13))
        pa = address(g, pde, 21) | field_of(va, 20, 0)
        return [pde_at], pa, 21, (bit(pde, 1), bit(pde, 2), bit(pde, 63))
    pte_at = address(g, pde, 12) + field_of(va, 20, 12) * 8
    pte = m.read(second.table(m, pte_at), 8)
    m.level = 1
    present_or_fault(g, a, pte)
    reserved_fault(g, a, field_of(pte, 62, g.maxphyaddr) or (bit(pte, 63) and not g.nxe))
    rights = (
        bit(pde, 1) and bit(pte, 1),
        bit(pde, 2) and bit(pte, 2),
        bit(pde, 63) or bit(pte, 63),
    )
    return [pde_at, pte_at], address(g, pte, 12) | field_of(va, 11, 0), 12, rights


def walk_long(m, g, va, a, second, levels):
    """SDM vol. 3A §4.5."""
    table = address(g, g.cr3, 12)
    used = []
    writable, user_page, xd = 1, 1, 0
    for level in range(levels, 0, -1):
        low = 12 + 9 * (level - 1)
        at = table + field_of(va, low + 8, low) * 8
        entry = m.read(second.table(m, at), 8)
        m.level = level
        present_or_fault(g, a, entry)
        if g.maxphyaddr < 52:
            reserved_fault(g, a, field_of(entry, 51, g.maxphyaddr))
        reserved_fault(g, a, bit(entry, 63) and not g.nxe)
        if level >= 4:
            reserved_fault(g, a, bit(entry, 7))
        page = level == 1 or (level in (2, 3) and bit(entry, 7))
        if page and level == 3:
            reserved_fault(g, a, field_of(entry, 29, 13))
        if page and level == 2:
            reserved_fault(g, a, field_of(entry, 20, 13))
        used.append(at)
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
    exists = True

    @property
    def flags_kept(self) -> bool:
        return bool(bit(self.eptp, 6))

    def table(self, m, gpa):
        # §28.3.3.2: with flags kept, accesses to guest paging structures are writes
        return self.translate(m, gpa, read=True, write=self.flags_kept, fetch=False, final=False)[0]

    def table_peek(self, m, gpa):
        """Where an entry is that this walk has read already."""
        quiet = Machine(m.words, m.changed.copy())
        return self.table(quiet, gpa)

    def table_write_at(self, m, gpa, level):
        if self.flags_kept:
            return self.table_peek(m, gpa)
        before = m.level
        m.level = level
        quiet = Machine(m.words, m.changed.copy())
        out = self.translate(quiet, gpa, read=False, write=True, fetch=False, final=False)[0]
        m.level = before
        return out

    def final(self, m, gpa, kind):
        return self.translate(m, gpa, kind == 0, kind == 1, kind == 2, final=True)

    def translate(self, m, gpa, read, write, fetch, final):
        levels = field_of(self.eptp, 5, 3) + 1
        qualification = read | write << 1 | fetch << 2 | 1 << 7 | final << 8
        if gpa >> (12 + 9 * levels):
            raise VmExit(48, qualification, gpa)
        table = self.eptp & ((1 << self.maxphyaddr) - 1) & ~0xFFF
        r = w = x = 1
        used = []
        for level in range(levels, 0, -1):
            low = 12 + 9 * (level - 1)
            at = table + field_of(gpa, low + 8, low) * 8
            e = m.read(at, 8)
            r, w, x = r & bit(e, 0), w & bit(e, 1), x & bit(e, 2)
            if field_of(e, 2, 0) == 0:
                raise VmExit(48, qualification | (r | w << 1 | x << 2) << 3, gpa)
            page = level == 1 or (level in (2, 3) and bit(e, 7))
            wrong = field_of(e, 2, 0) in (2, 6) or (
                field_of(e, 2, 0) == 4 and not self.execute_only
            )
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
        if (read and not r) or (write and not w) or (fetch and not x):
            raise VmExit(48, qualification | (r | w << 1 | x << 2) << 3, gpa)
        if self.flags_kept:
            for i, at in enumerate(used):
                m.set_bits(at, 8, 0x100 | (0x200 if write and i == len(used) - 1 else 0))
        e = m.peek(used[-1], 8)
        pa = e & ((1 << self.maxphyaddr) - 1) & ~((1 << low) - 1) | gpa & ((1 << low) - 1)
        return pa, low


@dataclass
class NptTables:
    """AMD APM vol. 2 §15.25: an ordinary walk by a user; the guest's tables are written."""

    host: Guest
    exists = True

    def table(self, m, gpa):
        return self.translate(m, gpa, 1, final=False)[0]

    def table_peek(self, m, gpa):
        return self.table(Machine(m.words, m.changed.copy()), gpa)

    def table_write_at(self, m, gpa, level):
        return self.table_peek(m, gpa)

    def final(self, m, gpa, kind):
        return self.translate(m, gpa, kind, final=True)

    def translate(self, m, gpa, kind, final):
        level = m.level
        a = Access(kind, user=True)
        width = 48 if bit(self.host.efer, 10) else 32
        if bit(self.host.efer, 10) and bit(self.host.cr4, 12):
            width = 57
        code = (1 << 32) if final else (1 << 33)
        host = Guest(self.host.cr0, self.host.cr3, self.host.cr4, self.host.efer,
                     self.host.maxphyaddr)  # fmt: skip
        # nested paging has no SMEP and SMAP (all accesses are the user's), but I/D needs NX
        host.cr4 &= ~(1 << 20 | 1 << 21)
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
        for i, at in enumerate(used):
            m.set_bits(at, size, 0x20 | (0x40 if kind == 1 and i == len(used) - 1 else 0))
        return pa, shift


def judge(words, g: Guest, va: int, a: Access, second=None) -> dict:
    """One access: everything that the kernels report."""
    m = Machine(words)
    out = {"vector": 0, "error": -1, "pa": 0, "shift": 0, "reason": 0, "qualification": 0, "gpa": 0}
    try:
        out["pa"], out["shift"] = walk(m, g, va, a, second)
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
