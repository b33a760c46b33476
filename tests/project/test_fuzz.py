"""What others wrote is refused with one clear error, or taken (`make fuzz` looks further)."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys

import numpy as np
import pytest
import run
from conftest import ROOT
from readers import CORPUS, READERS

_ODD = np.frombuffer(b"0-,.=\n\x00\xff9999999999e", np.uint8)
FOUND = sorted(CORPUS.glob("*/*"))


def mutated(seed: bytes, rng: np.random.Generator) -> bytes:
    """Return an input with a few bytes flipped, cut, doubled or put in."""
    out = bytearray(seed)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at, n = int(rng.integers(len(out))), int(rng.integers(1, 40))
        how = rng.integers(5)
        if how == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            del out[at : at + n]
        elif how == 2:
            out[at:at] = out[at : at + n]
        elif how == 3:
            out[at:at] = rng.choice(_ODD, n).tobytes()
        else:
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("name", READERS)
def test_changed_input_is_taken_or_refused(name):
    reader, rng = READERS[name], np.random.default_rng(7)
    seeds = reader.seeds()
    taken = [reader.accepts(s) for s in seeds]
    assert any(taken), "no seed is accepted: the reader is not exercised"
    for i in range(reader.tries):
        reader.accepts(mutated(seeds[i % len(seeds)], rng))


@pytest.mark.parametrize("path", FOUND, ids=lambda p: f"{p.parent.name}-{p.name[:20]}")
def test_what_fuzzing_found_is_taken_or_refused(path):
    READERS[path.parent.name].accepts(path.read_bytes())


def test_every_finding_is_told_with_the_test_that_holds_it():
    told = run.findings()
    kept = {f["name"] for f in told if "held" not in f}
    assert kept == {f"{p.parent.name}/{p.name}" for p in FOUND}
    page = run.RESULTS.read_text()
    for finding in told:
        path, _, test = run.held(finding).partition("::")
        assert f"def {test}(" in (ROOT / path).read_text()
        assert finding["name"] in page and finding["what"] in page


def test_every_reader_was_fuzzed_to_the_end():
    kept = json.loads(run.KEPT.read_text())
    assert set(kept) == set(READERS)
    assert min(row["inputs"] for row in kept.values()) >= 100_000


_PEAK = """
from pvmmu.errors import PvmmuError
{imports}
def most():  # not ru_maxrss: that of the parent goes through exec
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = most()
try:
    {call}
except PvmmuError as e:
    print((most() - before) // 1024, e)
"""
_BOMBS = {
    "recording": (
        "bomb.txt", "from pvmmu.guest.readers.xen.recording import read_recording",
        "read_recording({path!r})",
    ),
    "accesses": (
        "bomb.lackey", "from pvmmu.guest.readers.memory.read import read_accesses",
        "list(read_accesses({path!r}))",
    ),
    "touches": (
        "bomb.lackey", "from pvmmu.guest.readers.strace.touches import read_lackey",
        "read_lackey({path!r})",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _BOMBS)
@pytest.mark.parametrize(("pack", "byte"), [(gzip, b"\0"), (gzip, b" "), (lzma, b"1")])
def test_a_compressed_bomb_is_refused_in_little_memory(tmp_path, what, pack, byte):
    name, imports, call = _BOMBS[what]
    path = tmp_path / (name + (".gz" if pack is gzip else ".xz"))
    with pack.open(path, "wb") as f:
        for _ in range(64):
            f.write(byte * (1 << 20))
    assert path.stat().st_size < 1 << 18
    program = _PEAK.format(imports=imports, call=call.format(path=str(path)))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    mib, message = done.stdout.split(" ", 1)
    assert int(mib) < 48
    assert path.name in message
