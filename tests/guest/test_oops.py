"""Oopses: every form in which kernels print one, public logs, contradictions, the command."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from forests_x86 import MODES, Forest

from pvmmu.cli import main
from pvmmu.guest.oops.explain import explain, ranges
from pvmmu.guest.oops.text import OopsError, read_oopses
from pvmmu.x86 import walk_one
from pvmmu.x86.entries import UNKNOWN, walk_entries
from pvmmu.x86.errors import WalkError
from pvmmu.x86.plan import KINDS

TRIED = (32, 36, 39, 40, 43, 46, 48, 52)
LONG = {"pgd": "PGD", "p4d": "P4D", "pud": "PUD", "pmd": "PMD", "pte": "PTE"}
SHORT = {"pdpt": "*pdpt", "pde": "*pde", "pte32": "*pte"}
with open(ROOT / "tests" / "data" / "oops" / "public.csv", newline="") as f:
    ROWS = list(csv.DictReader(f))


def as_log(row):
    """The row as a kernel of its kind prints it."""
    out = [
        f"BUG: unable to handle page fault for address: {row['address']}",
        f"#PF: error_code({row['error_code']})",
        " ".join(f"{name} {row[k]}" for k, name in LONG.items() if row[k]),
        " ".join(f"{name} = {row[k]}" for k, name in SHORT.items() if row[k]),
        " ".join(f"{k.upper()}: {row[k]}" for k in ("cr0", "cr3", "cr4") if row[k]),
    ]
    return "\n".join(x for x in out if x)


@pytest.mark.parametrize("row", ROWS, ids=[r["name"] for r in ROWS])
def test_public_logs(row):
    [oops] = read_oopses(as_log(row))
    x = explain(oops)
    want = row["agrees_with_maxphyaddr"]
    expected = list(TRIED) if want.startswith("all") else [int(n) for n in want.split(",") if n]
    assert [m for m in TRIED if m in x.holds] == expected
    assert not x.contradictions
    assert ranges(x.holds) in str(x)


X86_64 = "PGD 1a2b067 PUD 1a2c067 PMD 1a2d067 PTE 0"
FORMS = {
    # 2.4, i386: two levels, error code without 0x
    "2.4": ("""Unable to handle kernel NULL pointer dereference at virtual address 00000008
 printing eip:
c0118a0c
*pde = 00000000
Oops: 0002
CPU:    0
EIP:    0010:[<c0118a0c>]    Not tainted
EFLAGS: 00010246
""", "32-bit", 8, 2, "bit 0 (P) of *pde is 0"),
    "2.6, i386": ("""BUG: unable to handle kernel paging request at virtual address f7f14000
 printing eip:
