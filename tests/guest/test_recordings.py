"""The reader of recordings: what goes in, what must not, and what comes out."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import RECORDINGS, recorded, recording_paths, short_name

from pvmmu.errors import PvmmuError, RecordingError, TraceError
from pvmmu.guest.load_trace import load_trace, ships, trace_names, whole_program_names
from pvmmu.guest.readers.xen import recording as reader
from pvmmu.guest.readers.xen.recording import EVENTS, read_recording
from pvmmu.guest.trace import Evidence, Flag, Op, Trace
from pvmmu.guest.vocabulary import RELEASE_OPS

_PAGE_PROTNONE = 1 << 8  # where present entries have G (arch/x86/include/asm/pgtable_types.h)
NAMES = [short_name(p) for p in recording_paths()]
#: Functions that make hypercalls, queue them or are called by those that do.
_WRAPPERS = re.compile(r" K \S+ (xen_mc_|fn:xen_(?!enter_lazy|leave_lazy)|fn:__xen_)")


@pytest.mark.parametrize("name", ["fork.16", "forkexec.0", "mprotect.33", "smpmmap.16", "shloop"])
def test_what_the_replay_predicts_is_no_input(name, tmp_path):
    """Without any trace of multicalls, hypercalls and pinning the operations are the same."""
    [path] = (p for p in recording_paths() if short_name(p) == name)
    pruned = tmp_path / path.name.replace(".xz", "")
    kept, total = [], 0
    with lzma.open(path, "rt") as f:
        for line in f:
            total += 1
            if _WRAPPERS.search(line) or (" X - " in line and " PTWR_EMULATION " not in line):
                continue
            kept.append(re.sub(r" pinned=\d", "", line))
    pruned.write_text("".join(kept))
    before = recorded(name).save(tmp_path / "before.parquet")
    after = read_recording(pruned)
    renamed = Trace(
        {c: after[c] for c in after.to_frame()}, after.mms, after.callers,
        recorded(name).provenance,
    ).save(tmp_path / "after.parquet")  # fmt: skip
    assert len(kept) < total / 2
    assert before.read_bytes() == renamed.read_bytes()


@pytest.mark.parametrize("name", ["forksnap", "make", "redis", "python", "dashloop"])
def test_nor_in_the_whole_programs(name):
    """Same, in memory: lines of hypercalls and wrappers never reach a handler."""
    from pvmmu.guest.readers.xen.text import read_lines

    [path] = (p for p in recording_paths() if short_name(p) == name)
    lines = [
        line._replace(rest=[w for w in line.rest if not w.startswith("pinned=")])
        for line in read_lines(path)
        if not (line.source == "X" and line.event != "PTWR_EMULATION")
        and not re.match(r"xen_mc_|fn:xen_(?!enter_lazy|leave_lazy)|fn:__xen_", line.event)
    ]
    assert reader.trace_of_lines(lines, path) == recorded(name)


def test_the_list_of_events_is_what_is_used():
    assert not [e for e in EVENTS if re.match(r"xen_mc_|X HYPERCALL|X SUBCALL", e)]
    assert "X PTWR_EMULATION" in EVENTS
    assert [e for e in EVENTS if e.startswith("fn:xen_")] == [
        "fn:xen_enter_lazy_mmu", "fn:xen_leave_lazy_mmu",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_trace_is_that_of_the_recording(name):
    shipped = load_trace(name)
    assert shipped == recorded(name), (
        "make them anew: python -m pvmmu.guest.readers.xen.recording -o data/traces"
    )


def test_all_recordings_ship():
    assert sorted(NAMES) == trace_names()


@pytest.mark.parametrize("name", NAMES)
def test_no_table_is_released_with_a_live_entry(name):
    """Follow the images of all tables born in the window: the inferred clears balance."""
    t = recorded(name)
    images: dict[int, dict[int, int]] = {}
    released = 0
    columns = zip(*(t[c].tolist() for c in ("op", "table", "index", "value", "flags")), strict=True)
    for op, table, index, value, flags in columns:
        if Op.ALLOC_PTE <= op <= Op.ALLOC_P4D and not flags & Flag.ALREADY_TABLE:
            images[table] = {}
        elif op in RELEASE_OPS:
            image = images.pop(table, None)
            released += image is not None
            assert not any((image or {}).values()), f"{Op(op).name} of {table:#x}"
        elif table in images and op not in (Op.MODIFY_PROT_START,) and index >= 0:
            images[table][index] = value
    if name in ("make", "redis", "fork.64"):
        assert released >= 10


@pytest.mark.parametrize("name", NAMES)
def test_read_modify_writes_meet_present_entries(name):
    """What is known of the previous content never contradicts the operation."""
    t = recorded(name)
    rmw = np.isin(t["op"], [Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT])
    known = rmw & ((t["flags"] & Flag.OLD_KNOWN) != 0)
    absent = known & ((t["flags"] & Flag.OLD_PRESENT) == 0)
    # pages of PROT_NONE mappings are cleared, too: not present to the processor, but to Linux
    assert all(_last_value(t, row) & _PAGE_PROTNONE for row in np.flatnonzero(absent))


def _last_value(t: Trace, row: int) -> int:
    """Return what was last stored in the entry of a row."""
    same = (t["table"][:row] == t["table"][row]) & (t["index"][:row] == t["index"][row])
    return int(t["value"][np.flatnonzero(same)[-1]])


def test_placement_by_tables_and_by_faults_agrees():
    """Where a store stands beside the fault it serves, the chain of tables gives its address."""
    agree = both = 0
    for name in NAMES:
        t = recorded(name)
        op, va, task = t["op"], t["va"], t["task"]
        fault: dict[int, int] = {}
        for row in range(len(t)):
            if op[row] == Op.FAULT:
                fault[task[row]] = int(va[row]) & ~0xFFF
            elif op[row] == Op.SET_PTE and t["place"][row] == Evidence.INFERRED:
                at = fault.get(task[row])
                if at is not None and t["index"][row] == (at >> 12) & 511:
                    both += 1
                    agree += int(va[row]) == at
                    del fault[task[row]]
            elif op[row] in (Op.EXIT_MMAP, Op.LAZY_ENTER):
                fault.pop(task[row], None)
    assert both > 20_000
    assert agree == both


def test_protection_changes_name_the_address_that_the_tables_give():
    t = recorded("make")
    rows = np.flatnonzero(t["op"] == Op.MODIFY_PROT_COMMIT)
    assert len(rows) > 100
    assert ((t["va"][rows] >> np.uint64(12)) & np.uint64(511) == t["index"][rows]).all()


def test_bits_of_xen_are_stripped():
    for name in ("fork.16", "make"):
        t = recorded(name)
        present = np.isin(t["op"], [Op.SET_PTE, Op.PTE_WRPROTECT]) & ((t["value"] & 1) == 1)
        assert not (t["value"][present] & np.uint64(1 << 8 | 1 << 52)).any()


def test_frames_of_tables_are_guest_frames():
    t = recorded("make")
    store = np.isin(t["op"], [Op.SET_PMD, Op.SET_PUD, Op.SET_P4D]) & ((t["value"] & 1) == 1)
    child = (t["value"][store] >> np.uint64(12)) & np.uint64(0xFFFFFFFF)
    allocated = set(
        t["table"][np.isin(t["op"], [Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD])].tolist()
    )
    assert set(child.tolist()) <= allocated
    assert not (t["flags"][store] & Flag.MACHINE).any()


def test_a_protection_change_stays_a_transaction():
    t = recorded("mprotect.33")
    op = t["op"]
    starts = np.flatnonzero(op == Op.MODIFY_PROT_START)
    assert len(starts) == 66
    assert (op[starts + 1] == Op.MODIFY_PROT_COMMIT).all()


# ---------------------------------------------------------------------- the native guest
def native_counts() -> pd.DataFrame:
    counts = pd.read_csv(RECORDINGS / "counts.csv.xz")
    return counts[
        (counts["environment"] == "native") & (counts["source"] == "ftrace")
        & (counts["phase"] == "all")
    ]  # fmt: skip


def trace_counts(t: Trace) -> dict[str, float]:
    op, kernel = t["op"], (t["flags"] & Flag.KERNEL_FAULT) != 0
    n = Counter({Op(o): int(c) for o, c in zip(*np.unique(op, return_counts=True), strict=True)})
    times = np.maximum(t["count"], 1)
    return {
        "fn:pte_alloc_one": n[Op.ALLOC_PTE], "fn:__pmd_alloc": n[Op.ALLOC_PMD],
        "fn:__pud_alloc": n[Op.ALLOC_PUD], "fn:___pte_free_tlb": n[Op.RELEASE_PTE],
        "fn:___pmd_free_tlb": n[Op.RELEASE_PMD], "fn:___pud_free_tlb": n[Op.RELEASE_PUD],
        "page_fault_user": int(((op == Op.FAULT) & ~kernel).sum()),
        "page_fault_kernel": int(((op == Op.FAULT) & kernel).sum()),
        "fn:flush_tlb_mm_range": n[Op.FLUSH_RANGE],
        "fn:native_flush_tlb_one_user": int(times[op == Op.FLUSH_ONE].sum()),
        "fn:native_flush_tlb_local": int(times[op == Op.FLUSH_USER].sum()),
        "fn:native_flush_tlb_multi": n[Op.FLUSH_OTHERS],
        "fn:pgd_alloc": n[Op.PGD_ALLOC], "fn:exit_mmap": n[Op.EXIT_MMAP],
        "tlb_flush:task_switch;pages=all": n[Op.LOAD_CR3],
    }  # fmt: skip


#: Each known difference, explained in data/traces/README.md: (trace, event) -> (ours, natively).
KNOWN = {
    ("fork.256", "page_fault_user"): (263, 262.0),
    ("fork.256", "page_fault_kernel"): (1, 2.0),
    ("forkexec.0", "fn:flush_tlb_mm_range"): (12, 11.0),
    ("forkexec.0", "fn:native_flush_tlb_one_user"): (12, 9.0),
    # another task was scheduled on the second CPU while this iteration ran
    ("smpmmap.1", "tlb_flush:task_switch;pages=all"): (2, 0.0),
    ("smpmmap.16", "tlb_flush:task_switch;pages=all"): (2, 0.0),
    ("smpmmap.64", "tlb_flush:task_switch;pages=all"): (2, 0.0),
}


def test_tables_faults_and_flushes_are_those_of_a_native_guest():
    """All differences are known, and each known one is there."""
    native, found, compared = native_counts(), {}, 0
    for name in NAMES:
        workload, _, pages = name.partition(".")
        t = recorded(name)
        of = native[
            (native["workload"] == workload) & (native["vcpus"] == t.platform.vcpus)
            & (native["n_pages"].astype(str) == pages)
        ]  # fmt: skip
        if of.empty:
            continue
        compared += 1
        switches = of[of["event"].str.startswith("tlb_flush:task_switch")]
        mine = of[of["scope"].isin(["wl", "ctxsw"]) & ~of.index.isin(switches.index)]
        per_run = pd.concat([mine, switches]).groupby(["event", "run"])["count_per_iteration"].sum()
        mean = per_run.groupby("event").mean()
        for event, ours in trace_counts(t).items():
            theirs = float(mean.get(event, 0.0))
            if abs(ours - theirs) > 0.25:  # runs themselves differ by so much (timer ticks)
                found[name, event] = (ours, theirs)
    assert compared >= 20
    assert found == {k: v for k, v in KNOWN.items() if k in found}
    assert set(found) == {k for k in KNOWN if k[0] != "smpmmap.16"}


# ---------------------------------------------------------------------- wrong input
GOOD = "0 0 K 1 MARK s=P0\n5 0 K 1 xen_mmu_set_pte ptep=0xffff888019c3f688 pteval=0x5067\n"
WRONG = {
    "a foreign text": ("root:x:0:0\n", ":1: not a record"),
    "a foreign line": (GOOD + "what is this\n", ":3: not a record"),
    "no number": (GOOD.replace("5 0 K", "x 0 K"), ":2: not a record"),
    "time": (GOOD + "4 0 K 1 MARK s=P1\n", ":3: time goes backwards (4 after 5)"),
    "a field missing": (GOOD.replace("pteval=0x5067", ""), ":2: xen_mmu_set_pte has no field"),
    "a field wrong": (GOOD.replace("0x5067", "zz"), ":2: xen_mmu_set_pte has pteval='zz'"),
    "kaslr": (GOOD.replace("ffff888019c3f688", "ffff9a8019c3f688"), "is not in the direct map"),
    "a level": ("0 0 K 1 xen_mmu_alloc_ptpage mm=0x1 pfn=3 level=7\n", "level='7', not 1 to 4"),
    "empty": ("", "empty, no record in it"),
    "nothing of use": ("0 0 K 1 irq_entry irq=3\n", "no MMU operation among its 1 records"),
    "bracket open": (GOOD + "6 0 K 1 fn:paravirt_enter_lazy_mmu caller=x\n",
                     "leave_lazy_mmu never is"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_error(case, tmp_path):
    text, message = WRONG[case]
    path = tmp_path / "r.txt"
    path.write_text(text)
    with pytest.raises(PvmmuError) as e:
        read_recording(path)
    assert message in str(e.value)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_good_input_of_the_same_kind_is_read(tmp_path):
    (tmp_path / "r.txt").write_text(GOOD)
    assert len(read_recording(tmp_path / "r.txt")) == 2


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_a_file_cut_short_is_named(opener, tmp_path):
    suffix = {gzip.open: "gz", lzma.open: "xz"}[opener]
    path = tmp_path / f"r.txt.{suffix}"
    with opener(path, "wt") as f:
        f.writelines(f"{i} 0 K 1 MARK s=P{i}\n" for i in range(20_000))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(RecordingError, match=r"is cut short \(after line \d+\)"):
        read_recording(path)


def test_content_tells_how_a_file_is_compressed_not_its_name(tmp_path):
    path = tmp_path / "r.txt.gz"
    path.write_text(GOOD)
    assert len(read_recording(path)) > 0
    path.write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(RecordingError, match="is damaged where it is compressed"):
        read_recording(path)
    shutil.copy(path, tmp_path / "r.txt")
    (tmp_path / "r.bin.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordingError, match="not text"):
        read_recording(tmp_path / "r.bin.txt")
    with pytest.raises(RecordingError, match="no such file"):
        read_recording(tmp_path / "none.txt")


def test_the_command_converts_and_complains(tmp_path, capsys):
    [path] = (p for p in recording_paths() if short_name(p) == "fork.1")
    assert reader.main([str(path), "-o", str(tmp_path)]) == 0
    assert Trace.load(tmp_path / "fork.1.parquet") == recorded("fork.1")
    bad = tmp_path / "bad.txt"
    bad.write_text("x\n")
    assert reader.main([str(bad), "-o", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "bad.txt:1" in err


def test_older_address_spaces_that_exit_are_bounded(tmp_path):
    """Tables older than the window hold nobody knows what: an upper bound, not a guess."""
    lines = [
        "0 0 K 9 MARK s=P0",
        "1 0 K 9 page_fault_user address=0x401000 ip=0x401000 error_code=0x14",
        "2 0 K 9 fn:do_set_pte caller=filemap_map_pages",
        "3 0 K 9 xen_mmu_set_pte ptep=0xffff888000007008 pteval=0x5025",
        "4 0 K 9 fn:exit_mmap caller=__mmput",
        "5 0 K 9 xen_mmu_pgd_unpin mm=0xffff888004c59b00 pgd=0xffff888006990000",
        "6 0 K 9 fn:unmap_page_range caller=unmap_vmas",
        "7 0 K 9 fn:paravirt_enter_lazy_mmu caller=unmap_page_range",
        "8 0 K 9 fn:paravirt_leave_lazy_mmu caller=xen_leave_lazy_mmu",
        "9 0 K 9 fn:free_pgtables caller=exit_mmap",
        "10 0 K 9 fn:tlb_finish_mmu caller=exit_mmap",
    ]
    path = tmp_path / "r.txt"
    path.write_text("\n".join(lines) + "\n")
    t = read_recording(path)
    unknown = t["evidence"] == Evidence.UNKNOWN
    assert unknown.sum() == 1
    assert t["count"][unknown] == 512
    known = (t["op"] == Op.PTE_GET_AND_CLEAR) & ~unknown
    assert known.sum() == 1


def test_whole_programs_of_the_measured_design_space_have_names():
    """They are traces like others, but no recordings of tests/data."""
    names = whole_program_names()
    assert {"bbloop", "dash3", "pipeline"} <= set(names)
    assert not set(names) & set(trace_names())
    assert all(ships(n) and load_trace(n).name == n for n in names)
    with pytest.raises(TraceError, match="did you mean 'bbloop'"):
        load_trace("bblop")
