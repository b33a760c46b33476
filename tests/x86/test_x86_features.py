"""Protection keys, shadow stacks, LAM, UAI, LASS, memory encryption, TCE: in walks and MMUs."""

import numpy as np
import pytest
from test_x86_mmu import ALL_CACHES, BASE, PAGE

from pvmmu.x86 import (
    Count,
    Ept,
    Event,
    Memory,
    Mmu,
    Registers,
    Tables,
    bits,
    formats,
    load_geometry,
    make_geometry,
    walk_many,
    walk_one,
)
from pvmmu.x86.errors import TlbError, WalkError
from pvmmu.x86.registers import NO_EPT_CONTROLS

FLAGS = bits.P | bits.US | bits.RW | bits.A | bits.D
TAG = 0x2A << 57


def space(entry=FLAGS, **changes):
    t = Tables(Memory(32), formats.FOUR_LEVEL)
    t.map(BASE, 0x5000, flags=entry)
    cr4 = t.registers().cr4 | changes.pop("cr4", 0)
    return t, t.registers(cr4=cr4, **changes)


def code(t, r, kind=0, user=True, ac=False, va=BASE):
    return int(walk_many(t.memory.words, r, [va], kind, user, ac).error_code[0])


def test_a_protection_key_forbids_data_and_no_fetches():
    """SDM vol. 3A §4.6.2; error code bit 5."""
    t, r = space(FLAGS | 3 << 59, cr4=bits.CR4_PKE, pkru=1 << 6)
    assert [code(t, r, k) for k in range(3)] == [0x25, 0x27, -1]
    t, r = space(FLAGS | 3 << 59, cr4=bits.CR4_PKE, pkru=2 << 6)
    assert [code(t, r, k) for k in range(3)] == [-1, 0x27, -1]
    off = t.registers(pkru=2 << 6)
    assert [code(t, off, k) for k in range(3)] == [-1, -1, -1]


def test_a_supervisor_key():
    t, r = space(FLAGS & ~bits.US | 5 << 59, cr4=bits.CR4_PKS, pkrs=2 << 10)
    assert [code(t, r, k, False) for k in range(3)] == [-1, 0x23, -1]
    without_wp = Registers(r.cr0 & ~bits.CR0_WP, r.cr3, r.cr4, r.efer, pkrs=r.pkrs)
    assert code(t, without_wp, 1, False) == -1


def test_implicit_accesses_have_no_excuse_from_smap():
    """SDM vol. 3A §4.6: EFLAGS.AC matters to explicit ones alone; CPL 3 makes no user of one."""
    t, r = space()
    assert [code(t, r, k, False, True) for k in (0, 1)] == [-1, -1]
    assert [code(t, r, k, u, True) for k in (5, 6) for u in (0, 1)] == [1, 1, 3, 3]


@pytest.mark.parametrize("user", [False, True])
def test_shadow_stacks(user):
    """SDM vol. 3A §4.6.1: R/W clear and D set in the last entry alone, of the mode's own pages."""
    own = bits.P | bits.A | bits.D | (bits.US if user else 0)
    t, r = space(own, cr4=bits.CR4_CET)
    u = 4 * user
    assert [code(t, r, k, user) for k in (3, 4)] == [-1, -1]
    assert code(t, r, 1, user) == 3 | u  # no plain write
    assert code(t, r, 3, not user) == 0x41 | (4 - u)
    for entry in (own & ~bits.D, own | bits.RW):
        t, r = space(entry, cr4=bits.CR4_CET)
        assert [code(t, r, k, user) for k in (3, 4)] == [0x41 | u, 0x43 | u]
    t, r = space(own, cr4=bits.CR4_CET)
    t.store(x := t.entry_at(BASE, 2), t.load(x) & ~bits.RW)
    assert code(t, r, 3, user) == 0x41 | u


def test_shadow_stacks_need_wp():
    t, r = space()
    with pytest.raises(WalkError, match=r"CR4\.CET is set without CR0\.WP"):
        Registers(r.cr0 & ~bits.CR0_WP, r.cr3, r.cr4 | bits.CR4_CET, r.efer)
    with pytest.raises(TlbError, match=r"CR4\.CET is 0"):
        Mmu(t.memory.words, r, make_geometry((4, 4))).access(BASE, Event.SHADOW_READ)


