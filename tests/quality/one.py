"""What one process does for `mutants.py`: import the package, perhaps mutated, and run tests.

The process is a fork of one that has all libraries imported but not the package. A mutant exists in
memory only: its module is executed from the mutated text, its kernels as plain Python or compiled
anew.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage
import numba
import pytest
from numba.core.caching import _CacheLocator

#: A mutant that allocates more than this (bytes) is one that fails.
_MEMORY = 9 << 30


class _Loader(importlib.machinery.SourceFileLoader):
    """A loader of a module of the package: perhaps of another text, perhaps as plain Python."""

    def __init__(self, fullname: str, path: str, text: str | None, plain: bool) -> None:
        super().__init__(fullname, path)
        self.text, self.plain = text, plain

    def get_code(self, fullname: str) -> Any:
        if self.text is None:
            return super().get_code(fullname)
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Execute; what it imports meanwhile is executed as that says itself."""
        before, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, self.plain
        try:
            super().exec_module(module)
        finally:
            numba.config.DISABLE_JIT = before


class Finder(importlib.abc.MetaPathFinder):
    """Finds the package's modules: one of them mutated, those of the area as plain Python.

    numba would load a mutated kernel's machine code from the disk, where that of the file is: a
    mutant in memory is seen in plain Python only.

    Parameters
    ----------
    root : Path
        A copy of the repository.
    files : list of str
        What is plain Python, paths from there; all, where numba is told to compile nothing.
    mutant : (str, str), optional
        A file and its text instead.
    """

    def __init__(self, root: Path, files: list[str], mutant: tuple[str, str] | None) -> None:
        self.root, self.all = root, bool(numba.config.DISABLE_JIT)
        self.plain = {_module(f) for f in files}
        self.name, self.text = (_module(mutant[0]), mutant[1]) if mutant else ("", "")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the spec of a module of the package; None for all others."""
        if fullname.partition(".")[0] != "pvmmu":
            return None
        place = self.root.joinpath(*fullname.split("."))
        package = place / "__init__.py"
        file = str(package if package.is_file() else place.with_suffix(".py"))
        if not os.path.isfile(file):
            return None
        text = self.text if fullname == self.name else None
        loader = _Loader(fullname, file, text, self.all or fullname in self.plain)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


def compile_anew(file: str) -> None:
    """Keep no machine code of what can call a mutated file: it would not be that of the mutant."""
    from pvmmu import _jit

    room, known = Path(file).parts[1], _jit.cache_dir

    def cache_dir(of: str = "") -> Path | None:
        return known(of) if room not in _jit._BELOW.get(of, (room,)) else None

    _jit.cache_dir = cache_dir  # type: ignore[assignment]


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class _Watch:
    """A plugin: which tests ran, for how long, and which lines each of them reached."""

    def __init__(self, measured: coverage.Coverage | None) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        if self.measured is not None:
            self.measured.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def run_here(
    root: Path, files: list[str], tests: list[str], out: Path, mutant: tuple[str, str] | None
) -> None:
    """Run tests in this process and write what happened; never returns.

    Parameters
    ----------
    root : Path
        A copy of the repository.
    files : list of str
        Paths from there, whose kernels are plain Python.
    tests : list of str
        Arguments of pytest.
    out : Path
        Result, JSON; with the suffix ``.txt`` what the tests printed.
    mutant : (str, str), optional
        A file and its text instead; the first failure then ends the run. Without, lines are
        followed.
    """
    os.setsid()
    os.chdir(root)
    printed = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.path.insert(0, str(root))
    # compiled kernels are kept by what they are made of (pvmmu._jit), not by where the copy is
    _CacheLocator.get_suitable_cache_subpath = staticmethod(
        lambda path: "copy." + os.path.dirname(os.path.relpath(path, root)).replace(os.sep, ".")
    )
    measured = None
    if mutant is None:
        measured = coverage.Coverage(
            data_file=None, config_file=False, source=[str(root / "pvmmu")], messages=False
        )
        measured.start()
    sys.meta_path.insert(0, Finder(root, files, mutant))
    if mutant is not None and mutant[0] not in files and not numba.config.DISABLE_JIT:
        compile_anew(mutant[0])
    watch = _Watch(measured)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--tb=line"]
    code = 3
    try:
        code = pytest.main([*options, *(["-x"] * (mutant is not None)), *tests], plugins=[watch])
    finally:
        lines: dict[str, dict[int, list[str]]] = {}
        if measured is not None:
            measured.stop()
            data = measured.get_data()
            for name in data.measured_files():
                lines[os.path.relpath(name, root)] = data.contexts_by_lineno(name)
        result = {"code": int(code), "failed": watch.failed, "seconds": watch.seconds}
        out.write_text(json.dumps(result | {"lines": lines}))
        sys.stdout.flush()
        os._exit(0)
