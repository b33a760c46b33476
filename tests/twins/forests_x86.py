"""Random memories full of page tables, for comparing kernels with twins."""

from __future__ import annotations

import numpy as np
from naive_x86 import Guest

from pvmmu.x86 import bits
from pvmmu.x86.registers import Ept, Npt, Registers

#: Frames 0 to 31 look like a guest's tables, 32 to 63 like a second dimension's.
FRAMES = 64
MODES = {
    "32-bit": (bits.CR4_PSE, 0),
    "PAE": (bits.CR4_PAE, 0),
    "4-level": (bits.CR4_PAE, bits.EFER_LME | bits.EFER_LMA),
    "5-level": (bits.CR4_PAE | bits.CR4_LA57, bits.EFER_LME | bits.EFER_LMA),
}
SECONDS = ("EPT4", "EPT4-AD", "EPT5-AD", "NPT 32-bit", "NPT PAE", "NPT 4-level", "NPT 5-level")


def pick(rng, p, bit, shape):
    return np.where(rng.random(shape) < p, np.uint64(bit), np.uint64(0))


def features(rng, wide, wp):
    """Random settings of what few kernels use: bits of CR3, CR4 and EFER, and other fields."""
    cr3 = cr4 = efer = 0
    more = {"vendor": "AMD" if rng.random() < 0.3 else "Intel"}
    flags = [bits.CR4_PKE] + [bits.CR4_CET] * wp
    if more["vendor"] == "AMD":
        if rng.random() < 0.5 and wide:
            more |= {"maxphyaddr": 48, "c_bit": 45, "reduction": 5}
        efer |= bits.EFER_UAIE if rng.random() < 0.3 else 0
    else:
        flags += [bits.CR4_PKS, bits.CR4_LAM_SUP]
        cr4 |= bits.CR4_LASS if rng.random() < 0.15 else 0
        if wide:
            cr3 = int(rng.integers(4)) << 61 if rng.random() < 0.5 else 0
    for flag in flags:
        cr4 |= flag if rng.random() < 0.5 else 0
    for name in ("pkru", "pkrs"):
        more[name] = int(rng.integers(1 << 32)) & int(rng.integers(1 << 32))
    return cr3, cr4, efer, more


def registers(rng, mode, root_frame, rough=1.0, **changes):
    """Random settings of everything that matters."""
    cr4, efer = MODES[mode]
    for flag in (bits.CR4_SMEP, bits.CR4_SMAP, bits.CR4_PGE):
        cr4 |= flag if rng.random() < 0.5 else 0
    if mode == "32-bit" and rng.random() < 0.3:
        cr4 &= ~bits.CR4_PSE
    efer |= bits.EFER_NXE if rng.random() < 0.6 else 0
    cr0 = bits.CR0_PG | bits.CR0_PE | (bits.CR0_WP if rng.random() < 0.5 else 0)
    cr3, more = root_frame << 12, {"maxphyaddr": 40}
    if rough >= 0.3 and rng.random() < 0.6:
        wide = "level" in mode
        a, b, c, fields = features(rng, wide, bool(cr0 & bits.CR0_WP))
        cr3, cr4, efer, more = cr3 | a, cr4 | b, efer | c, more | fields
    return Registers(cr0, cr3, cr4, efer, **{**more, **changes})


def twin_of(r, pdptes=None):
    """The same registers for the twin."""
    return Guest(r.cr0, r.cr3, r.cr4, r.efer, r.maxphyaddr, pdptes, r.vendor == "AMD", r.pkru,
                 r.pkrs, r.c_bit, r.reduction)  # fmt: skip


def entries(rng, frames, rough, mode, shape):
    """Entries of a kernel's format; `rough` is how much is out of the ordinary."""
    e = rng.choice(np.asarray(frames, np.uint64), shape) << np.uint64(12)
    large = rng.random(shape) < 0.1 * rough
    e = np.where(large, e & np.uint64(0xFFC00000) | np.uint64(bits.PS), e)
    # a large page elsewhere than at 0, or with reserved bits
    e |= np.where(large, pick(rng, 0.3, 1 << 22, shape) | pick(rng, 0.1, 1 << 15, shape), 0)
    for bit, p in ((bits.P, 0.05), (bits.RW, 0.15), (bits.US, 0.15), (bits.A, 0.5), (bits.D, 0.5)):
        e |= pick(rng, 1 - p * rough, bit, shape)
    for bit in (bits.PWT, bits.PCD, bits.G, 1 << 9, 1 << 11):
        e |= pick(rng, 0.2, bit, shape)
    if mode != "32-bit":
        e |= pick(rng, 0.1 * rough, bits.XD, shape) | pick(rng, 0.01 * rough, 1 << 45, shape)
        # bits that are ignored, but reserved in PAE entries
        e |= pick(rng, 0.01 * rough if mode == "PAE" else 0.2, 1 << 55, shape)
    if "level" in mode:
        keys = rng.integers(0, 16, shape).astype(np.uint64) << np.uint64(bits.KEY_SHIFT)
        e |= np.where(rng.random(shape) < 0.5, keys, np.uint64(0))
    return e


