"""Page walks against the expectations of kvm-unit-tests (x86/access.c), given a checkout of them.

    python tests/quality/kvm_unit_tests.py CHECKOUT [--levels 4]

Nothing of theirs is in this repository. Their functions that say what an access does to one page
(`ac_test_legal`, `ac_emulate_access` and what these use) are cut out of access.c and compiled with
a loop over all combinations of flags: fault, error code and both entries afterwards, for each legal
one, on a processor with 36 address bits. The same entries and accesses go through `walk_many`.
Takes minutes and 2 GB.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pvmmu.x86 import Memory, Tables, bits, formats, walk_many

BASE, PAGE_AT, LARGE_AT = 0xFFFF_9234_0000_0000, 0x200_0000, 0x200_0000
LOOP = """
int main(void) {
    ac_test_t t; memset(&t, 0, sizeof t);
    pt_element_t pde, pte;
    invalid_mask = AC_FEP_MASK;
    do {
        if (!ac_test_legal(&t)) continue;
        pde = pte = 0; t.pdep = &pde; t.ptep = &pte;
        t.ignore_pde = 0;
        t.expected_pde = (t.flags & AC_PDE_ACCESSED_MASK ? PT_ACCESSED_MASK : 0)
                         | (t.flags & AC_PDE_DIRTY_MASK ? PT_DIRTY_MASK : 0);
        t.expected_pte = (t.flags & AC_PTE_ACCESSED_MASK ? PT_ACCESSED_MASK : 0)
                         | (t.flags & AC_PTE_DIRTY_MASK ? PT_DIRTY_MASK : 0);
        t.expected_fault = 0; t.expected_error = PFERR_PRESENT_MASK;
        if (t.flags & AC_ACCESS_TWICE_MASK) {
            ac_emulate_access(&t, t.flags & ~AC_ACCESS_WRITE_MASK & ~AC_ACCESS_FETCH_MASK
                              & ~AC_ACCESS_USER_MASK);
            t.expected_fault = 0; t.expected_error = PFERR_PRESENT_MASK; t.ignore_pde = 0;
        }
        ac_emulate_access(&t, t.flags);
        unsigned out[4] = { t.flags, t.expected_fault ? t.expected_error : ~0u,
                            (unsigned)(t.expected_pde & ~t.ignore_pde),
                            (unsigned)t.expected_pte | (t.ignore_pde ? 1u << 31 : 0) };
        fwrite(out, sizeof out, 1, stdout);
    } while (ac_test_bump_one(&t));
    return 0;
}
"""
HEAD = """
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
typedef unsigned long pt_element_t;
#define F(x) (!!((flags) & x##_MASK))
#define PT_ACCESSED_MASK (1ul << 5)
#define PT_DIRTY_MASK (1ul << 6)
#define PFERR_PRESENT_MASK 1u
#define PFERR_WRITE_MASK 2u
#define PFERR_USER_MASK 4u
#define PFERR_RESERVED_MASK 8u
#define PFERR_FETCH_MASK 16u
#define PFERR_PK_MASK 32u
static int invalid_mask;
"""


def expectations(checkout: Path, folder: Path) -> tuple[np.ndarray, dict[str, int]]:
    """Return rows of flags, error code (all ones: no fault), PDE and PTE; and bits of flags."""
    text = (checkout / "x86" / "access.c").read_text()
    names = re.search(r"enum \{(.*?)NR_AC_FLAGS,", text, re.S)
    if names is None:
        sys.exit(f"{checkout}: x86/access.c has no list of flags")
    flags = re.findall(r"\b(AC_\w+)_BIT,", re.sub(r"/\*.*?\*/", "", names[1], flags=re.S))
    parts = [re.search(r"enum \{.*?NR_AC_FLAGS,\n\};", text, re.S)]
    parts += [re.search(rf"#define {x}_MASK .*", text) for x in flags]
    parts += [re.search(r"typedef struct \{[^}]*\} ac_test_t;", text)]
    for function in ("ac_test_legal", "ac_test_bump_one", "ac_test_permissions",
                     "ac_emulate_access"):  # fmt: skip
        parts.append(re.search(rf"^static [\w ]+\b{function}\(.*?^\}}", text, re.S | re.M))
    if None in parts:
        sys.exit(f"{checkout}: x86/access.c is not as it was in June 2026")
    source = folder / "expected.c"
    source.write_text(HEAD + "\n".join(m[0] for m in parts if m) + LOOP)
    subprocess.run(["cc", "-O2", "-w", "-o", str(folder / "expected"), str(source)], check=True)
    with open(folder / "rows", "wb") as out:
        subprocess.run([str(folder / "expected")], stdout=out, check=True)
    rows = np.fromfile(folder / "rows", np.uint32).reshape(-1, 4)
    return rows, {name.removeprefix("AC_"): i for i, name in enumerate(flags)}


def entries(flags: np.ndarray, bit: dict[str, int], level: str) -> np.ndarray:
    """The entry that their test makes of flags (P, R/W, U/S, A, D, XD, reserved ones, a key)."""
    where = {"PRESENT": 0, "WRITABLE": 1, "USER": 2, "ACCESSED": 5, "DIRTY": 6, "NX": 63,
             "BIT51": 51, "BIT36": 36}  # fmt: skip
    where |= {"BIT13": 13, "PSE": 7} if level == "PDE" else {}
    out = np.zeros(flags.size, np.uint64)
    for name, at in where.items():
        out |= (flags >> bit[f"{level}_{name}"] & 1).astype(np.uint64) << np.uint64(at)
    return out


def compare(rows: np.ndarray, bit: dict[str, int], levels: int) -> tuple[int, int]:
    """Return how many combinations agree, and how many there are."""
    state = [bit[x] for x in ("CPU_EFER_NX", "CPU_CR0_WP", "CPU_CR4_SMEP", "CPU_CR4_PKE", "PKU_AD",
                              "PKU_WD", "PKU_PKEY", "PDPTE_NO_WRITABLE")]  # fmt: skip
    states = sum((rows[:, 0] >> b & 1) << i for i, b in enumerate(state))
    good = 0
    for number in np.unique(states).tolist():
        own = rows[states == number]
        nx, wp, smep, pke, ad, wd, key, read_only = (number >> i & 1 for i in range(8))
        fmt = formats.FIVE_LEVEL if levels == 5 else formats.FOUR_LEVEL
        pde, pte = entries(own[:, 0], bit, "PDE"), entries(own[:, 0], bit, "PTE")
        large = pde & np.uint64(bits.PS) != 0
        pde |= np.where(large, np.uint64(LARGE_AT | key << 59), np.uint64(2 * key << 59))
        pte |= np.uint64(PAGE_AT | key << 59)
        kinds, which = np.unique(pde, return_inverse=True)
        leaves, leaf = np.unique(pte, return_inverse=True)
        if leaves.size > 512:
            sys.exit("more entries than a table has")
        memory = Memory(kinds.size + 64)
        t = Tables(memory, fmt)
        base = BASE if levels == 4 else 0xFF12_9234_0000_0000
        place = np.uint64(base) + (np.arange(kinds.size, dtype=np.uint64) << np.uint64(21))
        t.map(place, PAGE_AT)
        for i, entry in enumerate(kinds.tolist()):
            at = t.entry_at(int(place[i]) & ((1 << fmt.width) - 1), 2)
            table = t.load(at) & 0xF_FFFF_F000
            memory.words[table // 8 : table // 8 + leaves.size] = leaves
            t.store(at, entry if entry & bits.PS else entry | table)
        if read_only:
            for at in {t.entry_at(int(p) & ((1 << fmt.width) - 1), 3) for p in place.tolist()}:
                t.store(at, t.load(at) & ~bits.RW)
        cr4 = bits.CR4_PAE | bits.CR4_PGE | smep * bits.CR4_SMEP | pke * bits.CR4_PKE
        r = t.registers(
            maxphyaddr=36,
            cr0=bits.CR0_PE | bits.CR0_PG | wp * bits.CR0_WP,
            cr4=cr4 | (bits.CR4_LA57 if levels == 5 else 0), pkru=0x30 | wd << 3 | ad << 2,
            efer=bits.EFER_LME | bits.EFER_LMA | nx * bits.EFER_NXE,
        )  # fmt: skip
        va = place[which] + (leaf.astype(np.uint64) << np.uint64(12))
        access = own[:, 0] >> bit["ACCESS_FETCH"] & 1
        kind = np.where(access, 2, own[:, 0] >> bit["ACCESS_WRITE"] & 1).astype(np.uint8)
        user = (own[:, 0] >> bit["ACCESS_USER"] & 1).astype(np.uint8)
        good += judged(memory.words, r, va, kind, user, own, bit, large)
    return good, len(rows)


def judged(words, r, va, kind, user, own, bit, large):  # type: ignore[no-untyped-def]
    """How many accesses have the expected fault, error code and flags."""
    w = walk_many(words, r, va, kind, user)
    code = np.where(w.error_code < 0, 0xFFFF_FFFF, w.error_code).astype(np.uint32)
    agree = code == own[:, 1]
    # flags: what both accesses set, in the entry that maps the page and in the one above
    twice = own[:, 0] >> bit["ACCESS_TWICE"] & 1 != 0
    first = walk_many(words, r, va, 0, False)
    done, before = code == 0xFFFF_FFFF, twice & (first.vector == 0)
    accessed = np.where(done | before, 0x20, 0).astype(np.uint32)
    dirty = np.where(done & (kind == 1), 0x40, 0).astype(np.uint32)
    flag = {x: own[:, 0] >> i & 1 for x, i in bit.items()}
    had = {x: flag[f"{x}_ACCESSED"] << 5 | flag[f"{x}_DIRTY"] << 6 for x in ("PDE", "PTE")}
    pde = had["PDE"] | accessed | np.where(large, dirty, 0).astype(np.uint32)
    pte = had["PTE"] | np.where(large, 0, accessed | dirty).astype(np.uint32)
    ignored = own[:, 3] >> 31 != 0
    keep = np.where(ignored, 0xFFFF_FFDF, 0xFFFF_FFFF).astype(np.uint32)
    agree &= (pde & keep) == (own[:, 2] & keep)
    agree &= pte == (own[:, 3] & np.uint32(0x7FFF_FFFF))
    return int(agree.sum())


def main() -> int:
    """Compare, and say how many agree; 1 if not all do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--levels", type=int, choices=(4, 5), default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, bit = expectations(options.checkout, Path(folder))
    good, all_ = compare(rows, bit, options.levels)
    print(f"{options.levels} levels: {good:,} of {all_:,} combinations agree")
    return int(good != all_)


if __name__ == "__main__":
    sys.exit(main())