LAM = [  # bits of CR3, of CR4, address, seen
    (bits.CR3_LAM_U57, 0, BASE | TAG & ~(1 << 63), True),
    (bits.CR3_LAM_U48, 0, BASE | 0x7FFF << 48, True),
    (bits.CR3_LAM_U57, 0, BASE | 1 << 50, False),
    (bits.CR3_LAM_U57 | bits.CR3_LAM_U48, 0, BASE | 1 << 50, False),  # U57 is the stronger
    (0, bits.CR4_LAM_SUP, BASE | 1 << 50, False),  # a user's address
    (0, 0, BASE | 1 << 57, False),
    (bits.CR3_LAM_U48, 0, BASE | 1 << 63, False),  # bit 63 is never a tag
]


@pytest.mark.parametrize(("cr3", "cr4", "va", "seen"), LAM)
def test_linear_address_masking(cr3, cr4, va, seen):
    t, r = space(cr4=cr4)
    r = Registers(r.cr0, r.cr3 | cr3, r.cr4, r.efer)
    got = walk_many(t.memory.words, r, [va, va], [0, 2], True)
    assert got.vector.tolist() == [0 if seen else 13, 13]
    mmu = Mmu(t.memory.words, r, make_geometry((4, 4)))
    mmu.access(np.array([BASE, va], np.uint64))
    assert mmu.counts()[Count.HITS_1] == seen
    one = walk_one(t.memory.words, r, va)
    assert any(c.what == "tag of the address" and c.passed for c in one.checks) == seen


def test_addresses_of_supervisors_are_masked_by_cr4():
    t = Tables(Memory(32), formats.FOUR_LEVEL)
    t.map(0xFFFF_8000_0000_0000, 0x5000, flags=FLAGS & ~bits.US)
    r = t.registers(cr4=t.registers().cr4 | bits.CR4_LAM_SUP)
    tagged = [0x8000_8000_0000_0000, 0xFFFF_8000_0000_0000]
    assert not walk_many(t.memory.words, r, tagged, 0, False).vector.any()
    assert walk_many(t.memory.words, r, tagged, 2, False).vector.tolist() == [13, 0]


def test_upper_address_ignore():
    t, r = space()
    r = Registers(r.cr0, r.cr3, r.cr4, r.efer | bits.EFER_UAIE, vendor="AMD")
    va = [BASE | 0x7F << 57, BASE | 1 << 56, BASE]
    assert walk_many(t.memory.words, r, va).vector.tolist() == [0, 13, 0]
    assert walk_many(t.memory.words, r, va, 2).vector.tolist() == [13, 13, 0]


def test_linear_address_space_separation():
    """SDM vol. 3A §4.2: by bit 63, without tables; a supervisor's data under SMAP alone."""
    t, r = space(cr4=bits.CR4_LASS)
    high = 0xFFFF_8000_0000_0000
    vectors = walk_many(
        t.memory.words, r, [high, high, BASE, BASE, BASE, BASE, BASE], [0, 2, 0, 2, 0, 0, 5],
        [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1],
    ).vector  # fmt: skip
    assert vectors.tolist() == [13, 13, 0, 13, 13, 0, 13]
    w = walk_one(t.memory.words, r, BASE, "fetch", user=False)
    assert [c.what for c in w.checks] == ["LASS"] and w.vector == 13


def test_lam_cannot_change_under_an_mmu():
    t, r = space()
    mmu = Mmu(t.memory.words, r, make_geometry((4, 4)))
    with pytest.raises(TlbError, match="changes LAM"):
        mmu.do(Event.LOAD_CR3, r.cr3 | bits.CR3_LAM_U57)