c01a2b3c
*pde = 00007067 *pte = 37f14161
Oops: 0003 [#1]
SMP
EIP:    0060:[<c01a2b3c>]    Not tainted VLI
EFLAGS: 00010286   (2.6.18-4-686 #1)
CR0: 8005003b CR2: f7f14000 CR3: 37a01000 CR4: 000006d0
""", "32-bit", 0xF7F14000, 3, "bit 1 (R/W) of *pte is 0"),
    "PAE": ("""BUG: unable to handle kernel paging request at f7e1d005
IP: [<c04e2f5a>] foo+0x1a/0x40
*pdpt = 0000000001ea0001 *pde = 000000003242f067 *pte = 8000000000000173
Oops: 0011 [#1] SMP
CR0: 80050033 CR2: f7e1d005 CR3: 01ea4000 CR4: 000006f0
""", "PAE", 0xF7E1D005, 0x11, "bit 63 (XD) of *pte is 1"),
    "x86-64 before 2.6.11": ("""Unable to handle kernel paging request at ffffff0000001000 RIP:
<ffffffff80123456>{foo+16}
PML4 103027 PGD 104027 PMD 0
Oops: 0000 [1] SMP
CR2: ffffff0000001000 CR3: 0000000000101000 CR4: 00000000000006e0
""", "4-level", 0xFFFFFF0000001000, 0, "bit 0 (P) of PMD is 0"),
    "2.6, x86-64": (f"""Unable to handle kernel NULL pointer dereference at 0000000000000008 RIP:
 [<ffffffff80123456>] foo+0x10/0x20
{X86_64}
Oops: 0002 [1] SMP
""", "4-level", 8, 2, "bit 0 (P) of PTE is 0"),
    "(null)": (f"""[   12.3] BUG: unable to handle kernel NULL pointer dereference at    (null)
[   12.345679] IP: [<          (null)>]           (null)
[   12.345680] {X86_64}
[   12.345681] Oops: 0010 [#1] SMP
""", "4-level", 0, 0x10, "bit 0 (P) of PTE is 0"),
    "lines apart, quoted": ("""> BUG: kernel NULL pointer dereference, address: 0000000000000010
> [    1.0] #PF: supervisor read access in kernel mode
> [    1.0] #PF: error_code(0x0000) - not-present page
> [    1.0] PGD 10a05f067
> [    1.0] P4D 10a05f067
> [    1.0] PUD 0
> [    1.0] Oops: Oops: 0000 [#1] PREEMPT SMP PTI
""", "4-level", 16, 0, "bit 0 (P) of PUD is 0"),
    "5 levels": ("""BUG: unable to handle page fault for address: ff110010c4237000
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 5d201067 P4D 5d202067 PUD 5d203067 PMD 5d204067 PTE 0
Oops: 0002 [#1] SMP NOPTI
CR2: ff110010c4237000 CR3: 0000000005d20000 CR4: 0000000000771ef0
""", "5-level", 0xFF110010C4237000, 2, "bit 0 (P) of PTE is 0"),
    "user's, corrupted": ("""java: Corrupted page table at address 7fef83000000
PGD 100978067 PUD 102382067 PMD 104d61067 PTE b1bdd42acd15e423
Bad pagetable: 000f [#1] SMP
""", "4-level", 0x7FEF83000000, 15, "reserved bit 51 of PTE"),
    "BAD": ("""Corrupted page table at address 7f8896d91f48
PGD 8000000111903067 P4D 8000000111903067 PUD 10b325067 PMD ffe7a0414d080067
BAD
Bad pagetable: 000d [#1] SMP PTI
""", "4-level", 0x7F8896D91F48, 13, "of PMD (0xffe7a0414d080067)"),
    "a large page": ("""BUG: unable to handle page fault for address: ffff888001000040
#PF: supervisor write access in kernel mode
#PF: error_code(0x0003) - permissions violation
PGD 3c01067 P4D 3c01067 PUD 3c02067 PMD 80000000010001e1
Oops: Oops: 0003 [#1] SMP
""", "4-level", 0xFFFF888001000040, 3, "bit 1 (R/W) of PMD is 0"),
    "a key": ("""BUG: unable to handle page fault for address: 00007fff00001000
#PF: user read access in user mode
#PF: error_code(0x0025) - protection keys violation
PGD 100001067 P4D 100001067 PUD 100002067 PMD 100003067 PTE 8800000100004067
CR2: 00007fff00001000 CR3: 0000000100000000 CR4: 0000000000770ef0
PKRU: 55555554
""", "4-level", 0x7FFF00001000, 0x25, "protection key 1"),
    "no entries": ("a.out[77]: segfault at 8 ip 0000000000401136 sp 00007ffd error 4 in a[1000]",
                   None, 8, 4, "no entries are printed"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_kernels_print(form):
    text, fmt, address, code, blame = FORMS[form]
    [oops] = read_oopses(text)
    assert (oops.address, oops.error_code) == (address, code)
    x = explain(oops)
    if fmt is None:
        assert x.walk is None
    else:
        assert x.format == fmt and x.holds
    assert blame in x.blame
    assert not x.contradictions, x.contradictions


def test_several_in_one_log_and_what_is_unknown():
    text = "\n".join(["noise", FORMS["2.4"][0], "noise", FORMS["BAD"][0], FORMS["PAE"][0]])
    a, b, c = map(explain, read_oopses(text))
    assert (a.format, b.format, c.format) == ("32-bit", "4-level", "PAE")
    assert a.oops.line == 2 and b.oops.bad
    assert any("MAXPHYADDR" in u for u in b.unknown)
    assert any("CR4" in u for u in a.unknown) and not any("CR4" in u for u in c.unknown)


def test_an_entry_in_high_memory_is_not_known():
    text = FORMS["2.6, i386"][0].replace(" *pte = 37f14161", "")
    x = explain(read_oopses(text)[0])
    assert x.walk.vector == UNKNOWN and "high memory" in " ".join(x.unknown)


CONTRADICTIONS = [
    ("5 levels", "error_code(0x0002)", "error_code(0x000a)", "QEMU"),
    ("5 levels", "error_code(0x0002)", "error_code(0x0003)", "all entries are present, but"),
    ("a large page", "error_code(0x0003)", "error_code(0x0002)", "not present, but all are"),
    ("a large page", "010001e1", "010001e3", "spurious"),
    ("5 levels", "CR2: ff110010c4237000", "CR2: ff11000000000000", "CR2"),
    ("5 levels", "write access", "read access", "read access in"),
    ("2.6, i386", "*pde = 00007067", "*pde = 000071e7", "large page"),
    ("lines apart, quoted", "address: 0000000000000010", "address: 0800000000000010", "canonical"),
    ("PAE", "CR4: 000006f0", "CR4: 000006d0", "CR4"),
]


@pytest.mark.parametrize(("form", "old", "new", "says"), CONTRADICTIONS)
def test_logs_that_contradict_the_manual_or_themselves(form, old, new, says):
    text = FORMS[form][0]
    assert old in text
    x = explain(read_oopses(text.replace(old, new))[0])
    assert any(says in c for c in x.contradictions), x.contradictions


@pytest.mark.parametrize("text", ["", "nothing", "BUG: unable to handle page fault somewhere"])
def test_texts_without_a_fault(text):
    with pytest.raises(OopsError):
        read_oopses(text)


def test_the_command(capsys, monkeypatch, tmp_path):
    path = tmp_path / "log"
    path.write_text(FORMS["BAD"][0])
    picture = tmp_path / "walk.png"
    assert main(["oops", str(path), "--figure", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "reserved bit" in said and "holds for MAXPHYADDR: 32 to 50" in said
    assert picture.read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FORMS["2.4"][0].encode())))
    assert main(["oops", "-", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["address"] == 8 and facts["format"] == "32-bit"
    path.write_text(FORMS["a large page"][0].replace("0x0003", "0x0002"))
    assert main(["oops", str(path)]) == 1
    assert main(["oops", str(tmp_path / "none")]) == 2
    path.write_text("hello")
    assert main(["oops", str(path)]) == 2
    assert "no page fault" in capsys.readouterr().err


@pytest.mark.parametrize("mode", MODES)
def test_known_entries_are_walked_as_memory_is(mode):
    """Verdict, path and checks of `walk_one`, from the entries that it read."""
    unknown = 0
    for seed in range(5):
        forest = Forest(seed, mode)
        for va, kind, user, ac in zip(*forest.accesses(50), strict=True):
            how = (KINDS[kind], bool(user), bool(ac))
            if forest.registers.modifies_addresses:
                continue
            try:
                want = walk_one(forest.words, forest.registers, int(va), *how)
            except WalkError:
                continue
            entries = {r.level: r.entry for r in want.path}
            got = walk_entries(forest.registers, int(va), entries, *how)
            for name in ("vector", "error_code", "pa", "page_shift", "level", "path", "checks"):
                assert getattr(got, name) == getattr(want, name), name
            if len(entries) > 1:
                del entries[min(entries)]
                assert walk_entries(forest.registers, int(va), entries, *how).vector == UNKNOWN
                unknown += 1
    assert unknown > 20


def test_ranges_in_words():
    assert ranges((32, 33, 34, 40, 42, 43)) == "32 to 34, 40, 42 to 43"
    assert ranges(()) == "" and np.size(()) == 0
