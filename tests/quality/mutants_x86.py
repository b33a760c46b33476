"""Breaks pvmmu.x86 in plausible ways and checks that each is caught.

Run: python tests/quality/mutants_x86.py [words of names]

Each mutant is a copy of the package with one edit. The checks are a sample of those in the tests:
emulators' corpora, slow twins, golden counts. They run with the JIT disabled, which is quicker than
compiling every mutant; kernels and plain Python are compared elsewhere
(test_x86_environments.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One way to be wrong: in a file, some text is another."""

    name: str
    file: str
    old: str
    new: str


WALK_MUTANTS = [
    Mutant("CR0.WP is ignored", "plan.py", "if user_mode or wp else 0", "if True else 0"),
    Mutant("WP counts for users, too", "plan.py", "if user_mode or wp else 0", "if wp else 0"),
    Mutant("SMEP is ignored", "plan.py", "smep if kind == FETCH else smap and not ac",
           "False if kind == FETCH else smap and not ac"),
    Mutant("keys of fetches, too", "plan.py", "if plain == FETCH or not registers.long:",
           "if not registers.long:"),
    Mutant("write-disable for reads, too", "plan.py", "no_write and plain == WRITE and checked",
           "no_write and checked"),
    Mutant("shadow stacks: R/W above does not matter", "walk_kernel.py",
           "if above & ~entry & _RW == _Z:", "if entry & _RW != _Z:"),
    Mutant("AMD's bit 8 is ignored", "plan.py", "if amd else 0", "if False else 0"),
    Mutant("SMEP for data, too", "plan.py", "smep if kind == FETCH else smap and not ac", "smep"),
    Mutant("SMAP with AC inverted", "plan.py", "smap and not ac):", "smap and ac):"),
    Mutant("SMAP for fetches, too", "plan.py", "smep if kind == FETCH else smap and not ac",
           "(smep or smap) if kind == FETCH else smap and not ac"),
    Mutant("I/D in every fetch", "plan.py", "if registers.nxe or smep else 0", "if True else 0"),
    Mutant("I/D not for SMEP", "plan.py", "if registers.nxe or smep else 0",
           "if registers.nxe else 0"),
    Mutant("U in no error code", "plan.py", "need, code = user, bits.PF_US",
           "need, code = user, 0"),
    Mutant("RSVD without P", "plan.py",
           "common[CODE_PRESENT], common[CODE_RESERVED] = bits.PF_P, bits.PF_P | bits.PF_RSVD\n"
           "    if registers",
           "common[CODE_PRESENT], common[CODE_RESERVED] = bits.PF_P, bits.PF_RSVD\n"
           "    if registers"),
    Mutant("XD is not reserved without NXE", "plan.py", "features, 0 if nxe else xd, amd)",
           "features, 0, amd)"),
    Mutant("canonical check one bit off", "plan.py", "1 << fmt.width - 1 if", "1 << fmt.width if"),
    Mutant("PSE-36 bits one off", "plan.py", "PSE36_SHIFT: Final = 19", "PSE36_SHIFT: Final = 20"),
    Mutant("PSE-36 one bit too few", "formats.py", 'high="M-20:13"', 'high="M-21:13"'),
    Mutant("PSE-36 reserved bits", "formats.py", 'Page("21:M-19"', 'Page("21:13"'),
    Mutant("CR4.PSE is ignored", "formats.py", 'high="M-20:13", feature="PSE"', 'high="M-20:13"'),
    Mutant("PS allowed in PML4E", "formats.py", 'Level(4, "PML4E", 39, 9, None, "51:M 7"',
           'Level(4, "PML4E", 39, 9, None, "51:M"'),
    Mutant("2-MiB pages: low bits not reserved", "formats.py", '_2M = Page("51:M 20:13"',
           '_2M = Page("51:M"'),
    Mutant("2-MiB pages: PAT reserved", "formats.py", '_2M = Page("51:M 20:13"',
           '_2M = Page("51:M 20:12"'),
    Mutant("1-GiB pages of 2 MiB", "formats.py", '_1G = Page("51:M 29:13"',
           '_1G = Page("51:M 20:13"'),
    Mutant("PAE: bits 62:52 ignored", "formats.py", '_PAE_4K = Page("62:M"',
           '_PAE_4K = Page("51:M"'),
    Mutant("MAXPHYADDR one too large", "formats.py", '_4K = Page("51:M", "M-1:12")\n_PAE',
           '_4K = Page("51:M-1", "M-1:12")\n_PAE'),
    Mutant("PAE PDPTEs have rights", "formats.py", "in_register=True,\n            rights=False",
           "in_register=True,\n            rights=True"),
    Mutant("PAE CR3 aligned to 4 KiB", "registers.py", 'mask("31:5" if self',
           'mask("31:12" if self'),
    Mutant("D set on reads", "walk_kernel.py", "if leaf and write else _Z", "if leaf else _Z"),
    Mutant("D set in every level", "walk_kernel.py", "if leaf and write else _Z",
           "if write else _Z"),
    Mutant("no A above the page", "walk_kernel.py", "work[d, FLAGS] = first[d, ACCESSED] |",
           "work[d, FLAGS] = (first[d, ACCESSED] if leaf else _Z) |"),
    Mutant("only the last entry's rights", "walk_kernel.py",
           "rights &= (entry ^ first[COMMON, INVERT])",
           "rights = (entry ^ first[COMMON, INVERT])"),
    Mutant("rights fault says not present", "walk_kernel.py",
           "PF, code | first[COMMON, CODE_PRESENT]", "PF, code"),
    Mutant("reserved bits before presence", "walk_kernel.py",
           "if entry & first[COMMON, PRESENT] == _Z:",
           "if entry & first[COMMON, PRESENT] == _Z and entry & first[d, TABLE_RESERVED] == _Z:"),
    Mutant("offset of 4 KiB in large pages", "walk_second.py",
           "offset = address & ((_ONE << plan[d, SHIFT]) - _ONE)",
           "offset = address & ((_ONE << np.uint64(12)) - _ONE)"),
    Mutant("an entry used twice is listed twice", "walk_second.py",
           "while i < end and work[i, UPDATE_PA] != at:", "while i < end:"),
    Mutant("4-byte entries: always the lower half", "walk_second.py",
           "((at & np.uint64(4)) << _3)) & plan", "_Z) & plan"),
    Mutant("lockstep: writes leave D clear", "walk_block.py", "| ~(e[j] | clean[j])", ""),
    Mutant("lockstep: reserved bits of tables", "walk_block.py", "bad |= e[j] & reserved\n",
           "bad |= _Z\n"),
    Mutant("lockstep: SMAP and SMEP", "walk_block.py", "(reserved | forbid[j])", "reserved"),
    Mutant("lockstep: users do not need U", "walk_block.py", "(by_user & need_user)", "_Z"),
    Mutant("lockstep: block of mixed page sizes", "walk_run.py",
           "some & first[d, LEAF] != _Z and all_leaves(e, first[d, LEAF])",
           "some & first[d, LEAF] != _Z"),
    Mutant("lockstep: stale common prefix", "walk_run.py", "moved = spread | (v0 ^ common_va)",
           "moved = spread"),
    Mutant("EPT: guest tables are read, not written", "plan.py",
           "table = r | w if ept.keeps_flags else r",
           "table = r"),
    Mutant("EPT: writable without readable", "formats.py", "bad_rights=(0b0010, 0b0100, 0b0110,",
           "bad_rights=(0b0100,"),
    Mutant("EPT: D on every access", "walk_second.py",
           "if i == d and plan[ACCESS + kind, NEED] & plan[COMMON, WRITABLE] != _Z:", "if i == d:"),
    Mutant("EPT: final translation forgotten", "walk_kernel.py",
           "pa = walk_second(words, second, second_root, gpa, kind, _Z, s)",
           "pa = gpa"),
    Mutant("EPT: memory type 7 accepted", "formats.py", "bad_types=(2, 3, 7)", "bad_types=(2, 3)"),
    Mutant("EPT: qualification without the rights", "plan.py", "common[REPORTED] = r | w | x",
           "common[REPORTED] = 0"),
    Mutant("NPT: guest tables are read, not written", "plan.py", "common[TABLE_KIND] = WRITE",
           "common[TABLE_KIND] = READ"),
    Mutant("NPT: supervisor pages for the guest", "plan.py", "access[READ] = user, 0, code",
           "access[READ] = 0, 0, code"),
    Mutant("NPT: PDPTEs in registers", "walk.py",
           "PAE_IN_MEMORY if fmt is PAE and isinstance(second, Npt)",
           "fmt if fmt is PAE and isinstance(second, Npt)"),
]  # fmt: skip
MMU_MUTANTS = [
    Mutant("INVLPG keeps walk caches of other pages", "mmu_flush.py",
           "CONTEXT_MASK, _OWN, 1, 0, 1)", "CONTEXT_MASK, _OWN, 1, 1, 1)"),
    Mutant("INVLPG leaves global pages", "mmu_flush.py",
           "CONTEXT_MASK, _OWN, 1, 0, 1)", "CONTEXT_MASK, _OWN, 1, 0, 0)"),
    Mutant("INVPCID of a PCID is of the running one", "mmu_flush.py",
           "Event.INVPCID_SINGLE: (_ONE_CONTEXT, CONTEXT_MASK, _PCID_GIVEN",
           "Event.INVPCID_SINGLE: (_ONE_CONTEXT, CONTEXT_MASK, _OWN"),
    Mutant("INVPCID of all but global pages takes these, too", "mmu_flush.py",
           "Event.INVPCID_ALL_NONGLOBAL: (_NONGLOBAL_OF_VPID",
           "Event.INVPCID_ALL_NONGLOBAL: (VPID_MASK"),
    Mutant("INVVPID of all takes the host's", "mmu_flush.py",
           "range(1, 16 if source", "range(0, 16 if source"),
    Mutant("INVEPT keeps the nested TLB", "mmu_flush.py", "if op == _INVEPT:", "if False:"),
    Mutant("CR3 bit 63 is ignored", "mmu_kernel.py",
           "if op == _LOAD_CR3 and a[i] >> _NOFLUSH == _Z:", "if op == _LOAD_CR3:"),
    Mutant("a fault keeps the walk cache that led to it", "mmu_kernel.py",
           "_forget(m, cpu, va, _TRUE)\n        again, cached", "again, cached"),
    Mutant("writes leave D clear", "mmu_kernel.py",
           "if not again and (kind != WRITE or m.data[number, MARKS] & _DIRTY != _Z):",
           "if not again:"),
    Mutant("walk caches forget EPT rights", "mmu_tlb.py",
           "work[d + 1, ENTRY_RIGHTS], marks", "_ONES, marks"),
    Mutant("walk caches forget rights", "mmu_tlb.py",
           "work[d + 1, HOST_TABLE], work[d, RIGHTS_AFTER]", "work[d + 1, HOST_TABLE], _ONES"),
    Mutant("walk caches of all contexts are one", "mmu_tlb.py",
           "key = (va & _LINEAR) >> first[depths[k], SHIFT] | own",
           "key = (va & _LINEAR) >> first[depths[k], SHIFT]"),
    Mutant("LRU does not note uses", "tlb_sets.py", "if slot > base:\n        _to_front",
           "if False:\n        _to_front"),
    Mutant("PLRU points at the last use", "tlb_sets.py",
           "bits = bits & ~bit if right else bits | bit",
           "bits = bits | bit if right else bits & ~bit"),
    Mutant("a nested TLB forgets rights", "walk_second.py",
           "if need & ~rights != _Z or (dirty and is_dirty == _Z):",
           "if dirty and is_dirty == _Z:"),
    Mutant("stale: freed frames are not noticed", "mmu_stale.py",
           "freed[frame] > data[number, BORN]", "False"),
    Mutant("stale: fewer rights are more", "mmu_stale.py",
           "lost = before & ~now & rights", "lost = now & ~before & rights"),
    Mutant("stale: a promise marks nothing", "mmu_stale.py", "& ~(_OVERDUE | _LATE) | bit",
           "& ~(_OVERDUE | _LATE)"),
    Mutant("stale: a promise is for all addresses", "mmu_stale.py",
           "if va > last or top < begin:", "if False:"),
    Mutant("stale: cleared D is harmless", "mmu_stale.py",
           "lost | rekeyed != _Z or (data[number, MARKS] & _DIRTY != _Z and not dirty)",
           "lost | rekeyed != _Z"),
    Mutant("stale: freed tables are harmless", "mmu_stale.py",
           "return _TABLE if data[number, MARKS] & _OVERDUE != _Z else _TABLE_WINDOW",
           "return _TABLE_WINDOW"),
    Mutant("a switch forgets that global pages are everybody's", "tlb_run.py",
           "change[0] if tag >> _GLOBAL & _ONE else change[1]", "change[1]"),
    Mutant("reach: sets one bit too narrow", "reach_kernel.py",
           "at = (below + (page & below)) << _4", "at = (below + (page & (below >> _ONE))) << _4"),
]  # fmt: skip


