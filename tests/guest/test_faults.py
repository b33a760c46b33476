"""Page faults that perf has recorded, beside a strace: they are what is touched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.faults import UNKNOWN, read_faults
from pvmmu.guest.readers.strace import read_strace
from pvmmu.guest.trace import Op

A = 0x7F1000000000
CALLS = f"""\
7 1700000000.100000 execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0
7 1700000000.200000 mmap(NULL, 40960, 0x3, 0x22, -1, 0) = {A:#x}
7 1700000000.300000 clone(child_stack=NULL, flags=SIGCHLD) = 8
8 1700000000.400000 exit_group(0) = ?
7 1700000000.500000 munmap({A:#x}, 40960) = 0
7 1700000000.600000 exit_group(0) = ?
"""
#: In the parent two pages, one of which is written again after the fork; one in the child; one of
#: the executable; before execve, one of strace itself.
FAULTS = [
    (7, 0.05, 0x401000, 4), (7, 0.15, 0x401000, 0x14), (7, 0.25, A, 6), (7, 0.26, A + 4096, 6),
    (8, 0.35, A + 4096, 7), (7, 0.45, A, 7),
]  # fmt: skip


def software(start=1700000000):
    return "".join(
        f"{pid}/{pid} {start + t:.6f}: page-faults: {at:16x}\n" for pid, t, at, _ in FAULTS
    )


def tracepoints(start=5000):
    return "".join(
        f"       x {pid} [001] {start + t:.6f}: exceptions:page_fault_user: address={at:#x} "
        f"ip=main error_code={code:#x}\n"
        for pid, t, at, code in FAULTS
    )


def perf_trace():
    return "".join(
        f"{1000 * t:10.3f} ( 0.000 ms): x/{pid} minfault [main+0x1] => "
        f"{f'{at:#x}' if at >= A else f'/bin/x@{at:#x}'} ({'d.' if at >= A else 'x.'})\n"
        for pid, t, at, _ in FAULTS
    )


FORMS = {"page-faults -d": software, "tracepoints": tracepoints, "perf trace": perf_trace}


def recorded(folder, text):
    path = folder / "a.strace"
    path.write_text(CALLS)
    (folder / "a.faults").write_text(text)
    return path


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_faults_beside_a_strace_are_what_is_touched(tmp_path, form):
    trace = read_strace(recorded(tmp_path, form()))
    faults = trace["va"][trace["op"] == Op.FAULT]
    assert len(faults) == 5
    assert [int(v) for v in faults if v >= A] == [A, A + 4096, A + 4096, A]
    assert trace.provenance.assumptions == ()
    [note] = [x for x in trace.provenance.notes if x.startswith("touches:")]
    assert "placed by time" in note


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_without_times_the_addresses_tell_between_which_calls(tmp_path, form):
    path = recorded(tmp_path, form())
    path.write_text(re.sub(r"17\d+\.\d+ ", "", CALLS))
    trace = read_strace(path)
    assert 4 <= int((trace["op"] == Op.FAULT).sum()) <= 6
    assert any("placed by address" in x for x in trace.provenance.notes)


def test_a_time_of_day_is_matched_whatever_the_zone(tmp_path):
    path = recorded(tmp_path, software())
    day = 1700000000 % 86400 - 2 * 3600
    clock = f"{day // 3600:02}:{day // 60 % 60:02}:{day % 60:02}"
    path.write_text(CALLS.replace("1700000000", clock))
    trace = read_strace(path)
    assert int((trace["op"] == Op.FAULT).sum()) == 5
    assert any("placed by time" in x for x in trace.provenance.notes)


def test_what_is_told_of_an_access(tmp_path):
    path = tmp_path / "f"
    path.write_text(tracepoints())
    assert [f.kind for f in read_faults(path).of[7]] == [0, 2, 1, 1, 1]
    path.write_text(software())
    assert {f.kind for f in read_faults(path).of[7]} == {UNKNOWN}


WRONG = {
    "": "no page fault of perf in it",
    "hello\n": "no page fault of perf in it",
    "x 7 1.5: 1 page-faults:  7f7cb9e36b70 _start+0x0 (/lib/ld.so)\n":
        "f:1: page faults without addresses",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_has_no_addresses_is_refused_with_how_to_record(tmp_path, text):
    path = tmp_path / "f"
    path.write_text(text)
    with pytest.raises(RecordingError, match=WRONG[text]) as e:
        read_faults(path)
    assert "perf script -F pid,tid,time,event,addr" in str(e.value)


SCRIPT = "for i in 1 2 3; do (cd /tmp; /bin/true); done; echo $(echo hi | cat)"


def perf_works(folder):
    """Whether perf may record here."""
    command = ["perf", "record", "-q", "-e", "page-faults", "-d", "-o", folder / "p", "true"]
    return (
        shutil.which("perf")
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_recorded_shell_has_the_forks_execs_and_faults_that_the_kernel_counted(tmp_path):
    strace = ["strace", "-f", "-ttt", "-o", tmp_path / "a.strace", "bash", "-c", SCRIPT]
    perf = ["perf", "record", "-q", "-k", "CLOCK_REALTIME", "-e", "page-faults", "-c", "1", "-d"]
    with_perf = perf_works(tmp_path)
    words = [*perf, "-o", tmp_path / "a.data", *strace] if with_perf else strace
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip("strace may not run here")
    lines = (tmp_path / "a.strace").read_text().splitlines()
    forks = len({x.split()[0] for x in lines}) - 1
    execs = sum("execve" in x and x.endswith("= 0") for x in lines)
    bounds = {a: read_strace(tmp_path / "a.strace", assume=a) for a in ("none", "data", "all")}
    for trace in bounds.values():
        made = int((trace["op"] == Op.PGD_ALLOC).sum())
        assert made == forks + execs
        assert int((trace["op"] == Op.PGD_FREE).sum()) == made  # the first is older, the last gone
    if not with_perf:
        return
    said = subprocess.run(
        ["perf", "script", "-i", tmp_path / "a.data", "-F", "pid,tid,time,event,addr"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    Path(tmp_path / "a.faults").write_text(said.stdout)
    pids = {int(x.split()[0]) for x in lines}
    start = float(lines[0].split()[1])
    of = read_faults(tmp_path / "a.faults").of
    counted = sum(f.time >= start for pid in pids & set(of) for f in of[pid])
    trace = read_strace(tmp_path / "a.strace")
    assert abs(int((trace["op"] == Op.FAULT).sum()) - counted) <= 0.05 * counted
    faults = {a: int((t["op"] == Op.FAULT).sum()) for a, t in bounds.items()}
    assert faults["none"] <= counted <= faults["all"]
