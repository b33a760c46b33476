"""The repository as a whole: what must not be in it, and what its documents promise."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import pvmmu
from pvmmu.guest.load_trace import trace_names
from pvmmu.hooks import catalogue
from pvmmu.modes import mode_names


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.split()


def texts():
    for name in tracked():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".ipynb", ".csv", ".lock", "")
            and path.is_file()
        ):
            yield name, path.read_text(encoding="utf-8", errors="replace")


def test_nothing_of_this_or_that_machine_is_named():
    hosts = "|".join(
        ("pypi" + r"\.org", "python" + "hosted", "npm" + "js", "debian" + r"\.org/debian")
    )
    paths = r"/(work|farm)/(main|shared|steering|in|\.library)\b"
    for name, text in texts():
        if name == "tests/project/test_project.py":
            continue
        assert not re.search(hosts, text), f"{name} names the host of a registry"
        assert not re.search(paths, text), f"{name} names a path of a machine"


def test_no_pickle_no_eval_no_shell():
    for name, text in texts():
        if name.startswith("pvmmu/"):
            assert not re.search(r"^\s*(import pickle|from pickle)|allow_pickle=True", text, re.M)
            assert not re.search(r"(?<![\w.])(?<!def )(eval|exec)\(|shell=True", text), name


def test_modules_can_be_read_in_a_sitting():
    for path in (ROOT / "pvmmu").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 360, path


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pvmmu.__version__
    assert f"## {pvmmu.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_names_what_exists():
    readme = (ROOT / "README.md").read_text()
    for command in ("make lab", "make test"):
        assert command in readme
    for module in re.findall(r"python -m (pvmmu[\w.]*)", readme):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for mode in mode_names():
        assert mode in readme
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert (ROOT / picture).is_file(), picture


def test_public_names_resolve():
    for name in pvmmu._HOME:
        assert getattr(pvmmu, name) is not None
    with pytest.raises(AttributeError):
        _ = pvmmu.nothing


def test_every_shipped_trace_has_its_readme_entry():
    text = (ROOT / "data" / "traces" / "README.md").read_text()
    for name in trace_names():
        assert f"`{name.split('.')[0].removesuffix('-6')}`" in text, name


def test_hooks_are_sourced():
    assert all(re.search(r"Linux|xen", h.source) for h in catalogue().values())


@pytest.mark.parametrize("package", ["pvmmu", "pvmmu.x86"])
def test_what_is_imported_late_is_typed(package):
    """The names that `__getattr__` finds are those that a type checker is told of."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    [block] = [x for x in tree.body if isinstance(x, ast.If)]
    told = {n.asname: i.module for i in block.body for n in i.names}
    assert told == module._HOME
    assert set(getattr(module, "__all__", told)) >= set(told)


def test_a_star_brings_the_names_of_x86():
    names = {}
    exec("from pvmmu.x86 import *", names)
    assert {"Mmu", "walk_many", "Registers"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "benchmarks").glob("*.py")))
def test_benchmarks_start(script):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage" in done.stdout


def test_jupyter_keeps_its_token_and_its_loopback():
    started = [
        line
        for name, text in texts()
        if name == "Makefile" or name.startswith("pvmmu/")
        for line in text.splitlines()
        if "bin/jupyter lab --" in line.replace("$(BIN)", "bin")
    ]
    assert started
    assert all("--ip=127.0.0.1" in line for line in started)
    assert not any(re.search(r"token|password|0\.0\.0\.0", line) for line in started)
