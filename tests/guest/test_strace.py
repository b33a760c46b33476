"""Recorded system calls on the guest model: the same as the calls made by hand."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from conftest import ROOT

from pvmmu.errors import PvmmuError, RecordingError
from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import Program
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.strace import example_names, read_example, read_strace, thin
from pvmmu.guest.readers.strace.__main__ import main
from pvmmu.guest.readers.strace.placing import place
from pvmmu.guest.readers.strace.touches import read_lackey
from pvmmu.guest.readers.strace.transcript import read_calls
from pvmmu.guest.trace import Op
from pvmmu.replay import replay

A, B, C = 0x7F0000000000, 0x7F0000100000, 0x7F0000200000
RW, ANON = "PROT_READ|PROT_WRITE", "MAP_PRIVATE|MAP_ANONYMOUS"
PROGRAM = f"""\
10 execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0
10 brk(NULL) = 0x1000000
10 brk(0x1004000) = 0x1004000
10 mmap(NULL, 65536, {RW}, {ANON}, -1, 0) = {A:#x}
10 openat(AT_FDCWD, "/lib/l.so", O_RDONLY) = 3
10 mmap(NULL, 16000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_POPULATE, 3, 0x1000) = {B:#x}
10 mmap(NULL, 8192, {RW}, MAP_SHARED|MAP_ANONYMOUS|MAP_POPULATE, -1, 0) = {C:#x}
10 mprotect({A:#x}, 4096, PROT_READ) = 0
10 madvise({A + 8192:#x}, 8192, MADV_DONTNEED) = 0
10 mremap({A + 32768:#x}, 32768, 65536, MREMAP_MAYMOVE) = {C + 65536:#x}
10 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 11
11 munmap({A:#x}, 8192) = 0
11 exit_group(0) = ?
11 +++ exited with 0 +++
10 wait4(-1, [{{WIFEXITED(s) && WEXITSTATUS(s) == 0}}], 0, NULL) = 11
10 --- SIGCHLD {{si_signo=SIGCHLD, si_pid=11}} ---
10 vfork() = 12
12 execve("/bin/y", ["y"], 0x7ffc /* 3 vars */) = 0
12 exit(0) = ?
12 +++ exited with 0 +++
10 brk(0x1002000) = 0x1002000
10 exit_group(0) = ?
10 +++ exited with 0 +++
"""


def by_hand(populate=True):
    """The same calls on a guest."""
    guest = Guest("6.1")
    p = guest.spawn()
    guest.begin()
    stack_only = lambda q: setattr(q.mm.maps, "table", q.mm.maps.table[-1:])  # noqa: E731
    p.exec(Program("x"))
    stack_only(p)
    p.system_calls(1)
    p.mmap(4, 0x1000000)
    p.mmap(16, A)
    p.system_calls(1)
    p.mmap(4, B, "rx", file=guest.file(5), offset=1, populate=True)
    p.mmap(2, C, shared=True, file=guest.file(2), populate=True)
    p.mprotect(A, 1, "r")
    p.dontneed(A + 8192, 2)
    p.mremap(A + 32768, 8, C + 65536, 16)
    child = p.fork()
    child.munmap(A, 2)
    child.exit()
    p.system_calls(1)
    other = p.vfork()
    other.exec(Program("y"))
    stack_only(other)
    other.exit()
    p.munmap(0x1002000, 2)
    p.exit()
    return guest.trace()


def written(folder, text, name="a.strace"):
    path = folder / name
    path.write_text(text)
    return path


def same(a, b):
    names = ("op", "cpu", "task", "mm", "index", "va", "value", "count", "flags")
    return len(a) == len(b) and all(np.array_equal(a[n], b[n]) for n in names)


def test_recorded_calls_are_the_calls_by_hand(tmp_path):
    assert same(read_strace(written(tmp_path, PROGRAM), assume="none"), by_hand())


def prefixed(text, form):
    return "".join(form.format(*line.split(" ", 1)) for line in text.splitlines(keepends=True))


FORMS = ["[pid  {0}] {1}", "{0} 12:00:01.123456 {1}", "{0} 1700000000.123456 {1}", "{0}   {1}"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_strace(tmp_path, form):
    want = read_strace(written(tmp_path, PROGRAM), assume="none")
    got = read_strace(written(tmp_path, prefixed(PROGRAM, form), "b.strace"), assume="none")
    assert same(got, want)
    timed = PROGRAM.replace(" = 0\n", " = 0 <0.000012>\n").replace("3, 0x1000", "3</l, x>, 0x1000")
    assert same(read_strace(written(tmp_path, timed, "c.strace"), assume="none"), want)
    (tmp_path / "d.strace.gz").write_bytes(gzip.compress(PROGRAM.encode()))
    assert same(read_strace(tmp_path / "d.strace.gz", assume="none"), want)


def test_unfinished_calls_take_effect_in_the_right_place(tmp_path):
    """A child may be seen before the call that made it returns."""
    fork = next(s for s in PROGRAM.splitlines() if " clone(" in s)
    begin, end = fork.split(", child_tidptr")
    munmap = f"11 munmap({A:#x}, 8192) = 0\n"
    text = PROGRAM.replace(f"{fork}\n{munmap}", (
        f"{begin} <unfinished ...>\n11 munmap({A:#x}, 8192 <unfinished ...>\n"
        f"10 <... clone resumed>, child_tidptr{end}\n11 <... munmap resumed>) = 0\n"
    ))  # fmt: skip
    text = text.replace(
        '10 vfork() = 12\n12 execve("/bin/y", ["y"], 0x7ffc /* 3 vars */) = 0\n',
        '10 vfork( <unfinished ...>\n12 execve("/bin/y", ["y"], 0x7ffc /* 3 vars */ '
        "<unfinished ...>\n10 <... vfork resumed>) = 12\n12 <... execve resumed>) = 0\n",
    )
    assert text.count("unfinished") == 4
    want = read_strace(written(tmp_path, PROGRAM), assume="none")
    assert same(read_strace(written(tmp_path, text, "b.strace"), assume="none"), want)


def test_threads_share_memory_and_end_together(tmp_path):
    text = f"""\
1 execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0
1 clone3({{flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, stack_size=1}} => {{parent_tid=[2]}}, 88) = 2
2 mmap(NULL, 4096, {RW}, {ANON}, -1, 0) = {A:#x}
1 munmap({A:#x}, 4096) = 0
2 exit_group(0) = ?
"""
    trace = read_strace(written(tmp_path, text))
    assert len(set(trace["mm"][trace["op"] == Op.SET_PTE])) == 1
    assert (trace["op"] == Op.PGD_ALLOC).sum() == 1
    assert (trace["op"] == Op.PGD_FREE).sum() <= 1
    assert (trace["op"] == Op.EXIT_MMAP).sum() == 2  # the one before execve, and this


def test_assumptions_are_bounds(tmp_path):
    path = written(tmp_path, PROGRAM)
    faults = [(read_strace(path, assume=a)["op"] == Op.FAULT).sum()
              for a in ("none", "data", "all")]  # fmt: skip
    assert faults[0] < faults[1] <= faults[2]
    assert any("assumed" in n for n in read_strace(path).provenance.notes)


LACKEY = """\
==7== Lackey, an example Valgrind tool
==7== Command: /bin/x -v
I  00401000,3
 S 1fff000768,8
SYSCALL[7,1](12) sys_brk ( 0x0 ) --> [pre-success] Success(0x4035000)
SYSCALL[7,1](12) sys_brk ( 0x4039000 ) --> [pre-success] Success(0x4039000)
 S 04036ffc,8
SYSCALL[7,1](9) sys_mmap ( 0x0, 4096, 1, 2, 4, 0 ) --> [pre-success] Success(0x4800000)
 L 04800000,1
SYSCALL[7,1](9) sys_mmap ( 0x0, 65536, 3, 34, 4294967295, 0 ) --> [pre-success] Success(0x4835000)
 S 04835008,8
 S 04835010,8
 M 04836000,4
SYSCALL[7,1](10) sys_mprotect ( 0x403000, 4096, 1 )[sync] --> Success(0x0)
 L 00403010,8
SYSCALL[7,1](231) exit_group( 0 ) --> [pre-success] Success(0x0)
"""
BESIDE = f"""\
7 execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0
7 brk(NULL) = 0x1000000
7 brk(0x1004000) = 0x1004000
7 mmap(NULL, 65536, {RW}, {ANON}, -1, 0) = {A:#x}
7 mprotect(0x555555557000, 4096, PROT_READ) = 0
7 exit_group(0) = ?
"""


def test_a_large_mapping_is_touched_at_once(tmp_path, monkeypatch):
    calls, touch = [], Process.touch
    monkeypatch.setattr(Process, "touch", lambda self, *a: calls.append(a) or touch(self, *a))
    path = tmp_path / "large.strace"
    path.write_text(
        f'9 execve("/x", ["x"], 0x7f) = 0\n9 mmap(NULL, {1 << 28}, {RW}, {ANON}, -1, 0) = {A:#x}\n'
        "9 getpid() = 9\n9 exit_group(0) = ?\n"
    )
    trace = read_strace(path, touches=True)
    assert (trace["op"] == Op.TOUCH).sum() >= 65_536
    assert len(calls) < 10


def test_touches_are_moved_to_where_the_program_has_its_memory(tmp_path):
    path = written(tmp_path, BESIDE)
    written(tmp_path, LACKEY, "a.x.lackey")
    trace = read_strace(path)
    faults = trace["va"][trace["op"] == Op.FAULT] & np.uint64(2**64 - 4096)
    image = 0x555555557000
    top = (1 << 47) - 4096
    # text, (stack: present since exec), heap across a page, the area, and the last read
    assert [int(v) for v in faults] == [
        image - 0x2000, 0x1001000, 0x1002000, A, A + 4096, image,
    ]  # fmt: skip
    assert all(0 < v < top for v in faults)
    assert any("1 touches of memory without counterpart" in n for n in trace.provenance.notes)


def test_a_thin_trace_tells_the_same(tmp_path):
    full = written(tmp_path, LACKEY, "x.lackey")
    thinned = thin(full, tmp_path / "thin.lackey.gz")
    path = written(tmp_path, BESIDE)
    assert same(read_strace(path, lackey=[full]), read_strace(path, lackey=[thinned]))
    assert len(read_lackey(thinned).steps) == len(read_lackey(full).steps)


def test_the_examples_are_what_the_readme_says():
    text = (ROOT / "data" / "strace" / "README.md").read_text()
    assert example_names() == ["shell", "sort"]
    for name in example_names():
        trace = read_example(name)
        faults = int((trace["op"] == Op.FAULT).sum())
        [line] = (s for s in text.splitlines() if s.startswith(f"| `{name}`") and " to " in s)
        assert line.split("|")[3].strip() == str(faults)
        assert same(load_trace(f"{name}.strace"), trace)
        assert replay(trace, "linux-6.1", "direct").infeasible is None


def test_an_older_kernel_makes_other_operations_of_it():
    old, new = (read_example("shell", kernel) for kernel in ("2.6.27", "6.1"))
    assert len(old) != len(new)


ERRORS = [
    ("", "no system call in it"),
    ("hello\n", "a.strace: no system call in it"),
    ("1 <... mmap resumed>) = 0\n", "a.strace: no system call in it"),
    ("1 brk( <unfinished ...>\n1 <... brk resumed>\n", "a.strace: no system call in it"),
    ("[ Process PID=7 runs in AArch64 mode. ]\n", "a.strace:1: a process in AArch64 mode: not a"),
    (
        '1 openat(AT_FDCWD, "/lib/aarch64-linux-gnu/libc.so.6", O_RDONLY) = 3\n',
        "a.strace:1: aarch64-linux-gnu is of AArch64: not a program of x86",
    ),
    ("1 mmap(banana) = 0x1000\n", "a.strace:1: not arguments of mmap: 'banana'"),
    (
        f"1 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, {1 << 37:#x}) = {A:#x}\n",
        "a.strace:1: mmap: the model's files have at most 33,554,432 pages together",
    ),
    ("1 brk(099000) = 0x1000\n", "a.strace:1: not arguments of brk: '099000'"),
    (f"1 munmap(NULL, {'9' * 5000}) = 0\n", "a.strace:1: not arguments of munmap: 'NULL, 999"),
    (f"1 munmap({A + 1:#x}, 4096) = 0\n", "a.strace:1: munmap: munmap: 0x7f0000000001"),
    (
        f"1 mmap(NULL, 4096, {RW}, {ANON}, -1, 0) = 0xffff9e5b4000\n",
        "a.strace:1: mmap returned 0xffff9e5b4000: not a program of x86",
    ),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_an_error_names_file_and_line(tmp_path, text, message):
    with pytest.raises(RecordingError) as e:
        read_strace(written(tmp_path, text))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_errors_of_files(tmp_path):
    with pytest.raises(RecordingError, match="no such file"):
        read_calls(tmp_path / "none.strace")
    (tmp_path / "cut.strace.gz").write_bytes(gzip.compress(PROGRAM.encode())[:-20])
    with pytest.raises(RecordingError, match="cut short"):
        read_calls(tmp_path / "cut.strace.gz")
    (tmp_path / "b.strace").write_bytes(b"1 brk(NULL) = 0x1\n\xff\xfe\n")
    assert len(read_calls(tmp_path / "b.strace")) == 1
    with pytest.raises(RecordingError, match="use --trace-syscalls=yes"):
        read_lackey(written(tmp_path, "I  00401000,3\n", "x.lackey"))
    with pytest.raises(RecordingError, match=r"x\.lackey:1: not an access"):
        read_lackey(written(tmp_path, "I  zz,3\n", "x.lackey"))
    with pytest.raises(RecordingError, match=r"x\.lackey:1: not a line of lackey"):
        read_lackey(written(tmp_path, "hello\n", "x.lackey"))
    with pytest.raises(RecordingError, match="assume='much' is none of none, data, all"):
        read_strace(written(tmp_path, PROGRAM), assume="much")
    with pytest.raises(PvmmuError, match="did you mean 'sort'"):
        read_example("srt")


def test_a_program_that_lackey_did_not_run_is_assumed(tmp_path):
    lackey = written(tmp_path, LACKEY.replace("/bin/x", "/bin/z"), "z.lackey")
    trace = read_strace(written(tmp_path, BESIDE), lackey=[lackey])
    assert any("touches: 0 runs by lackey" in n for n in trace.provenance.notes)


def test_matching_does_not_mind_calls_that_only_one_run_makes(tmp_path):
    lackey = read_lackey(written(tmp_path, LACKEY, "x.lackey"))
    placed = place(lackey, [])
    assert placed.matched == 1  # the end
    assert placed.lost > 0


def test_the_command_converts_and_thins(tmp_path, capsys):
    path = written(tmp_path, BESIDE)
    lackey = written(tmp_path, LACKEY, "x.lackey")
    assert main([str(path), "--lackey", str(lackey), "-o", str(tmp_path)]) == 0
    assert "1 runs by lackey" in capsys.readouterr().out
    assert same(load_trace(tmp_path / "a.parquet"), read_strace(path, lackey=[lackey]))
    assert main([str(lackey), "--thin", str(tmp_path / "t.lackey")]) == 0
    assert main([str(tmp_path / "none.strace")]) == 2
    assert "no such file" in capsys.readouterr().err
