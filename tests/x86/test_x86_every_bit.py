"""Every bit of CR0, CR3, CR4, EFER and of entries has an effect, is ignored or refused.

What is ignored is typed in from the manuals here, and from nowhere else; a bit that does nothing
and is not on the list fails. SDM vol. 3A §2.5, §4.5 (tables 4-12 to 4-20), vol. 3C tables
29-1 to 29-7; AMD APM vol. 2 §3.1, §5.3.
"""

import itertools

import numpy as np
import pytest

from pvmmu.x86 import (
    Ept,
    Event,
    Memory,
    Mmu,
    Registers,
    Tables,
    bits,
    formats,
    nest,
    walk_many,
    walk_nested_many,
)
from pvmmu.x86.bits import mask
from pvmmu.x86.errors import PvmmuError, WalkError

FORMATS = {
    "32-bit": formats.TWO_LEVEL, "PAE": formats.PAE, "4-level": formats.FOUR_LEVEL,
    "5-level": formats.FIVE_LEVEL,
}  # fmt: skip
ALL = bits.P | bits.RW | bits.US
BASE = 0x4000_0000
#: Flags of pages in a row: a user's, read-only ones, a supervisor's, shadow stacks, no execution.
PAGES = (
    ALL, bits.P | bits.US, bits.P | bits.RW, bits.P, bits.P | bits.US | bits.D | bits.A,
    bits.P | bits.D | bits.A, ALL | bits.G, ALL | bits.A | bits.D,
)  # fmt: skip


def tables(name):
    fmt = FORMATS[name]
    t = Tables(Memory(1024 if name == "32-bit" else 700), fmt)
    for i, flags in enumerate(PAGES):
        t.map(BASE + i * 4096, 0x9000 + i * 4096, flags=flags)
        if fmt.entry_bytes == 8:
            t.map(BASE + (16 + i) * 4096, 0x9000, flags=flags | bits.XD)
        if fmt.canonical:
            t.map(BASE + (32 + i) * 4096, 0x9000, flags=flags | 5 << 59)
            high = 0xFFFF_8000_0000_0000 if name == "4-level" else 0xFF00_0000_0000_0000
            t.map(high + i * 4096, 0x9000, flags=flags)
    large = 22 if name == "32-bit" else 21
    t.map(0x8000_0000, 0, large)
    return t


def addresses(name):
    out = [BASE + i * 4096 for i in range(48)] + [0x8000_0000, 0x8000_5123, 0x1234_5000]
    if FORMATS[name].canonical:
        high = 0xFFFF_8000_0000_0000 if name == "4-level" else 0xFF00_0000_0000_0000
        out += [high + i * 4096 for i in range(8)]
        out += [BASE | 1 << 50, BASE | 3 << 57, high ^ 1 << 60, high ^ 1 << 50, BASE | 1 << 63]
    return np.array(out, np.uint64)


def seen(words, r, va, geometry_=None, second=None):
    """Everything that a processor makes of all kinds of access, and what its caches keep."""
    kinds = [k for k in range(7) if k not in (3, 4) or r.cr4 & bits.CR4_CET]
    rows = list(itertools.product(range(len(va)), kinds, (0, 1), (0, 1)))
    i, kind, user, ac = (np.array(x) for x in zip(*rows, strict=True))
    how = va[i], kind.astype(np.uint8), user.astype(np.uint8), ac.astype(np.uint8)
    try:
        if second is None:
            w = walk_many(words.copy(), r, *how)
        else:
            w = walk_nested_many(words.copy(), r, second, *how)
    except WalkError as e:
        return "outside" if "outside" in str(e) else "refused"
    out = [x.tobytes() for x in (w.vector, w.error_code, w.pa, w.page_shift, w.update_pa)]
    if second is not None:
        return out, w.exit_reason.tobytes(), w.exit_qualification.tobytes()
    if geometry_ is not None and set(w.vector) - {13, 14}:
        try:
            mmu = Mmu(words.copy(), r, geometry_)
            for event in (Event.LOAD_CR3, Event.INVLPG, Event.LOAD_CR3):
                mmu.access(va[:24], user=True)
                mmu.do(event, r.cr3 if event == Event.LOAD_CR3 else BASE + (1 << 30))
            mmu.access(va[:24], user=True)
        except PvmmuError:
            return out, "refused by Mmu"
        return out, tuple(mmu.counts().values()), mmu.entries()["pcid"].tolist()
    return out


