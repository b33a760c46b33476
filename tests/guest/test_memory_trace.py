"""Readers of memory traces: four layouts, garbage, compression, bounded memory."""

import gzip
import lzma
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from pvmmu.errors import PvmmuError, RecordingError, TraceError
from pvmmu.guest.readers.memory.memory_trace import (
    KINDS,
    Layout,
    MemoryTrace,
    load_memory_trace,
    memory_trace_names,
    read_accesses,
)
from pvmmu.x86 import Tlb, make_geometry

LACKEY = """\
==9140== Lackey, an example Valgrind tool
==9140==
I  0401ab70,3
 S 1fff000768,8
 L 04022ff8,16
 M 0402a4b8,4

I  0401b77f,5
==9140== Exit code:       0
"""
DIN = """\
2 401ab70
1 1fff000768
0 0x4022ff8 some more
3 0
0   402a4b8
"""
DRMEMTRACE = """\
Output format:
<--record#-> <--instr#->: <---tid---> <record details>
------------------------------------------------------------
           1           0:     2765542 <marker: version 5>
           2           0:     2765542 <marker: filetype 0xe40>
           3           1:     2765543 ifetch       6 byte(s) @ 0x0000000000404a78 0f 84 5b 01 jz
       47445           2:     W0.T43 ifetch      10 byte(s) @ 0x0000000000404a7e 48 b8 24 08 00
                                                                            00 00 00 00 00 mov
       47446           2:     2765543 read         8 byte(s) @ 0x00007fdf64e2adc8 by PC 0x404a7e
       47447           2:     2765543 write       16 byte(s) @ 0x00007ffd90c1fff8 by PC 0x404a7e
       47448           2:     2765543 prefetch     1 byte(s) @ 0x00007ffd90c10000 by PC 0x404a7e
------------------------------------------------------------
       47452           2:     2765542 <marker: tid 2765542 on core 7>
View tool results:
              4 : total instructions
"""
CSV = """\
address,kind,size
# a comment
0x401ab70,fetch,3
0x1fff000768,W,8
67252216,read,16

0x402a4b8
0x402a4b8, m , 4
"""
WANT = {
    "lackey": ([0x401AB70, 0x1FFF000768, 0x4022FF8, 0x402A4B8, 0x401B77F], [2, 1, 0, 3, 2],
               [3, 8, 16, 4, 5]),
    "din": ([0x401AB70, 0x1FFF000768, 0x4022FF8, 0x402A4B8], [2, 1, 0, 0], [1] * 4),
    "drmemtrace": ([0x404A78, 0x404A7E, 0x7FDF64E2ADC8, 0x7FFD90C1FFF8], [2, 2, 0, 1],
                   [6, 10, 8, 16]),
    "csv": ([0x401AB70, 0x1FFF000768, 0x4022FF8, 0x402A4B8, 0x402A4B8], [2, 1, 0, 0, 3],
            [3, 8, 16, 1, 4]),
}  # fmt: skip
TEXT = {"lackey": LACKEY, "din": DIN, "drmemtrace": DRMEMTRACE, "csv": CSV}


def everything(path, *args, **kw):
    parts = list(read_accesses(path, *args, **kw))
    return [
        np.concatenate([getattr(p, x) for p in parts]).tolist() for x in ("address", "kind", "size")
    ]


@pytest.fixture(params=sorted(TEXT))
def trace(request, tmp_path):
    path = tmp_path / "trace.txt"
    path.write_text(TEXT[request.param])
    return path, request.param


def test_every_layout_is_found_out_and_read(trace):
    path, name = trace
    assert everything(path) == list(WANT[name])
    assert everything(path, name) == everything(path, Layout[name.upper()]) == list(WANT[name])


def test_pieces_of_any_length_and_a_last_line_without_end(trace):
    path, name = trace
    path.write_text(path.read_text().rstrip("\n"))
    assert everything(path, piece=1) == list(WANT[name])
    assert len(next(read_accesses(path, piece=2))) == 2


