"""A file is known by its content, whatever its name; what cannot be read is one clear error."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pvmmu.errors import RecordingError, TraceError
from pvmmu.guest.load_trace import Reading, load_trace, trace_path
from pvmmu.guest.readers import sniff
from pvmmu.guest.readers.sniff import Kind, kind_of
from pvmmu.guest.readers.strace import read_strace
from pvmmu.guest.trace import Op
from pvmmu.paths import data_path

CASES = Path(__file__).parent.parent / "data" / "strace"
OK = (CASES / "ok.strace").read_bytes()
PACKED = {
    "plain": lambda b: b, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
    "zst": lambda b: pa.compress(b, codec="zstd", asbytes=True),
}  # fmt: skip


def faults(trace):
    return int((trace["op"] == Op.FAULT).sum())


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", ["strace.log", "out.1234", "x.din", "a", "b.gz", "c.txt"])
def test_any_name_and_any_compression(tmp_path, name, pack):
    path = tmp_path / name
    path.write_bytes(pack(OK))
    assert faults(load_trace(str(path))) == faults(load_trace(path)) == 10


def test_standard_input(monkeypatch):
    sniff._spooled.cache_clear()
    stdin = io.TextIOWrapper(io.BytesIO(OK))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert faults(load_trace("-")) == 10
    sniff._spooled.cache_clear()


def test_a_recording_and_parquet_under_other_names(tmp_path):
    text = lzma.decompress(data_path("traces", "mmap.16.txt.xz").read_bytes())
    (tmp_path / "r.log").write_bytes(text)
    (tmp_path / "p.data").write_bytes(trace_path("fork.16").read_bytes())
    assert len(load_trace(tmp_path / "r.log")) == len(
        load_trace(data_path("traces/mmap.16.txt.xz"))
    )
    assert load_trace(tmp_path / "p.data").fingerprint == load_trace("fork.16").fingerprint


MEMORY = {
    "lackey": "==1== Lackey\nI  0401ab70,3\n", "pin": "#\n0x401000: R 0x401ab70\n",
    "csv": "pc,addr\n0x1,0x2\n", "words": "r 0x7fff0000\n", "last": "7fff0000 W\n",
}  # fmt: skip


@pytest.mark.parametrize("text", MEMORY.values(), ids=MEMORY)
def test_a_memory_trace_is_named_with_the_command_for_it(tmp_path, text):
    path = tmp_path / "t.strace"
    path.write_text(text)
    assert kind_of(path) is Kind.MEMORY
    with pytest.raises(RecordingError, match=r"a memory trace, not operations.*pvmmu tlb"):
        load_trace(path)


WRONG = {
    b"": "empty", b"  \n\n": "only blanks", b"PERFILE2abc": "data of perf record.*perf script",
    b"\x7fELF\x02\x01": "an executable: record it", b"PK\x03\x04": "a zip file",
    bytes(2000) + b"x" * 90: "binary, of no known kind",
    b"Dear all,\nplease find attached\n": "text of no known kind, 'Dear all,'",
    b"% time     seconds  usecs/call     calls    errors syscall\n 0.0 0.0 0 1 read\n":
        "a summary of strace .-c.: calls themselves are needed",
    b"BUG: unable to handle page fault for address: 0\n": "an oops: pvmmu oops",
    b"sleep->malloc(32)   = 0x1\n": "ltrace: record system calls",
    b"[ Process PID=7 runs in 32 bit mode. ]\n": "no system call in it",
    b"bash 11287/11287 3119.189929: page-faults: 556e7a793764\n": "page faults of perf, not oper",
}  # fmt: skip


@pytest.mark.parametrize("content", WRONG)
def test_what_cannot_be_read_is_one_error_that_says_what_it_looks_like(tmp_path, content):
    path = tmp_path / "some.strace"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=WRONG[content]) as e:
        load_trace(path)
    assert "some.strace" in str(e.value) and "\n" not in str(e.value)


def test_names_that_are_none(tmp_path):
    with pytest.raises(TraceError, match=r"no trace named 'frk.64'.*did you mean 'fork.64'"):
        load_trace("frk.64")
    with pytest.raises(RecordingError, match=r"none.strace: no such file"):
        load_trace(str(tmp_path / "none.strace"))
    with pytest.raises(RecordingError, match="none: no such file"):
        load_trace(tmp_path / "none")
    with pytest.raises(TraceError, match=r"is not WORKLOAD.N@KERNEL"):
        load_trace("fork@6.1")


def test_how_system_calls_are_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(OK)
    assert faults(load_trace(path, Reading(assume="none"))) == 0
    assert faults(load_trace(path, Reading(assume="all"))) > 10
    assert load_trace(path, Reading(kernel="2.6.27")).provenance.kernel.startswith("2.6.27")
    with pytest.raises(RecordingError, match="assume='much' is none of"):
        load_trace(path, Reading(assume="much"))


FORKS = """\
7 execve("/bin/x", ["x"], 0x7ffc /* 3 vars */) = 0
7 clone(child_stack=NULL, flags=SIGCHLD) = 8
8 mmap(NULL, 40960, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f1000000000
8 exit_group(0) = ?
7 wait4(-1, NULL, 0, NULL) = 8
7 exit_group(0) = ?
"""


@pytest.mark.parametrize("times", [False, True])
def test_a_folder_of_one_file_for_each_process(tmp_path, times):
    (tmp_path / "a.strace").write_text(FORKS)
    folder = tmp_path / "folder"
    folder.mkdir()
    for pid in "78":
        lines = [(i, x[2:]) for i, x in enumerate(FORKS.splitlines(True)) if x[0] == pid]
        text = "".join(f"{f'12:00:0{i} ' if times else ''}{x}" for i, x in lines)
        (folder / f"out.{pid}").write_text(text)
    (folder / "out.9").write_text("")
    want = read_strace(tmp_path / "a.strace")
    for name in (folder, str(folder), str(folder / "out")):
        got = load_trace(name)
        assert all(np.array_equal(got[c], want[c]) for c in ("op", "mm", "va", "task"))
        assert any("in no known order" in x for x in got.provenance.notes) is not times
    (folder / "other.9").write_text("")
    with pytest.raises(RecordingError, match=r"several recordings.*; name one: .*other"):
        load_trace(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecordingError, match="empty: "):
        load_trace(empty)
