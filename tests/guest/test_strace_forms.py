"""strace in all its forms: each is read as what it stands for, what is left out is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvmmu.guest.readers.strace import read_strace
from pvmmu.guest.trace import Op

CASES = Path(__file__).parent.parent / "data" / "strace"
A = 0x7F0000000000
RW, ANON = "PROT_READ|PROT_WRITE", "MAP_PRIVATE|MAP_ANONYMOUS"
M = f"mmap(NULL, 40960, {RW}, {ANON}, -1, 0) = {A:#x}"
EXEC = 'execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0'


def counted(trace):
    """Faults, address spaces made and given back."""
    op = trace["op"]
    return tuple(int((op == o).sum()) for o in (Op.FAULT, Op.PGD_ALLOC, Op.PGD_FREE))


def read(folder, text, **options):
    path = folder / "a.strace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_strace(path, **options)


def remarks(trace):
    return " | ".join(trace.provenance.notes + trace.provenance.assumptions)


# The first of the two address spaces that a lone process has is the one that execve leaves.
FULL = (10, 1, 1)
RIGHT = {
    "ok": FULL, "w01-mmap2": FULL, "w02-ref": (10, 2, 2), "w02-parent-renamed": (10, 2, 2),
    "w04-appended": (20, 3, 3), "w06-no-f": (10, 2, 2), "w08-old-exit": FULL, "w09-raw": FULL,
    "w11-protnone": FULL, "w12-relro-full": FULL, "w12-relro-filtered": FULL,
    "w13-locked": (0, 1, 1), "w13-ref": (0, 1, 1), "r01-attached-in-line": (0, 2, 1),
    "r03-old-attached": (0, 1, 1), "r05-ctrlc": (0, 1, 1), "r06-cut": (10, 1, 1),
    "r07-own-output": (0, 1, 1), "r08-r": (10, 1, 1), "r14-Y": (0, 1, 1), "r18-C": (0, 1, 1),
    "r20-32bit": (0, 1, 1), "r22-4G": (0, 1, 1),
}  # fmt: skip
SAID = {
    "w01-mmap2": "32 bits", "w06-no-f": "1 of 2 processes never heard of", "r06-cut": "cut: 1",
    "r01-attached-in-line": "1 of 2 processes never seen to end", "r18-C": "summary (-C): 1",
    "r20-32bit": "32 bits", "r22-4G": "assumed untouched: 1048576",
    "r03-old-attached": "never heard of: 1",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(CASES.glob("*.strace")), ids=lambda p: p.stem)
def test_cases_that_were_read_wrongly_or_refused(path):
    trace = read_strace(path)
    assert counted(trace) == RIGHT[path.stem]
    assert SAID.get(path.stem, "") in remarks(trace)


def test_every_case_has_its_right_answer():
    assert {p.stem for p in CASES.glob("*.strace")} == set(RIGHT)


BODY = f"""\
{EXEC}
openat(AT_FDCWD, "/lib/l.so", O_RDONLY) = 3
{M}
clone(child_stack=NULL, flags=SIGCHLD) = 11
write(1, "hi) = 3\\n", 8) = 8
"""


def lines(text, form):
    return "".join(form.format(line) for line in text.splitlines(keepends=True))


LEADERS = {
    "-o": "10 {}",
    "-t": "10 12:00:01 {}",
    "-tt": "10 12:00:01.123456 {}",
    "-ttt": "10 1700000000.123456 {}", "unix": "10 1700000000 {}",
    "-r": "10      0.000120 {}",
    "-r -t": "10 12:00:01 (+     0.000120) {}",
    "-Y": "10<my prog> {}",
    "-n": "10 [  59] {}",
    "-i": "10 [00007f8579f44ad7] {}",
    "-i unknown": "10 [????????????????] {}",
    "-n -i": "10 [ 262] [00007f8579f44ad7] {}",
    "-ttt -n -i": "10 1.000001 [ 262] [00007f8579f4] {}",
    "[pid]": "[pid    10] {}",
    "[pid] -Y": "[pid    10<x y>] {}",
    "[pid] -tt": "[pid 10] 12:00:01.5 {}",
    "alone -t": "12:00:01 {}",
    "alone -tt": "12:00:01.123456 {}",
    "alone -ttt": "1700000000.123456 {}",
    "alone -i": "[00007f8579f44ad7] {}",
    "alone -n": "[  59] {}",
    "alone unix": "1700000000 {}",
}  # fmt: skip


@pytest.mark.parametrize("form", LEADERS.values(), ids=LEADERS)
def test_what_stands_before_a_call(tmp_path, form):
    trace = read(tmp_path, lines(BODY, form))
    assert counted(trace) == (10, 2, 1)
    assert "1 of 2 processes never heard of" in remarks(trace)
    assert "1 of 2 processes never seen to end" in remarks(trace)


WRITTEN = {
    "-T": lambda s: re.sub(r"$", " <0.000012>", s, flags=re.M),
    "-y": lambda s: s.replace("= 3\n", "= 3</lib/l, (x)>\n").replace("AT_FDCWD", "AT_FDCWD</a b>"),
    "-X raw": lambda s: s.replace(RW, "0x3").replace(ANON, "0x22").replace("SIGCHLD", "0x11"),
    "-X verbose": lambda s: s.replace(RW, f"0x3 /* {RW} */").replace(ANON, f"0x22 /* {ANON} */"),
    "-e raw": lambda s: s.replace(
        f"NULL, 40960, {RW}, {ANON}, -1", "0, 0xa000, 0x3, 0x22, 0xffffffff"
    ),
    "CRLF": lambda s: s.replace("\n", "\r\n"),
    "no UTF-8": lambda s: s.replace('"hi', '"\udcff\udcfe').encode(errors="surrogateescape"),
    "-k": lambda s: s.replace("\n", "\n > /lib/libc.so.6(f+0x1) [0x2]\n"),
    "-a1": lambda s: s.replace(") = ", ")= "),
    "-a60": lambda s: s.replace(") = ", ")                    = "),
}  # fmt: skip


@pytest.mark.parametrize("form", WRITTEN.values(), ids=WRITTEN)
def test_how_a_call_is_written(tmp_path, form):
    assert counted(read(tmp_path, form(BODY))) == (10, 2, 1)


TERMINAL = {
    "output before a line": f"{EXEC}\nname: {M}\nexit_group(0) = ?\n",
    "output between lines": f"{EXEC}\nhello (world)\n12 apples\n{M}\nexit_group(0) = ?\n",
    "output in a call": f'{EXEC}\nwrite(1, "a\\nb\\n", 4a\nb\n) = 4\n{M}\nexit_group(0) = ?\n',
    "cut by a remark": f"{EXEC}\n{M[:20]}strace: Process 9 attached\n{M[20:]}\nexit_group(0) = ?\n",
    "old remarks": f"Process 7 attached - interrupt to quit\n{EXEC}\n{M}\nexit_group(0) = ?\n"
    "Process 7 detached\n",
    "killed": f"{EXEC}\n{M}\n+++ killed by SIGSEGV (core dumped) +++\n",
    "signals": f"{EXEC}\n--- SIGCHLD {{si_signo=SIGCHLD}} ---\n{M}\n"
    "--- stopped by SIGSTOP ---\n--- SIGSEGV (Segmentation fault) @ 0 (0) ---\nexit(0) = ?\n",
    "restarted": f"restart_syscall(<... resuming interrupted read ...>) = 1\n{EXEC}\n{M}\n"
    "read(0, 0x7f, 9) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)\nexit(0) = ?\n",
}  # fmt: skip


@pytest.mark.parametrize("text", TERMINAL.values(), ids=TERMINAL)
def test_what_a_terminal_shows_beside(tmp_path, text):
    faults, made, freed = counted(read(tmp_path, text))
    assert (faults, made - freed) == (10, 0)


@pytest.mark.parametrize("announced", ["strace: Process 8 attached\n", ""])
def test_a_terminal_names_processes_while_there_are_several(tmp_path, announced):
    """The parent has a number once it has a child, and none again when that one is gone."""
    text = f"""\
{EXEC}
{M}
clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>
{announced}[pid     8] munmap({A:#x}, 40960) = 0
[pid     7] <... clone resumed>, child_tidptr=0x7f00) = 8
[pid     7] wait4(-1,  <unfinished ...>
[pid     8] exit_group(0) = ?
[pid     8] +++ exited with 0 +++
<... wait4 resumed>NULL, 0, NULL) = 8
munmap({A:#x}, 40960) = 0
exit_group(0) = ?
+++ exited with 0 +++
"""
    trace = read(tmp_path, text)
    assert counted(trace) == (10, 2, 2)
    assert trace.provenance.assumptions == ("touches assumed: data",)


def test_a_thread_that_execs_takes_the_number_of_its_process(tmp_path):
    text = f"""\
7 {EXEC}
7 clone3({{flags=CLONE_VM|CLONE_THREAD, stack_size=1}}, 88) = 8
8 execve("/bin/y", ["y"], 0x7f <unfinished ...>
7 <... futex resumed>) = ?
7 +++ superseded by execve in pid 8 +++
7 <... execve resumed>) = 0
7 {M}
7 exit_group(0) = ?
"""
    trace = read(tmp_path, text)
    assert counted(trace) == (10, 2, 2)
    assert trace.provenance.assumptions == ("touches assumed: data",)


def test_a_namespace_has_other_numbers(tmp_path):
    text = f"""\
7 {EXEC}
7 clone(child_stack=NULL, flags=SIGCHLD) = 2
900 {M}
900 exit_group(0) = ?
7 wait4(2, NULL, 0, NULL) = 2
7 exit_group(0) = ?
"""
    trace = read(tmp_path, text)
    assert counted(trace) == (10, 2, 2)
    assert "known by another number (PID namespace): 1" in remarks(trace)
    told = text.replace(") = 2\n", ") = 2 /* 900 in strace's PID NS */\n")
    assert counted(read(tmp_path, told)) == (10, 2, 2)


def test_successful_calls_alone_come_after_their_childs_lines(tmp_path):
    """-z writes a call when it has returned."""
    fork = "7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n"
    child = f"8 munmap({A:#x}, 40960) = 0\n8 exit_group(0) = ?\n"
    end = "7 exit_group(0) = ?\n"
    before = read(tmp_path, f"7 {EXEC}\n7 {M}\n{fork}{child}{end}")
    after = read(tmp_path, f"7 {EXEC}\n7 {M}\n{child}{fork}{end}")
    assert counted(before) == counted(after) == (10, 2, 2)
    assert list(before["op"]) == list(after["op"])


def test_numbers_are_used_again(tmp_path):
    end = "8 exit_group(0) = ?\n8 +++ exited with 0 +++\n"
    child = f"7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n8 {M}\n{end}"
    trace = read(tmp_path, f"7 {EXEC}\n{child * 3}7 exit_group(0) = ?\n")
    assert counted(trace) == (30, 4, 4)


def test_threads_have_one_heap(tmp_path):
    text = f"""\
7 {EXEC}
7 brk(NULL) = 0x1000000
7 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 8
8 brk(0x1004000) = 0x1004000
7 brk(0x1008000) = 0x1008000
7 exit_group(0) = ?
"""
    assert counted(read(tmp_path, text)) == (8, 1, 1)


def test_a_vfork_child_that_is_not_heard_of_does_not_stop_its_parent(tmp_path):
    text = f"7 {EXEC}\n7 vfork() = 8\n7 {M}\n7 exit_group(0) = ?\n"
    assert counted(read(tmp_path, text)) == (10, 1, 1)
    seen = text.replace("7 exit", "8 brk(NULL) = 0x1000000\n7 exit") + "8 exit(0) = ?\n"
    trace = read(tmp_path, seen)
    assert counted(trace) == (10, 2, 2)
    assert "vfork children whose exec or exit was not seen: 1" in remarks(trace)


def test_the_start_of_a_process_is_not_seen_when_strace_attaches(tmp_path):
    trace = read(tmp_path, f"7 <... futex resumed>) = 0\n7 {M}\n7 munmap({A:#x}, 40960) = 0\n")
    assert counted(trace)[0] == 10
    assert "1 of 1 processes not seen to begin" in remarks(trace)
    assert "calls whose beginning was not seen: 1" in remarks(trace)


LOADED = f"""\
7 {EXEC}
7 mmap(NULL, 40960, PROT_READ, MAP_PRIVATE, 3, 0) = {A:#x}
7 mmap({A:#x}, 8192, {RW}, MAP_PRIVATE|MAP_FIXED, 3, 0x1000) = {A:#x}
7 mprotect({A:#x}, 4096, PROT_READ) = 0
7 clone(child_stack=NULL, flags=SIGCHLD) = 8
8 munmap({A:#x}, 40960) = 0
8 exit_group(0) = ?
7 brk(NULL) = 0x1000000
7 exit_group(0) = ?
"""


def test_calls_without_effect_on_memory_change_nothing(tmp_path):
    quiet = '7 read(3, "", 9) = 0\n7 close(3) = 0\n7 openat(AT_FDCWD, "/x", 0) = -1 ENOENT (No)\n'
    want = read(tmp_path, LOADED)
    for at in range(1, len(LOADED.splitlines())):
        head, tail = (LOADED.splitlines(keepends=True)[x] for x in (slice(at), slice(at, None)))
        for assume in ("none", "data", "all"):
            trace = read(tmp_path, "".join((*head, quiet, *tail)), assume=assume)
            assert counted(trace) == counted(read(tmp_path, LOADED, assume=assume))
    assert counted(want)[0] == 2


def test_the_upper_bound_has_copies_after_a_fork_and_the_executable(tmp_path):
    faults = {a: counted(read(tmp_path, LOADED, assume=a))[0] for a in ("none", "data", "all")}
    assert faults["none"] == 0 < faults["data"] < faults["all"]
    alone = LOADED.replace("7 clone(child_stack=NULL, flags=SIGCHLD) = 8\n", "")
    lone = read(tmp_path, "".join(x for x in alone.splitlines(True) if x[0] == "7"), assume="all")
    assert faults["all"] - counted(lone)[0] > 2  # both copy what they write
    assert counted(lone)[0] > 100  # text and data of the executable


SPECIAL = {
    "shared memory": "7 shmget(IPC_PRIVATE, 40960, IPC_CREAT|0600) = 5\n"
    f"7 shmat(5, NULL, 0) = {A:#x}\n7 shmdt({A:#x}) = 0\n",
    "protection keys": f"7 mmap(NULL, 40960, PROT_NONE, {ANON}, -1, 0) = {A:#x}\n"
    f"7 pkey_mprotect({A:#x}, 40960, {RW}, 1) = 0\n",
    "old mmap": f"7 old_mmap(NULL, 40960, {RW}, {ANON}, -1, 0) = {A:#x}\n",
    "locked": f"7 mmap(NULL, 40960, {RW}, {ANON}|MAP_LOCKED, -1, 0) = {A:#x}\n",
    "mlock": f"7 {M}\n7 mlock({A:#x}, 40960) = 0\n",
    "populated by advice": f"7 {M}\n7 madvise({A:#x}, 40960, MADV_POPULATE_WRITE) = 0\n",
    "two views": f"7 mmap(NULL, 40960, {RW}, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = {A:#x}\n"
    f"7 mremap({A:#x}, 0, 40960, MREMAP_MAYMOVE) = {A + 65536:#x}\n",
    "zero": '7 openat(AT_FDCWD, "/dev/zero", O_RDWR) = 3\n'
    f"7 mmap(NULL, 40960, {RW}, MAP_PRIVATE, 3, 0) = {A:#x}\n",
}  # fmt: skip


@pytest.mark.parametrize("body", SPECIAL.values(), ids=SPECIAL)
def test_other_calls_that_change_memory(tmp_path, body):
    trace = read(tmp_path, f"7 {EXEC}\n{body}7 exit_group(0) = ?\n", assume="all")
    bare = read(tmp_path, f"7 {EXEC}\n7 exit_group(0) = ?\n", assume="all")
    stores = [int((t["op"] == Op.SET_PTE).sum()) for t in (trace, bare)]
    assert stores[0] - stores[1] >= 10


def test_a_32_bit_offset_may_count_pages(tmp_path):
    text = f"7 {EXEC}\n7 mmap2(NULL, 40960, PROT_READ, MAP_PRIVATE, 3, 0x13b) = {A:#x}\n"
    assert counted(read(tmp_path, text, assume="all"))[0] > 0
