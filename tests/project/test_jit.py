"""Compiled code is never stale, and what is imported first stays light."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, recorded
from numba import types
from numba.core.dispatcher import Dispatcher

from pvmmu.guest.workloads import run_workload
from pvmmu.hooks import HookSet
from pvmmu.replay import replay

SCALARS = (types.Number, types.Boolean, types.NoneType)

_PROGRAM = """
from pvmmu.guest.trace import Trace
from pvmmu.replay import replay
print(replay(Trace.load("t.parquet"), "linux-6.1", "direct")["sub_update_va_mapping"])
"""


def run(folder: Path, program: str = _PROGRAM, **env: str) -> str:
    """Run a program against the copy of the package in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, text=True, capture_output=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(folder), "PVMMU_CACHE_DIR": str(folder / "c"), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_changed_callee_in_another_module_is_noticed(tmp_path):
    """numba itself would serve the old result: the caller's file has not changed."""
    shutil.copytree(ROOT / "pvmmu", tmp_path / "pvmmu")
    shutil.copytree(ROOT / "data" / "hooks", tmp_path / "data" / "hooks")
    shutil.copy(ROOT / "data" / "traces" / "mmap.16.parquet", tmp_path / "t.parquet")
    before = int(run(tmp_path))
    tally = tmp_path / "pvmmu" / "modes" / "counters.py"
    text = tally.read_text()
    assert "counts[event] += amount" in text
    tally.write_text(text.replace("counts[event] += amount", "counts[event] += 2 * amount"))
    assert int(run(tmp_path)) == 2 * before > 0
    compiled = [p.name for p in (tmp_path / "c" / "kernels").glob("*/modes_*/*.nbi")]
    assert len(compiled) == 2 * len(set(compiled))


def test_kernels_are_compiled_anew_only_when_what_they_can_import_changes(tmp_path):
    """The rooms of `_jit` are those of the import contract."""
    shutil.copytree(ROOT / "pvmmu", tmp_path / "pvmmu")
    rooms = "['x86', 'guest', 'modes', '']"
    program = f"from pvmmu._jit import fingerprint; print(*map(fingerprint, {rooms}))"
    changed = {
        "x86/walk.py": 4,
        "guest/trace.py": 3,
        "hooks/catalogue.py": 2,
        "modes/counters.py": 2,
        "replay/counts.py": 1,
    }
    before = run(tmp_path, program).split()
    for name, stale in changed.items():
        with open(tmp_path / "pvmmu" / name, "a") as f:
            f.write("# another line\n")
        after = run(tmp_path, program).split()
        assert [a != b for a, b in zip(before, after, strict=True)] == [False] * (4 - stale) + [
            True
        ] * stale
        before = after


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    program = "from pvmmu._jit import cache_dir; print(cache_dir())"
    out = run(tmp_path, program, PVMMU_CACHE_DIR=str(blocked), HOME=str(blocked),
              XDG_CACHE_HOME=str(blocked), TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))  # fmt: skip
    assert out.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("fault", "kept"),
    [("", 1), ("OSError(28, 'No space left')", 0), ("RuntimeError('no compiled object yet')", 0)],
)
def test_a_kernel_that_cannot_be_kept_works(tmp_path, fault, kept):
    (tmp_path / "m.py").write_text(
        "from pvmmu._jit import kernel\n\n\n@kernel\ndef f(x):\n    return x + 1\n"
    )
    program = "from numba.core.compiler import CompileResult\n"
    if fault:
        program += f"def fails(self): raise {fault}\nCompileResult._reduce = fails\n"
    program += "import m\nprint(m.f(1))"
    assert run(tmp_path, program, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}") == "2"
    assert len(list((tmp_path / "c").rglob("*.nbc"))) == kept


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, pvmmu; "
        "print([m for m in ('numba', 'pandas', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    )
    assert run(ROOT, program) == "[]"


def test_nothing_below_the_figures_needs_matplotlib_or_widgets():
    program = (
        "import sys, pvmmu.search.sweep, pvmmu.evidence.truth; "
        "print([m for m in ('matplotlib', 'ipywidgets', 'IPython') if m in sys.modules])"
    )
    assert run(ROOT, program) == "[]"


def test_our_cache_directory_is_not_forced_on_others():
    program = (
        "import numba.core.config as c; before = c.CACHE_DIR; import pvmmu.modes; "
        "print(c.CACHE_DIR == before)"
    )
    assert run(ROOT, program) == "True"


def test_kernels_without_reference_counts_return_no_memory():
    # What a caller takes over from such a kernel, it would free without owning it. Those called by
    # kernels from the cache are not seen here; all are where the cache is empty, as in `.ci/run`.
    run_workload("fork", n=8)
    for mode in ("direct", "lguest", "kvm-pvmmu", "shadow"):
        replay(recorded("fork.1"), HookSet.every(), mode)
    lean = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and _is_lean(d)]
    compiled = [(d, c.signature.return_type) for d in lean for c in d.overloads.values()]
    assert len(compiled) >= 10
    for function, returned in compiled:
        parts = list(returned) if isinstance(returned, types.BaseTuple) else [returned]
        assert all(isinstance(p, SCALARS) for p in parts), (function.py_func, returned)


def _is_lean(dispatcher):
    return dispatcher.targetoptions.get("_nrt") is False
