"""What one process does for `mutants.py`: import the package, perhaps mutated, and run tests.

The process is a fork of one that has all libraries imported but not the package. A mutant exists in
memory only: its module is compiled from the mutated text.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import coverage
import pytest

#: A mutant that allocates more than this (bytes) is one that fails.
_MEMORY = 6 << 30


class _Mutated(importlib.machinery.SourceFileLoader):
    """A loader of a file whose text is another one."""

    text = ""

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, mutated."""

    def __init__(self, root: Path, file: str, text: str) -> None:
        self.path = str(root / file)
        self.name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.text = text

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the spec of the mutated module."""
        if fullname != self.name:
            return None
        loader = _Mutated(fullname, self.path)
        loader.text = self.text
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


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


def run_here(root: Path, tests: list[str], out: Path, mutant: tuple[str, str] | None) -> None:
    """Run tests in this process and write what happened; never returns.

    Parameters
    ----------
    root : Path
        A copy of the repository.
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
    measured = None
    if mutant is None:
        measured = coverage.Coverage(
            data_file=None, config_file=False, source=[str(root / "pvmmu")], messages=False
        )
        measured.start()
    else:
        sys.meta_path.insert(0, _Finder(root, *mutant))
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
