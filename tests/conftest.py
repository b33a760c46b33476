"""What all tests share: the recordings, traces read once, a browser if there is one."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_HERE = Path(__file__).parent
# what tests share: the browser's driver, the twins, and helpers of other rooms' tests
sys.path[:0] = [str(_HERE), str(_HERE / "twins")]
sys.path += [str(folder) for folder in sorted(_HERE.iterdir()) if folder.is_dir()]

from pvmmu.guest.readers.xen.recording import read_recording  # noqa: E402
from pvmmu.guest.trace import Trace  # noqa: E402

ROOT = Path(__file__).parents[1]
#: What two processes compile, each about half, before the workers of a whole run share it.
_WARM = (
    "replay(trace, hooks, 'shadow'); replay(trace, hooks, 'lguest')",
    "replay(trace, hooks, 'direct'); replay(trace, hooks, 'vmi'); replay(trace, hooks, 'nested'); "
    "from pvmmu.x86.warm import warm_up; warm_up(str); "
    "from pvmmu.guest.workloads import run_workload; run_workload('fork', 4); "
    "from pvmmu.search import search; search([trace], ['direct', 'kvm-pvmmu'], progress=False)",
)
RECORDINGS = Path(__file__).parent / "data" / "xen_pv"


def pytest_configure(config: pytest.Config) -> None:
    """Compile kernels once, rather than in each worker, before a run of all tests is shared out."""
    shared = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    compiled = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
    if shared and compiled and config.args == ["tests"] and not config.option.collectonly:
        head = (
            "from pvmmu.guest.load_trace import load_trace; from pvmmu.hooks import HookSet; "
            "from pvmmu.replay import replay; trace = load_trace('fork.1'); "
            "hooks = HookSet.every(); "
        )
        commands = [[sys.executable, "-c", head + half] for half in _WARM]
        for process in [subprocess.Popen(c, cwd=ROOT) for c in commands]:
            process.wait()


@functools.cache
def recorded(name: str) -> Trace:
    """Return the trace of a recording (``fork.64``, ``make``, ...), read once."""
    [path] = (p for p in recording_paths() if short_name(p) == name)
    return read_recording(path, kernel=kernel_of(name))


def kernel_of(name: str) -> str:
    """Return the kernel that a recording was made of; a suffix of its name says so."""
    return "6.12.117" if name.endswith("-6.12") else "6.1.192"


def recording_paths() -> list[Path]:
    """Return all recordings."""
    return sorted(RECORDINGS.glob("*.txt.xz"))


def short_name(path: Path) -> str:
    """Return ``fork.64`` for ``xen1-both.fork.64.txt.xz``."""
    return re.sub(r"^(xen\d-both\.)?(cmd_)?", "", path.name.removesuffix(".txt.xz"))


#: How many times the usual number of random cases (`make strict` looks further, at other ones;
#: without compiled kernels a share has to do).
_TIMES = float(os.environ.get("PVMMU_EXAMPLES", "1"))
#: Plain Python under a tracer (`make coverage`): the cases are smaller, too.
LITTLE = _TIMES <= 0.1


def examples(n: int) -> settings:
    """Return settings of a property test: so many cases, the same ones each time unless more."""
    n = max(1, round(n * _TIMES))
    return settings(max_examples=n, deadline=None, derandomize=_TIMES <= 1, database=None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; without one the test is skipped (or fails, under REQUIRE_BROWSER=1)."""
    from browser.harness import find_chromium

    exe = find_chromium()
    if exe is None:
        reason = "no Chromium found (Debian: apt-get install chromium; or set CHROMIUM=/path)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return exe


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[tuple[str, str, Path]]:
    """A JupyterLab with a copy of the notebooks: its address, token and folder."""
    from browser.harness import jupyterlab

    work = tmp_path_factory.mktemp("lab")
    root = work / "root"
    shutil.copytree(ROOT / "notebooks", root)  # JupyterLab saves what it serves
    with jupyterlab(root, work / "state") as (address, token):
        yield address, token, root


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots are put: a folder that CI keeps, or one of the test."""
    folder = Path(os.environ.get("BROWSER_REPORT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
