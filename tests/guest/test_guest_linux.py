"""The mm model: invariants under random programs, errors, profiles, reproducibility."""

from __future__ import annotations

import functools

import naive_guest
import numpy as np
import pytest
from conftest import examples
from hypothesis import given, strategies as st

from pvmmu.errors import GuestError, ProfileError
from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.profile import diff, load_profile, profile_names
from pvmmu.guest.linux.program import load_program, program_names
from pvmmu.guest.trace import Op, Platform, Trace
from pvmmu.guest.vocabulary import COLUMNS
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload

PAGE = 4096
PLATFORMS = [
    ("2.6.22", Platform(levels=2)), ("2.6.22", Platform(levels=3, shared_kernel_pmd=True)),
    ("2.6.22", Platform(levels=3, vcpus=2)), ("2.6.27", Platform(vcpus=2)),
    ("6.1", Platform(vcpus=2)),
    ("6.1", XEN_PV), ("6.12", Platform(pcid=True)), ("6.18", Platform(levels=5, vcpus=2)),
]  # fmt: skip


class Machine:
    """Drives a guest by numbers: a random program."""

    def __init__(self, kernel, platform):
        self.guest = Guest(kernel, platform, frames=1 << 16)
        self.file = self.guest.file(40)
        self.before = naive_guest.in_use(self.guest)
        self.processes = [self.guest.spawn(load_program("true_s"))]
        self.areas = {self.processes[0].task: []}
        self.mms = [self.processes[0].mm]

    def step(self, what, who, a, b):
        p = self.processes[who % len(self.processes)]
        areas = self.areas[p.task]
        at, pages = areas[a % len(areas)] if areas else (None, 0)
        if what == "mmap" or at is None:
            pages = 1 + a % 40
            kw = [{}, {"populate": True}, {"file": self.file}, {"file": self.file, "shared": True}]
            areas.append((p.mmap(pages, prot=("rw", "r", "rwx")[b % 3], **kw[b % 4]), pages))
        elif what == "touch":
            for i in range(pages):
                try:
                    (p.write if (b >> i % 8) & 1 else p.read)(at + i * PAGE)
                except GuestError as e:
                    assert "SIG" in str(e)  # no permission
                    break
        elif what == "munmap":
            p.munmap(at, pages)
            areas.remove((at, pages))
        elif what == "split":
            p.munmap(at + pages // 2 * PAGE, 1)
            areas.remove((at, pages))
            if pages // 2:
                areas.append((at, pages // 2))
            if pages - pages // 2 - 1:
                areas.append((at + (pages // 2 + 1) * PAGE, pages - pages // 2 - 1))
        elif what == "mprotect":
            p.mprotect(at, pages, ("rw", "r", "-", "rwx")[b % 4])
        elif what == "mremap":
            try:
                areas.append((p.mremap(at, pages, new_pages=pages + b % 3), pages + b % 3))
                areas.remove((at, pages))
            except GuestError as e:
                assert "EFAULT" in str(e)  # two mappings by now
        elif what == "dontneed":
            p.dontneed(at, pages)
        elif what == "clear":
            p.clear_refs(1)
        elif what == "fork" and len(self.processes) < 4:
            child = p.fork()
            self.processes.append(child)
            self.areas[child.task] = list(areas)
            self.mms.append(child.mm)
        elif what == "thread" and len(self.processes) < 4:
            t = p.thread(cpu=b % self.guest.platform.vcpus)
            self.processes.append(t)
            self.areas[t.task] = areas
        elif what == "exec":
            self.mms.append(None)
            p.exec(load_program("true_s"))
            self.mms[-1] = p.mm
            self.areas[p.task] = []
        elif what == "exit" and len(self.processes) > 1:
            p.exit()
            self.processes.remove(p)

    def live(self):
        """Address spaces with a top-level table (that of a dead one goes at the next switch)."""
        doomed = [mm for mm in self.guest._doomed if mm is not None]
        return {id(mm): mm for mm in [*(p.mm for p in self.processes), *doomed]}.values()


STEPS = ["mmap", "touch", "touch", "touch", "munmap", "split", "mprotect", "mremap", "dontneed",
         "clear", "fork", "thread", "exec", "exit"]  # fmt: skip
_step = st.tuples(st.sampled_from(STEPS), *[st.integers(0, 255)] * 3)


@examples(60)
@given(st.sampled_from(PLATFORMS), st.lists(_step, min_size=4, max_size=25))
def test_counts_never_drift_and_exit_frees_all(where, steps):
    m = Machine(*where)
    for step in steps:
        m.step(*step)
        naive_guest.check(m.guest, m.live())
    for p in list(m.processes):
        p.exit()
    for cpu in range(m.guest.platform.vcpus):
        m.guest.run(None, cpu)
    naive_guest.check(m.guest, [])
    files = {**m.guest.files, **m.guest.programs}
    cached = sum(f.pages for f in files.values()) - m.file.pages
    assert naive_guest.in_use(m.guest) == m.before + cached
    trace = m.guest.trace()
    born = (trace["op"] == Op.PGD_ALLOC).sum()
    assert born == (trace["op"] == Op.PGD_FREE).sum()
    for born, gone in zip(("PTE", "PMD", "PUD"), ("PTE", "PMD", "PUD"), strict=True):
        made = (trace["op"] == Op[f"ALLOC_{born}"]).sum()
        assert made == (trace["op"] == Op[f"RELEASE_{gone}"]).sum(), born


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_a_dirty_page_of_a_file_without_access_goes_as_any_other(kernel):
    # its entry holds the frame inverted (L1TF); D is still set
    guest = Guest(kernel, Platform(), frames=1 << 12)
    file = guest.file(4)
    with guest.process(load_program("true_s")) as p:
        at = p.mmap(4, file=file, shared=True)
        p.write(at)
        p.mprotect(at, 4, "-")
        p.munmap(at, 4)
        naive_guest.check(guest, [p.mm])


@pytest.mark.parametrize("name", [n for n, w in WORKLOADS.items() if w.suite != "mix"])
def test_the_same_seed_gives_the_same_trace(name):
    kw = {"n": 8, "iterations": 1, "warm": 1, "whole": True, "seed": 7}
    platform = Platform(aslr=True, vcpus=WORKLOADS[name].vcpus)
    a, b = (run_workload(name, platform=platform, **kw) for _ in range(2))
    assert all(np.array_equal(a[c], b[c]) for c in COLUMNS)
    c = run_workload(name, platform=platform, **{**kw, "seed": 8})
    assert not all(len(a) == len(c) and np.array_equal(a[x], c[x]) for x in COLUMNS)


@pytest.mark.parametrize("kernel", profile_names())
def test_every_profile_runs_every_workload_that_it_knows(kernel):
    for name, w in WORKLOADS.items():
        if w.suite != "wl":
            continue
        try:
            trace = run_workload(name, 8, kernel, warm=1)
        except GuestError as e:
            assert "MADV_COLD" in str(e) or "soft-dirty" in str(e)
            assert kernel.startswith("2.6")
            continue
        assert trace.provenance.kernel == kernel


def test_a_trace_survives_its_file(tmp_path):
    a = run_workload("fork", 16)
    a.save(tmp_path / "t.parquet")
    b = Trace.load(tmp_path / "t.parquet")
    assert all(np.array_equal(a[c], b[c]) for c in COLUMNS)
    assert a.provenance == b.provenance


# ---------------------------------------------------------------------- what cannot be
def process():
    return Guest("6.1", frames=1 << 15).spawn(load_program("true_s"))


WRONG = {
    "no page": (lambda p: p.mmap(0), "mmap: 0 pages (EINVAL)"),
    "negative": (lambda p: p.mmap(-3), "mmap: -3 pages"),
    "taken": (lambda p: p.mmap(1, p.mmap(2), replace=False), "mapped already (EEXIST)"),
    "unaligned": (lambda p: p.munmap(5, 1), "0x5 is not the address of a page"),
    "kernel address": (lambda p: p.mmap(1, 1 << 47), "no user addresses"),
    "hole": (lambda p: p.mprotect(0x10000000000, 1, "r"), "nothing is mapped at 0x10000000000"),
    "protection": (lambda p: p.mmap(1, prot="rq"), "protection 'rq'"),
    "overlap": (lambda p: p.mremap(*(a := (p.mmap(4), 4)), to=a[0] + PAGE), "overlaps"),
    "two mappings": (lambda p: p.mremap(p.mmap(4), 5), "are not one mapping (EFAULT)"),
    "file's size": (lambda p: p.guest.file(1 << 40, cached=False), "files have at most"),
    "offset": (lambda p: p.mmap(1, file=p.guest.file(3), offset=-1), "offset -1"),
    "signal": (lambda p: p.read(0x20000000000), "0x20000000000"),
    "read-only": (lambda p: p.write(p.mmap(1, prot="r")), "does not allow this (SIGSEGV)"),
    "memory": (lambda p: p.write(p.mmap(1 << 15), 1 << 15), "out of memory"),
    "behind the file": (lambda p: p.read(p.mmap(9, file=p.guest.file(3)), 9), "end of its file"),
    "no file": (lambda p: p.guest.file(0), "0 pages"),
    "shared": (lambda p: p.mmap(1, shared=True), "needs a file"),
    "cpu": (lambda p: p.thread(cpu=4), "CPU 4: the guest has CPUs 0 to 0"),
    "wait": (lambda p: p.wait(p.fork()), "still alive"),
    "vfork": (lambda p: (p.vfork(), p.mmap(1)), "waits for its vfork child"),
    "vfree": (lambda p: p.guest.vfree(5), "0x5 was not given by vmalloc"),
    "clear_refs": (lambda p: p.clear_refs(3), "3 is none of 1 and 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_clear_error(case):
    call, words = WRONG[case]
    p = process()
    with pytest.raises(GuestError) as e:
        call(p)
    assert words in str(e.value)
    if case != "wait":  # that child is not at hand
        naive_guest.check(p.guest, [p.mm])


@pytest.mark.parametrize(("kernel", "whole"), [("2.6.27", False), ("6.1", True)])
def test_a_full_table_is_moved_as_one_where_the_kernel_can(kernel, whole):
    """mremap of 2 MiB and a page, aligned: one upper entry (6.1), or 512 entries and one."""
    guest = Guest(kernel, frames=1 << 15)
    p = guest.spawn(load_program("true_s"))
    old, new, pages = 0x40000000, 0x80000000, 513
    p.mmap(pages, old, populate=True)
    guest.begin()
    assert p.mremap(old, pages, new) == new
    trace = guest.trace()
    entries = np.isin(trace["op"], (Op.PTE_GET_AND_CLEAR, Op.SET_PTE))
    assert entries.sum() == (2 if whole else 2 * pages)  # each cleared, each stored
    uppers = trace["va"][trace["op"] == Op.SET_PMD].tolist()
    assert {old, new} <= set(uppers), "one is linked, the other cleared or freed"
    naive_guest.check(guest, [p.mm])
    p.write(new + 512 * 4096)
    with pytest.raises(GuestError, match="SIGSEGV"):
        p.read(old)


def test_mremap_to_fewer_pages_unmaps_the_rest():
    p = process()
    at = p.mmap(8, populate=True)
    assert p.mremap(at, 8, new_pages=8) == p.mremap(at, 8, new_pages=5) == at
    new = p.mremap(at, 5, at - (1 << 30), 3)
    assert new == at - (1 << 30)
    p.read(new, 3)
    for gone in (at, at + 7 * 4096, new + 3 * 4096):
        with pytest.raises(GuestError, match="SIGSEGV"):
            p.read(gone)
    naive_guest.check(p.guest, [p.mm])


@pytest.mark.parametrize(("kernel", "after"), [("2.6.27", [3000, 9000]), ("6.1", [9000])])
def test_kernel_mappings(kernel, after):
    """Flushed each time (2.6.27), or lazily, once more than `lazy_max_pages` wait (6.1)."""
    guest = Guest(kernel, frames=1 << 16)
    guest.begin()
    areas = [(guest.vmalloc(n), n) for n in (3000, 6000)]
    mapped = guest.trace()
    guest.begin()
    for at, _ in areas:
        guest.vfree(at)
    gone = guest.trace()

    pages = [(at + i * PAGE) % 2**64 for at, n in areas for i in range(n)]
    stores = mapped["op"] == Op.SET_PTE
    assert mapped["va"][stores].tolist() == pages
    frames = mapped["value"][stores] >> np.uint64(12) & np.uint64((1 << 40) - 1)
    assert len(set(frames.tolist())) == len(pages)
    cleared = gone["op"] == Op.PTE_GET_AND_CLEAR
    assert gone["va"][cleared].tolist() == pages
    assert np.cumsum(cleared)[gone["op"] == Op.FLUSH_KERNEL].tolist() == after
    assert len(gone) == len(pages) + len(after), "tables stay"
    assert guest.vmalloc(1) not in dict(areas)


def test_a_process_that_has_exited_does_nothing():
    p = process()
    p.exit()
    for call in (p.exit, p.fork, p.exec, functools.partial(p.mmap, 1)):
        with pytest.raises(GuestError, match="has exited"):
            call()


def test_more_memory_than_there_is_is_one_error():
    with pytest.raises(GuestError, match="64 to 2\\*\\*28 frames"):
        Guest("6.1", frames=1 << 40)


@pytest.mark.parametrize(
    ("kw", "words"),
    [({"name": "forc"}, "did you mean 'fork'"), ({"name": "fork", "n": -1}, "n=-1"),
     ({"name": "fork", "kernel": "3.0"}, "no kernel profile is named '3.0'"),
     ({"name": "fork", "kernel": "2.6.22", "platform": Platform(levels=4)}, "4-level"),
     ({"name": "fork", "kernel": "2.6.27", "platform": Platform(pcid=True)}, "PCID"),
     ({"name": "fork", "iterations": 0}, "0 iterations")],
)  # fmt: skip
def test_a_wrong_workload_is_one_clear_error(kw, words):
    with pytest.raises((GuestError, ProfileError)) as e:
        run_workload(**kw)
    assert words in str(e.value)


# ---------------------------------------------------------------------- profiles, programs
@pytest.mark.parametrize("kernel", profile_names())
def test_a_profile_is_a_table_with_sources(kernel):
    frame = load_profile(kernel).frame()
    assert frame["source"].str.len().min() > 3
    assert {"fork_page", "zap_page", "ceiling", "prot_none"} <= set(frame.index)


def test_two_profiles_are_read_as_a_diff():
    d = diff("6.1", "6.12")
    assert "cold_page" in d.index and "fork_page" not in d.index
    assert diff("6.1", "6.1").empty


_HEAD = 'kernel = "x"\narch = "x86-64"\nread_in = "-"\ninherits = "6.1"\n'
WRONG_PROFILES = {
    'kernel = "x"': "arch",
    "kernel = ": "x.toml",
    _HEAD + '[steps.nothing]\ncalls = []\nsource = "s"': "steps.nothing: there is no such step",
    _HEAD + '[steps.reuse]\ncalls = ["FLY"]\nsource = "s"': "'FLY' names no operation",
    _HEAD + '[steps.reuse]\ncalls = ["SET_PTE if red"]\nsource = "s"': "condition 'red'",
    _HEAD + '[parameters.speed]\nvalue = 1\nsource = "s"': "speed: there is no such parameter",
}


@pytest.mark.parametrize("text", WRONG_PROFILES)
def test_a_wrong_profile_names_file_and_field(text, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as e:
        load_profile(str(path))
    assert str(path) in str(e.value) and WRONG_PROFILES[text] in str(e.value)


def test_programs_have_sources_and_segments():
    for name in program_names():
        program = load_program(name)
        assert program.segments and program.source
    with pytest.raises(ProfileError, match="no program is named 'emacs'"):
        load_program("emacs")