def world(name, vendor, rich):
    """Registers in which each bit of CR0, CR3, CR4 and EFER can show what it does."""
    t = tables(name)
    r = t.registers(vendor=vendor)
    changes = {"pkru": 0x55555554, "pkrs": 0x55555554}
    if rich:
        changes["cr4"] = r.cr4 ^ (bits.CR4_SMEP | bits.CR4_SMAP)
        changes["cr3"] = r.cr3 | 5  # a PCID, once there are any
    return t, t.registers(vendor=vendor, **changes)


IGNORED = {
    # CR0: MP, EM, TS, ET, NE, AM, NW and CD together, and reserved ones that MOV ignores
    ("cr0", "Intel"): mask("30:17 15:1"), ("cr0", "AMD"): mask("30:17 15:1"),
    # VME PVI TSD DE MCE PCE OSFXSR OSXMMEXCPT UMIP VMXE SMXE FSGSBASE OSXSAVE KL UINTR FRED
    ("cr4", "Intel"): mask("0 1 2 3 6 8 9 10 11 13 14 16 18 19 25 32"),
    ("cr4", "AMD"): mask("0 1 2 3 6 8 9 10 11 16 18 32"),
    # SCE; SVME LMSLE FFXSR MCOMMIT INTWB AIBRSE
    ("efer", "Intel"): mask("0"), ("efer", "AMD"): mask("0 12 13 14 17 18 21"),
}  # fmt: skip
REFUSED = {
    ("cr0", "Intel"): mask("63:32"), ("cr0", "AMD"): mask("63:32"),
    ("cr4", "Intel"): mask("63:33 31:29 26 15"),
    ("cr4", "AMD"): mask("63:33 31:24 19 15:13"),
    ("efer", "Intel"): mask("63:12 9 7:1"), ("efer", "AMD"): mask("63:22 19 16 9 7:1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("vendor", ["Intel", "AMD"])
@pytest.mark.parametrize("register", ["cr0", "cr4", "efer"])
def test_every_bit_of_a_control_register(register, vendor):
    effect = refused = 0
    for name, rich in itertools.product(FORMATS, (False, True)):
        t, r = world(name, vendor, rich)
        g, va = "skylake", addresses(name)
        before = seen(t.memory.words, r, va, g)
        kept = {
            f: getattr(r, f)
            for f in ("cr0", "cr3", "cr4", "efer", "maxphyaddr", "vendor", "pkru", "pkrs")
        }
        for i in range(64):
            try:
                changed = Registers(**{**kept, register: kept[register] ^ 1 << i})
            except WalkError as e:
                assert register.upper() in str(e).upper() or "paging" in str(e), (i, e)
                refused |= 1 << i
                continue
            if seen(t.memory.words, changed, va, g) != before:
                effect |= 1 << i
    ignored, always = IGNORED[register, vendor], REFUSED[register, vendor]
    assert always & ~refused == 0 and always & effect == 0
    assert ignored & effect == 0, hex(ignored & effect)
    # those that no paging can do without are refused when they are clear
    needed = refused & mask({"cr0": "31 0", "cr4": "5", "efer": ""}[register])
    assert (effect | ignored | always | needed) == (1 << 64) - 1, hex(effect | ignored | always)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("vendor", ["Intel", "AMD"])
def test_every_bit_of_cr3(name, vendor):
    """Address bits, a PCID, LAM; PWT and PCD are of caches; the rest ignored or refused."""
    for pcide in (0, bits.CR4_PCIDE) if FORMATS[name].canonical else (0,):
        t, r = world(name, vendor, False)
        kept = {f: getattr(r, f) for f in ("cr0", "cr3", "cr4", "efer", "vendor")}
        kept["cr4"] |= pcide
        va, g, effect, refused = addresses(name), "skylake", 0, 0
        before = seen(t.memory.words, Registers(**kept), va, g)
        for i in range(64):
            try:
                changed = Registers(**{**kept, "cr3": r.cr3 ^ 1 << i})
            except WalkError as e:
                assert "CR3" in str(e)
                refused |= 1 << i
                continue
            if seen(t.memory.words, changed, va, g) != before:
                effect |= 1 << i
        low = mask("4:0") if name == "PAE" else mask("11:0")
        top = mask("39:12") if FORMATS[name].canonical else mask("31:0") & ~low
        lam = mask("62:61") if FORMATS[name].canonical and vendor == "Intel" else 0
        want = top | lam | (mask("11:0") if pcide else 0)
        assert effect == want, (hex(effect), hex(want))
        assert refused == ((1 << 64) - 1) & ~(want | low)


#: Level of 4-level paging and whether its entry maps a page -> bits that change no translation.
TABLE = "3 4 6 11:9 62:52"
ENTRIES = {
    (4, False): TABLE, (3, False): TABLE, (2, False): TABLE,
    (3, True): "3 4 11:9 12 58:52", (2, True): "3 4 11:9 12 58:52", (1, True): "3 4 7 11:9 58:52",
}  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize("vendor", ["Intel", "AMD"])
@pytest.mark.parametrize(("level", "leaf"), ENTRIES)
def test_every_bit_of_an_entry(level, leaf, vendor):
    """Of 4-level paging; bit 8 of tables: ignored by Intel, reserved by AMD but in PDEs."""
    t = Tables(Memory(64), formats.FOUR_LEVEL)
    shift = 12 if level == 1 or not leaf else {2: 21, 3: 30}[level]
    va = np.array([BASE, BASE + 4096], np.uint64)
    accessed = ALL | bits.A
    t.map(BASE, 0x4000_0000 if shift > 12 else 0x9000, shift, accessed, accessed)
    cr4 = t.registers().cr4 | bits.CR4_PKE | bits.CR4_CET
    r = t.registers(cr4=cr4, pkru=0x5555_5554, vendor=vendor)
    at, g = t.entry_at(BASE, level), "skylake"
    before, entry, effect = seen(t.memory.words, r, va, g), t.load(t.entry_at(BASE, level)), 0
    for i in range(64):
        words = t.memory.words.copy()
        words[at // 8] = np.uint64(entry ^ 1 << i)
        if seen(words, r, va, g) != before:
            effect |= 1 << i
    ignored = mask(ENTRIES[level, leaf])
    if not leaf and (vendor == "Intel" or level == 2):
        ignored |= 1 << 8
    assert effect == ((1 << 64) - 1) & ~ignored, (hex(effect), hex(~ignored & (1 << 64) - 1))


#: Bits of EPT entries without a meaning here: of controls that are off, and plainly ignored ones.
EPT_ENTRIES = {
    (4, False): "11 9 63:52", (3, False): "11 9 63:52", (2, False): "11 9 63:52",
    (2, True): "4 6 11 63:52", (1, True): "4 6 7 11 63:52",
}  # fmt: skip


@pytest.mark.compiled
@pytest.mark.parametrize("controls", [(), ("mode-based execute",)])
@pytest.mark.parametrize(("level", "leaf"), EPT_ENTRIES)
def test_every_bit_of_an_ept_entry(level, leaf, controls):
    """With the accessed and dirty flags kept; bit 10 counts under mode-based execute alone."""
    guest, gpa = Memory(1024), 0x20_9000  # not in a page with tables
    t = Tables(guest, formats.FOUR_LEVEL)
    t.map(BASE, gpa)
    t.map(BASE + 4096, gpa, flags=bits.P | bits.RW)
    host = Memory(2048, seed=2)
    second = nest(guest, host, formats.EPT_FOUR_LEVEL, 21 if leaf and level == 2 else 12)
    ept = Ept(second.second().eptp, controls=controls)
    for x in (4, 3, 2, 1):  # a user may fetch, too, and the accessed flag is set
        if x >= (2 if leaf and level == 2 else 1):
            place = second.entry_at(gpa, x)
            second.store(place, second.load(place) | 1 << 10 | bits.EPT_A)
    at = second.entry_at(gpa, level)
    va, r = np.array([BASE, BASE + 4096], np.uint64), t.registers()
    before, entry, effect = seen(host.words, r, va, None, ept), second.load(at), 0
    for i in range(64):
        words = host.words.copy()
        words[at // 8] = np.uint64(entry ^ 1 << i)
        if seen(words, r, va, None, ept) != before:
            effect |= 1 << i
    ignored = mask(EPT_ENTRIES[level, leaf]) | (0 if controls else 1 << 10)
    assert effect == ((1 << 64) - 1) & ~ignored, (hex(effect), hex(~ignored & (1 << 64) - 1))
