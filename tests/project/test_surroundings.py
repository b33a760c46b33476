"""Surroundings that a result must not depend on, or must not die of.

Locale, time zone, hash seed; a disk that is full; a home that cannot be written; other threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.figure
import nbformat
import numpy as np
import pytest
from conftest import ROOT, recorded
from test_costs import timings

from pvmmu.cli import run_notebooks as lab
from pvmmu.cli.sweep import write_table
from pvmmu.costs import calibrate, calibration, get_costs
from pvmmu.errors import PvmmuError
from pvmmu.figures import save_figure
from pvmmu.guest.readers.memory.memory_trace import MemoryTrace
from pvmmu.guest.readers.strace.touches import thin
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.paths import data_path
from pvmmu.replay import replay
from pvmmu.replay.compare import Comparison, Design
from pvmmu.report import State, write_bundle
from pvmmu.report.run_report import write_report
from pvmmu.search import search
from pvmmu.search.sweep import sweep
from pvmmu.x86 import Tlb, make_geometry, pages, warm

# ---------------------------------------------------------------------- locale, time zone, hashes
EVERYTHING = """
    import locale, sys
    locale.setlocale(locale.LC_ALL, "")
    from pvmmu.cli import main
    from pvmmu.guest.workloads import run_workload
    from pvmmu.search import search
    out = sys.argv[1]
    assert main(["proposal", "fork.16", "direct=linux-6.1", "vmi=vmi", "-o", f"{out}/bundle",
                 "--no-notebook"]) == 0
    assert main(["sweep", "fork.1", "--mode", "vmi", "-o", f"{out}/sweep.csv", "--quiet"]) == 0
    assert main(["report", "fork.16", "-o", f"{out}/report.txt"]) == 0
    search(["fork.1", "mmap.16"], ["direct"], progress=False).save(f"{out}/search")
    run_workload("cow", 24).save(f"{out}/cow.parquet")
"""


def surroundings(folder: Path) -> Iterator[dict[str, str]]:
    """Yield environments as unlike as this machine can make them."""
    yield {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "0"}
    made = folder / "locales"
    made.mkdir()
    for name, charset, zone in (("tr_TR", "ISO-8859-9", "Asia/Kathmandu"),
                                ("de_DE", "UTF-8", "America/St_Johns")):  # fmt: skip
        known = f"{name}.{charset}"
        if shutil.which("localedef"):  # its sources may be missing: then C it is, in another zone
            command = ["localedef", "-i", name, "-f", charset, str(made / known)]
            subprocess.run(command, capture_output=True, check=False)
        yield {
            "LOCPATH": str(made), "LC_ALL": known if (made / known).is_dir() else "C",
            "PYTHONUTF8": "0", "TZ": zone, "PYTHONHASHSEED": str(len(zone)), "COLUMNS": "40",
        }  # fmt: skip


@pytest.mark.slow
def test_results_are_the_same_bytes_everywhere(tmp_path):
    found = []
    for i, env in enumerate(surroundings(tmp_path)):
        out = tmp_path / str(i)
        out.mkdir()
        program = "\n".join(line[4:] for line in EVERYTHING.splitlines())
        run = subprocess.run(
            [sys.executable, "-c", program, str(out)], env={**os.environ, **env},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        found.append(
            {
                str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(out.rglob("*")) if p.is_file()
            }
        )  # fmt: skip
    assert len(found[0]) >= 10
    assert found[0] == found[1] == found[2]


# ---------------------------------------------------------------------- a disk that is full
@contextlib.contextmanager
def full_disk(left: int) -> Iterator[None]:
    """Let no file grow beyond some bytes: the kernel refuses the rest in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _figure(path: Path) -> None:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot(np.arange(1000) % 7)
    save_figure(figure, path.with_suffix(""), [path.suffix[1:]])


def _comparison() -> Comparison:
    designs = Design.of("linux-6.1", "direct"), Design.of("vmi", "vmi")
    return Comparison(recorded("fork.16"), designs, get_costs("p4-2006"))


def _memory(path: Path) -> None:
    pages = np.random.default_rng(1).integers(0, 1 << 30, 2000).astype(np.uint64)
    index = np.arange(2000)
    MemoryTrace("t", pages, index, np.zeros(2000, np.uint8)).save(path)


