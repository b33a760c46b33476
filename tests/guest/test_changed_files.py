"""Files of known kinds, changed at random: the sniffer and the reader of faults take or refuse."""

from __future__ import annotations

import numpy as np
import pytest
from readers import READERS

from pvmmu.errors import PvmmuError
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.faults import read_faults
from pvmmu.guest.readers.sniff import kind_of

FAULTS = (
    b"7/7 1700000000.25: page-faults: 7f1000000000\n x 8 [1] 5.5: exceptions:page_fault_user: "
    b"address=0x7f1 ip=main error_code=0x6\n 1.0 ( 0.0 ms): x/7 minfault [m+1] => /x@0x4 (d.)\n"
)
ODD = np.frombuffer(b"0-,.=\n\x00\xff([<>|x", np.uint8)


def changed(seed, rng):
    """A seed with bytes flipped, cut, doubled, put in."""
    out = bytearray(seed)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at, n = int(rng.integers(len(out))), int(rng.integers(1, 40))
        how = int(rng.integers(4))
        if how == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            del out[at : at + n]
        elif how == 2:
            out[at:at] = out[at : at + n]
        else:
            out[at:at] = rng.choice(ODD, n).tobytes()
    return bytes(out)


def taken_or_refused(read, path):
    try:
        read(path)
    except PvmmuError as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("read", [kind_of, read_faults, load_trace])
def test_changed_files_are_taken_or_refused(read, tmp_path):
    rng, path = np.random.default_rng(3), tmp_path / "f"
    seeds = [s for name in ("strace", "accesses", "recording") for s in READERS[name].seeds()]
    seeds = [FAULTS] if read is read_faults else [s[:2000] for s in seeds] + [FAULTS]
    for i in range(60 if read is load_trace else 400):
        path.write_bytes(changed(seeds[i % len(seeds)], rng))
        taken_or_refused(read, path)