def ept_entries(rng, frames, rough, leaf, shape):
    e = rng.choice(np.asarray(frames, np.uint64), shape) << np.uint64(12)
    if leaf:
        e = np.broadcast_to(
            np.resize(np.arange(32, dtype=np.uint64), shape[-1]) << np.uint64(12), shape
        ).copy()
        types = rng.integers(0, 8, shape).astype(np.uint64)
        e |= np.where(rng.random(shape) < 0.1 * rough, types, np.uint64(6)) << np.uint64(3)
    else:
        large = rng.random(shape) < 0.05 * rough
        e = np.where(large, np.uint64(bits.PS | 6 << 3), e)
        e |= pick(rng, 0.01 * rough, 1 << 4, shape)
    for bit, p in ((1, 0.04), (2, 0.06), (4, 0.06), (bits.EPT_A, 0.5), (bits.EPT_D, 0.5)):
        e |= pick(rng, 1 - p * rough, bit, shape)
    odd = rng.random(shape) < 0.05 * rough
    rights = rng.integers(0, 8, shape).astype(np.uint64)
    e = np.where(odd, e & ~np.uint64(7) | rights, e)
    by_user = pick(rng, 0.8 if rough else 1, 1 << 10, shape)
    return e | pick(rng, 0.01 * rough, 1 << 45, shape) | by_user


class Forest:
    """A memory, registers and perhaps a second dimension, all random.

    Tables of level *k* point to tables of level *k* - 1, most of the time: four frames for each of
    five levels of the guest's (from frame 0, deepest last), six for each of the second dimension's.
    """

    def __init__(self, seed: int, mode: str, second: str | None = None, rough: float = 1.0):
        rng = self.rng = np.random.default_rng(seed)
        self.words = np.zeros(FRAMES * 512, np.uint64)
        frames = self.words.reshape(FRAMES, 512)
        depth = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[mode]
        for level in range(depth):
            own = np.arange(4 * level, 4 * level + 4)
            below = own + 4 if level + 1 < depth else np.arange(20, 32)
            self._fill(frames, own, below, rough, mode)
        if mode == "PAE":
            frames[:4, :4] &= np.uint64(0xFFFFFE19)
            frames[:4, :4] |= pick(rng, 0.9 if rough else 1, 1, (4, 4))
        self.rough = rough
        self.registers = registers(rng, mode, int(rng.integers(4)), rough)
        self.second = None if second is None else self._second(frames, second, rough)
        self.depth = depth

    def _fill(self, frames, own, below, rough, mode):
        rng = self.rng
        if mode != "32-bit":
            frames[own] = entries(rng, below, rough, mode, (len(own), 512))
        else:
            e = entries(rng, below, rough, mode, (len(own), 1024)).astype(np.uint32)
            e |= pick(rng, 0.05 * rough, 1 << 14, e.shape).astype(np.uint32) * ((e >> 7) & 1)
            frames[own] = e.view(np.uint64)
        if rough:  # some entries lead anywhere, some tables are used at two levels
            cells = rng.random((len(own), 512)) < 0.03
            anywhere = rng.integers(0, 32, (len(own), 512)).astype(np.uint64) << np.uint64(12)
            value = frames[own] & ~np.uint64(0xFF000) | anywhere
            frames[own] = np.where(cells, value, frames[own])

    def _second(self, frames, name, rough):
        rng = self.rng
        if name.startswith("EPT"):
            depth = int(name[3])
            for level in range(depth):
                own = np.arange(32 + 6 * level, 38 + 6 * level)
                leaf = level + 1 == depth
                frames[own] = ept_entries(rng, own + 6, rough, leaf, (6, 512))
            keeps = bits.EPTP_AD if "AD" in name else 0
            root = 32 + int(rng.integers(6))
            return Ept(
                root << 12 | (depth - 1) << 3 | 6 | keeps, execute_only=bool(rng.integers(2)),
                controls=("mode-based execute",) * int(rng.integers(2)),
            )  # fmt: skip
        mode = name[4:]
        wide = mode != "32-bit"
        depth = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[mode]
        for level in range(depth):
            own = np.arange(32 + 6 * level, 38 + 6 * level)
            leaf = level + 1 == depth
            size = 512 if wide else 1024
            e = entries(rng, own + 6, rough * 0.5, mode, (6, size))
            if depth - level >= 3:  # bit 8 is reserved there (AMD)
                e = e & ~np.uint64(bits.G) | pick(rng, 0.03 * rough, bits.G, (6, size))
            width = np.uint64(0xFFFFF000)
            if leaf:
                identity = np.resize(np.arange(32, dtype=np.uint64), size) << np.uint64(12)
                e = e & ~(width | np.uint64(bits.PS)) | identity
            elif rough:
                e = np.where(e & np.uint64(bits.PS), e & ~width, e)
            frames[own] = e if wide else e.astype(np.uint32).view(np.uint64)
        if mode == "PAE":
            frames[32:38, :4] &= np.uint64(0xFFFFFE19)
            frames[32:38, :4] |= np.uint64(1)
        return Npt(registers(rng, mode, 32 + int(rng.integers(6)), 0.0, vendor="AMD"))

    def accesses(self, n: int):
        """Addresses that reach all levels, and kinds of access."""
        rng = self.rng
        if self.registers.format.width == 32:
            va = rng.integers(0, 1 << 32, n, np.uint64)
        else:
            va = rng.integers(0, 1 << self.registers.format.width, n, np.uint64)
            sign = np.uint64(1 << self.registers.format.width - 1)
            va = np.where(va & sign, va | ~(sign - np.uint64(1)), va)
            va = np.where(rng.random(n) < 0.02, va ^ np.uint64(1 << 62), va)
            if self.registers.modifies_addresses:  # tags
                tags = rng.integers(0, 1 << 15, n, np.uint64) << np.uint64(48)
                va = np.where(rng.random(n) < 0.4, va ^ tags, va)
        kinds = list(range(3))
        if self.rough >= 0.3 and rng.random() < 0.5:
            kinds += [5, 6] + [3, 4] * bool(self.registers.cr4 & bits.CR4_CET)
        kind = rng.choice(np.array(kinds, np.uint8), n)
        user, ac = (rng.integers(0, 2, n).astype(np.uint8) for _ in range(2))
        return va, kind, user, ac