#: Everything that writes a file, by the name of the file.
WRITERS: dict[str, Callable[[Path], object]] = {
    "trace.parquet": lambda p: recorded("fork.16").save(p),
    "memory.mem.xz": _memory,
    "touches.lackey": lambda p: thin(next(data_path("strace").glob("*.gz")), p),
    "costs.toml": lambda p: calibrate(p, like="p4-2006", repetitions=5, mhz=2000),
    "table.csv": lambda p: write_table(sweep(["fork.1"], "all", ["vmi"], progress=False), p),
    "table.parquet": lambda p: write_table(sweep(["fork.1"], "all", ["vmi"], progress=False), p),
    "report.txt": lambda p: write_report(_comparison(), p),
    "figure.png": _figure,
    "figure.svg": _figure,
    "figure.pdf": _figure,
    "search": lambda p: search(["fork.1"], ["direct"], progress=False).save(p),
    "bundle": lambda p: write_bundle(
        State.of("fork.1", ["direct=linux-6.1"], "p4-2006"), p, notebook=False
    ),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_what_was_there(name, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_timings", lambda n: timings())
    write = WRITERS[name]
    with full_disk(500), pytest.raises(PvmmuError, match="File too large") as e:
        write(tmp_path / name)
    assert str(tmp_path / name.split(".")[0]) in str(e.value)
    assert not files(tmp_path), "nothing half-written stays"
    write(tmp_path / name)
    before = files(tmp_path)
    assert before
    with full_disk(500), pytest.raises(PvmmuError):
        write(tmp_path / name)
    assert files(tmp_path) == before


def test_a_full_disk_ends_a_notebook_run_in_one_error(tmp_path):
    cell = nbformat.v4.new_code_cell("print('x' * 50_000)")
    source = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source)
    out = tmp_path / "out"
    out.mkdir()
    with full_disk(20_000), pytest.raises(PvmmuError, match=r"n\.ipynb: cannot be written"):
        lab.run_notebook(source, out)
    assert not files(out)


# ---------------------------------------------------------------------- a home that is none
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["replay", "fork.16"], ["proposal", "fork.1", "vmi=vmi", "--no-notebook", "-o", "{out}"]],
)
def test_a_home_that_cannot_be_written_is_no_error(words, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "JUPYTER"))}
    nowhere = tmp_path / "file"
    nowhere.write_text("no folder")
    env |= {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere), "IPYTHONDIR": str(nowhere / "i")}
    words = [w.format(out=tmp_path / "out") for w in words]
    run = subprocess.run(
        [sys.executable, "-m", "pvmmu", *words],
        env={**env, "PYTHONPATH": str(ROOT)}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", None])
def test_compiling_beforehand_is_announced_and_kept_where_there_is_a_place(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(warm, "cache_dir", lambda room: place and tmp_path)
    said: list[str] = []
    assert warm.warm_up(said.append) > 0
    assert said[0].startswith("compiling pvmmu.x86, once for this version")
    assert [line.split(":")[0].strip() for line in said[1:]] == ["walks", "TLBs and reach", "MMUs"]
    again = warm.warm_up(said.append)
    assert (again == 0, len(said)) == ((True, 4) if place else (False, 8))


# ---------------------------------------------------------------------- many threads
THREADS, ROUNDS = 8, 6
DESIGNS = [
    ("linux-6.1", "direct"), ("linux-2.6.27", "direct:backend=2.6.27,stores=batched"),
    ("vmi", "vmi"), ("none", "shadow"), ("none", "shadow:code=xen-2006"), ("none", "nested"),
    ("kvm-pvmmu", "kvm-pvmmu"), ("lguest", "lguest"), ("none", "native"),
]  # fmt: skip


def _misses(seed: int) -> np.ndarray:
    tlb = Tlb(make_geometry((16, 4), (128, 8)))
    numbers = np.random.default_rng(seed).integers(0, 512, 20_000).astype(np.uint64)
    return np.asarray(tlb.run(pages(numbers << np.uint64(12))).misses)


def logged(trace: Trace, hooks: str, mode: str) -> np.ndarray:
    return get_mode(mode).run(trace, HookSet.parse(hooks), log=True).log


def test_eight_threads_on_the_same_kernels():
    """Replays, log and all, TLBs and searches: each thread gets what it gets alone."""
    trace = recorded("fork.16")
    jobs = [(lambda d=d: replay(trace, *d).low) for d in DESIGNS]
    jobs += [(lambda d=d: logged(trace, *d)) for d in DESIGNS]
    jobs += [(lambda s=s: _misses(s)) for s in range(4)]
    jobs += [
        lambda: search([recorded("fork.1")], ["direct"], progress=False)["fork.1", "direct"].low
    ]
    alone = [job() for job in jobs]
    start = threading.Barrier(THREADS)

    def hammer(number: int) -> int:
        start.wait()
        order = np.random.default_rng(number).permutation(len(jobs) * ROUNDS) % len(jobs)
        return sum(not np.array_equal(jobs[j](), alone[j]) for j in order)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(hammer, range(THREADS))) == [0] * THREADS


def test_eight_threads_compile_the_same_kernel(tmp_path):
    program = (
        "from concurrent.futures import ThreadPoolExecutor as P\n"
        "from pvmmu import load_trace\n"
        "from pvmmu.replay import replay\n"
        "t = load_trace('fork.1')\n"
        "with P(8) as p:\n"
        "    out = list(p.map(lambda _: replay(t, 'vmi', 'vmi').low.tolist(), range(8)))\n"
        "print(all(o == out[0] for o in out), sum(out[0]) > 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PVMMU_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == ["True", "True"], run.stderr