def broken(mutant: Mutant, place: Path) -> Path:
    """Copy the package to a place and break it there."""
    shutil.copytree(ROOT / "pvmmu", place / "pvmmu", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "data").symlink_to(ROOT / "data")
    path = place / "pvmmu" / "x86" / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} is not in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))
    return place


def caught_by(mutant: Mutant) -> str:
    """Name of the check that catches a mutant; empty if none does."""
    with tempfile.TemporaryDirectory() as place:
        tests = ROOT / "tests"
        path = os.pathsep.join(
            map(str, (broken(mutant, Path(place)), tests, tests / "twins", tests / "x86"))
        )
        env = os.environ | {
            "NUMBA_DISABLE_JIT": "1",
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        checks = str(ROOT / "tests" / "quality" / "mutant_checks_x86.py")
        likely_first = ["mmu"] if mutant in MMU_MUTANTS else []
        run = subprocess.run(
            [sys.executable, "-W", "ignore", checks, *likely_first],
            env=env, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if run.returncode == 0:
            return ""
        lines = [x for x in run.stdout.splitlines() if x.startswith("caught by ")]
        if not lines:
            raise SystemExit(f"{mutant.name}: the checks did not run: {run.stderr[-600:]}")
        return lines[-1].removeprefix("caught by ")


def main() -> None:
    """Run the mutants whose names have all the words given; all without any."""
    words = sys.argv[1:]
    chosen = [m for m in WALK_MUTANTS + MMU_MUTANTS if all(w in m.name for w in words)]
    survivors = []
    for m in chosen:
        check = caught_by(m)
        print(f"{m.name:45s} {check or 'SURVIVES'}", flush=True)
        survivors += [m.name] * (not check)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
