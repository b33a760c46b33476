"""sdist and wheel: built from the sources, installed without them, and used from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from conftest import ROOT

from pvmmu.guest.load_trace import load_trace, trace_names
from pvmmu.replay import replay

pytestmark = [pytest.mark.package, pytest.mark.slow]
BOOKS = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))


def clean_environment():
    """The environment variables of somebody who has not this checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PVMMU"))}


def run(*words, cwd):
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it (not from the checkout)."""
    work = tmp_path_factory.mktemp("build")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", work, cwd=ROOT)
    [sdist] = work.glob("*.tar.gz")
    # `extractall(filter=)` came with Python 3.11.4, and Debian 12 has 3.11.2
    shutil.unpack_archive(sdist, work)
    source = work / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work, cwd=source)
    [wheel] = work.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel; dependencies are those of the tests."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        pip = [getattr(sys, "_base_executable", sys.executable), "-m", "pip"]
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", built[1], cwd=home)
    [packages] = home.glob("lib/python*/site-packages")
    used = Path(importlib.util.find_spec("numpy").origin).parents[1]
    (packages / "dependencies.pth").write_text(f"{used}\n")
    return home / "bin"


def test_the_sdist_holds_what_a_distributor_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "requirements.lock", "Makefile"} <= names
    assert {f"notebooks/{b}" for b in BOOKS} <= names
    assert not [n for n in names if "__pycache__" in n or n.startswith((".venv", "results"))]


def test_the_installed_package_is_whole(installed, tmp_path):
    where = run(installed / "python", "-c", "import pvmmu; print(pvmmu.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    assert run(installed / "pvmmu", "--version", cwd=tmp_path).startswith("pvmmu ")
    names = run(installed / "pvmmu", "replay", "--list", cwd=tmp_path).split()
    assert names == trace_names()
    counts = replay(load_trace("fork.16"), "linux-6.1", "direct")
    got = json.loads(run(installed / "pvmmu", "replay", "fork.16", "--json", cwd=tmp_path))
    assert got["events"] == counts.series().to_dict()
    sort = json.loads(run(installed / "pvmmu", "replay", "sort.strace", "--json", cwd=tmp_path))
    assert sort["operations"] == len(load_trace("sort.strace"))


def test_a_type_checker_sees_the_types_of_the_installed_package(installed, tmp_path):
    (tmp_path / "user.py").write_text(
        "import pvmmu\nfrom pvmmu import x86\nreveal_type(pvmmu.load_trace('fork.16'))\n"
        "reveal_type(x86.walk_many)\n"
    )
    python = ["--python-executable", installed / "python"]
    said = run(sys.executable, "-m", "mypy", "--strict", *python, "user.py", cwd=tmp_path)
    assert '"pvmmu.guest.trace.Trace"' in said
    assert "pvmmu.x86.walk.Walks" in said
    assert '"Any"' not in said


def test_lab_copies_the_notebooks(installed, tmp_path):
    run(installed / "pvmmu", "lab", "mine", "--copy-only", cwd=tmp_path)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == BOOKS


def test_every_module_can_be_imported(installed, tmp_path):
    """Nothing that the package imports is outside of it and of its declared dependencies."""
    code = (
        "import pkgutil, importlib, pvmmu\n"
        "names = [m.name for m in pkgutil.walk_packages(pvmmu.__path__, 'pvmmu.')]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    assert int(run(installed / "python", "-c", code, cwd=tmp_path)) > 100


@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc is not installed")
def test_the_reference_is_built_offline(tmp_path):
    words = [sys.executable, "-m", "pdoc", "--docformat", "numpy", "--no-include-undocumented"]
    subprocess.run([*words, "-o", tmp_path, "pvmmu.guest.load_trace", "pvmmu.replay"], check=True,
                   cwd=ROOT, capture_output=True)  # fmt: skip
    page = (tmp_path / "pvmmu" / "replay.html").read_text()
    assert "Replay a trace under a hook set in a mode." in page
    assert not [s for s in page.split('src="')[1:] if s.startswith("http")]