def test_blocks_may_end_within_a_line(trace, monkeypatch):
    path, name = trace
    monkeypatch.setattr("pvmmu.guest.readers.memory.read._BLOCK", 7)
    assert everything(path, name) == list(WANT[name])


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files(suffix, opener, tmp_path):
    path = tmp_path / f"trace{suffix}"
    with opener(path, "wt") as f:
        f.write(LACKEY)
    assert everything(path) == list(WANT["lackey"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(RecordingError, match="cut short"):
        everything(path)
    path.write_bytes(b"plain text\n")
    with pytest.raises(RecordingError, match="not a line of any known layout"):
        everything(path)


@pytest.mark.parametrize(
    ("name", "garbage"),
    [
        ("lackey", " X 1234,4"),
        ("lackey", " L 12g4,4"),
        ("lackey", " L 1234"),
        ("lackey", " L 1234,4 more"),
        ("lackey", " L 10000000000000000,4"),
        ("lackey", " L 1234,99999999999"),
        ("lackey", "\x00\xff"),
        ("din", "5 1234"),
        ("din", "0"),
        ("din", "0 xyz"),
        ("din", "read 1234"),
        ("drmemtrace", "hello world"),
        ("drmemtrace", "   1   0:  7 read 8 byte(s) @ nowhere"),
        ("csv", "0x12,jump"),
        ("csv", "0x12,r,many"),
        ("csv", "0x12,r,4,5"),
        ("csv", "twelve"),
        ("csv", "0x12 r"),
    ],
)
def test_garbage_is_named_by_file_and_line(name, garbage, tmp_path):
    path = tmp_path / "bad.txt"
    text = TEXT[name]
    path.write_text(text + garbage + "\n" + text, encoding="latin-1")
    with pytest.raises(RecordingError) as e:
        everything(path, name)
    number = text.count("\n") + 1
    assert f"bad.txt:{number}: not a line of {name}" in str(e.value)
    assert isinstance(e.value, PvmmuError)


def test_lines_keep_their_numbers_across_pieces_and_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("pvmmu.guest.readers.memory.read._BLOCK", 64)
    path = tmp_path / "bad.txt"
    path.write_text(LACKEY * 50 + "oops\n")
    with pytest.raises(RecordingError, match=rf"bad.txt:{50 * LACKEY.count(chr(10)) + 1}: .*oops"):
        everything(path, piece=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no access in it"),
        ("==1== nothing\n", "no access in it"),
        ("what is this\n", "not a line of any known layout"),
        ("0x10," + "r" * 70000, "a line of more than"),
        ("0x10,r\n" + "x" * 100000, ":2: a line of more than"),
        ("==1==\n" * 20000 + " L 10,4\nL\n", ":20002: not a line of lackey"),
    ],
)
def test_files_without_accesses(text, says, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(RecordingError, match=says):
        everything(path)


def test_missing_files_unknown_layouts_and_directories(tmp_path):
    with pytest.raises(RecordingError, match="no such file"):
        everything(tmp_path / "none.txt")
    with pytest.raises(RecordingError, match="'pin': lackey, din"):
        everything(tmp_path / "none.txt", "pin")
    with pytest.raises(RecordingError, match="cannot be read"):
        everything(tmp_path)
    with pytest.raises(RecordingError, match="at least one"):
        everything(tmp_path, piece=0)


def test_an_access_across_pages_touches_each(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0x1ffc,r,8\n0x5000,w,0\n0x7fff,f,1\n0x8fff,m,8193\n")
    (part,) = read_accesses(path)
    every = part.pages()
    assert every.words.tolist() == [1, 2, 5, 7, 8, 9, 10]
    assert every.fetch.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert part.pages(fetches=False).words.tolist() == [1, 2, 5, 8, 9, 10]
    assert part.pages(data=False).words.tolist() == [7]
    assert part.pages(data=False).fetch.tolist() == [1]
    trace = MemoryTrace.read(path)
    assert trace.pages().words.tolist() == every.words.tolist()


@pytest.mark.compiled
def test_a_long_trace_runs_in_bounded_memory(tmp_path):
    """Eight times the trace, the same memory (a piece, and a block of the file)."""
    code = (
        "import sys; from pvmmu.guest.readers.memory.memory_trace import read_accesses;"
        "from pvmmu.x86 import Tlb; t = Tlb('skylake'); n = 0\n"
        "for a in read_accesses(sys.argv[1], progress=False): t.run(a.pages()); n += len(a)\n"
        # not ru_maxrss: that of the parent goes through exec
        "print(n, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks, lines = [], "".join(f" L {4096 * i + 8:x},8\n" for i in range(50000))
    for times in (1, 10, 80):  # the first compiles what is not in the cache yet
        path = tmp_path / f"{times}.txt"
        with path.open("w") as f:
            for _ in range(times):
                f.write(lines)
        run = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=True,
            env=os.environ,
        )  # fmt: skip
        n, kib = (int(x) for x in run.stdout.split())
        assert n == 50000 * times
        peaks.append(kib)
    assert peaks[2] < peaks[1] + 20 * 1024
    assert peaks[2] < 1 << 20


def test_traces_that_ship():
    assert memory_trace_names() == ["cc1", "sort"]
    want = {"cc1": (16003892, 4976995, 565), "sort": (16000068, 4910733, 1063)}
    for name, (touches, data, number) in want.items():
        trace = load_memory_trace(name)
        assert len(trace) == touches
        accesses = trace.pages(fetches=False)
        assert len(accesses) == data and accesses.fetch.size == 1
        assert np.unique(accesses.words).size == number
    with pytest.raises(RecordingError, match="cc1"):
        load_memory_trace("cc2")


@pytest.mark.compiled
def test_misses_of_the_real_traces():
    """Two levels, data accesses: as counted by Dinero IV, pycachesim and C when recorded."""
    want = {"cc1": (41418, 519), "sort": (1212, 1057)}
    for name, misses in want.items():
        accesses = load_memory_trace(name).pages(fetches=False, limit=4_000_000)
        got = Tlb(make_geometry((16, 4), (128, 12))).run(accesses)
        assert tuple(got.misses) == misses


def test_a_pipe_will_do(tmp_path):
    pipe = tmp_path / "live.lackey"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(" L 1000,8\n S 2000,4\n",))
    writer.start()
    parts = list(read_accesses(pipe))
    writer.join()
    assert [a for p in parts for a in p.address.tolist()] == [0x1000, 0x2000]


def test_compact_files_round_trip_and_refuse_others(tmp_path):
    trace = MemoryTrace(
        "t", np.array([5, 9], np.uint64), np.array([0, 1, 1]), np.array([0, 2, 3], np.uint8)
    )
    path = trace.save(tmp_path / "t.mem.xz")
    again = MemoryTrace.load(path)
    assert (
        again.name == "t" and again.index.tolist() == [0, 1, 1] and again.kind.tolist() == [0, 2, 3]
    )
    big = MemoryTrace(
        "b", np.arange(20000, dtype=np.uint64), np.array([19999]), np.zeros(1, np.uint8)
    )
    assert MemoryTrace.load(big.save(tmp_path / "b.mem.xz")).index.tolist() == [19999]
    with pytest.raises(TraceError, match=r"\.mem\.xz"):
        trace.save(tmp_path / "t.npz")
    for bad in (b"", b"no xz", lzma.compress(b"no npy")):
        path.write_bytes(bad)
        with pytest.raises(RecordingError, match="not a compact"):
            MemoryTrace.load(path)
    with pytest.raises(RecordingError, match="no such file"):
        MemoryTrace.load(tmp_path / "none.mem.xz")


@pytest.mark.parametrize(
    ("table", "index", "kind", "says"),
    [
        ([1], [1], [0], "page 1 of 1"),
        ([1], [0, 0], [0], "differ in length"),
        ([1], [0], [4], "kind"),
    ],
)
def test_inconsistent_traces(table, index, kind, says):
    with pytest.raises(TraceError, match=says):
        MemoryTrace("t", np.array(table, np.uint64), np.array(index), np.array(kind, np.uint8))


def test_kinds_are_named():
    assert KINDS == ("read", "write", "fetch", "modify")