def test_memory_encryption_takes_address_bits():
    """APM vol. 2 §7.10: the C-bit is no address bit; the bits that it costs are reserved."""
    amd = {"vendor": "AMD", "maxphyaddr": 48, "c_bit": 47, "reduction": 5}
    t, r = space(FLAGS | 1 << 47, **amd)
    t.store(x := t.entry_at(BASE, 2), t.load(x) | 1 << 47)
    assert walk_many(t.memory.words, r, [BASE]).pa[0] == 0x5000
    assert Registers(r.cr0, r.cr3 | 1 << 47, r.cr4, r.efer, **amd).root == r.root
    for bit in (43, 46, 48, 51):
        t, r = space(FLAGS | 1 << bit, **amd)
        assert code(t, r) == 0xD, bit
    t, r = space(FLAGS | 1 << 47, maxphyaddr=47)
    assert code(t, r) == 0xD
    for wrong in ({"c_bit": 47}, {**amd, "c_bit": 20}, {**amd, "reduction": 17}):
        with pytest.raises(WalkError, match=r"c_bit|reduction"):
            space(**wrong)


@pytest.mark.parametrize("tce", [False, True])
def test_invlpg_and_the_translation_cache_extension(tmp_path, tce):
    """EFER.TCE (APM vol. 2 §5.5.3): tables of other addresses stay in the walk caches."""
    path = tmp_path / "caches.toml"
    path.write_text(ALL_CACHES)
    t = Tables(Memory(32), formats.FOUR_LEVEL)
    t.map([BASE, BASE + PAGE], [0x5000, 0x6000])
    r = t.registers(vendor="AMD", efer=t.registers().efer | tce * bits.EFER_TCE)
    mmu = Mmu(t.memory.words, r, load_geometry(path))
    mmu.access(BASE)
    mmu.do(Event.INVLPG, BASE + (1 << 30))
    before = mmu.counts()[Count.REFERENCES]
    mmu.access(BASE + PAGE)
    assert mmu.counts()[Count.REFERENCES] - before == (1 if tce else 4)


def test_mmus_check_keys_and_shadow_stacks_of_cached_entries():
    """Rights of keys are those of the access, and TLB entries know which key they have."""
    t, r = space(FLAGS | 3 << 59, cr4=bits.CR4_PKE | bits.CR4_CET, pkru=2 << 6)
    t.map(BASE + PAGE, 0x6000, flags=FLAGS & ~bits.RW)
    mmu = Mmu(t.memory.words, r, make_geometry((4, 4)))
    mmu.access([BASE, BASE + PAGE])
    mmu.access([BASE, BASE + PAGE], [Event.READ, Event.SHADOW_WRITE])
    assert mmu.counts()[Count.HITS_1] == 2 and mmu.counts()[Count.FAULTS] == 0
    mmu.access([BASE, BASE], [Event.WRITE, Event.SHADOW_READ])
    assert mmu.counts()[Count.FAULTS] == 2


def test_a_changed_key_needs_a_flush():
    t, r = space(cr4=bits.CR4_PKE)
    mmu = Mmu(t.memory.words, r, make_geometry((4, 4)), validate=True)
    mmu.access(BASE)
    at = t.entry_at(BASE)
    mmu.do(Event.STORE, at, t.load(at) | 1 << 59)
    mmu.do(Event.PROMISE, 0, 1 << 47)
    mmu.access(BASE)
    assert mmu.harmful == 1


@pytest.mark.parametrize("name", NO_EPT_CONTROLS)
def test_controls_that_are_not_modelled_are_refused_by_name(name):
    with pytest.raises(WalkError, match=name):
        Ept(0x101E, controls=(name,))


def test_a_control_that_does_not_exist_and_one_in_the_pointer():
    with pytest.raises(WalkError, match="no EPT control 'mode-based'"):
        Ept(0x101E, controls=("mode-based",))
    with pytest.raises(WalkError, match="supervisor shadow-stack"):
        Ept(0x101E | bits.EPTP_SSS)


def test_kinds_by_name():
    t, r = space(bits.P | bits.US | bits.A | bits.D, cr4=bits.CR4_CET)
    w = walk_one(t.memory.words, r, BASE, "shadow-stack write")
    assert w.vector == 0 and any(c.what == "page of a shadow stack" for c in w.checks)
    bad = walk_one(t.memory.words, r, BASE, "implicit write")
    assert bad.error_code == 3 and np.all([c.what != "LASS" for c in bad.checks])
