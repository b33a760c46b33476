"""The tools of `make mutants`: which edits are mutants, and explanations that still fit."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

QUALITY = ROOT / "tests" / "quality"
sys.path.insert(0, str(QUALITY))

SOURCE = """\
from __future__ import annotations

import functools


@functools.cache
def f(x: int | None = 3) -> int | str:
    if x == 3:
        return 1
    return x & 7


class A:
    name = "A"

    @property
    def g(self):
        return not self

    def __repr__(self):
        return "A" * 3
"""


@pytest.fixture(scope="module")
def mutation():
    pytest.importorskip("cosmic_ray", reason="of `make mutants`")
    import mutation

    return mutation


def test_what_is_drawn_and_what_is_left_out(mutation, tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    mutants, edits, left_out = mutation.draw(tmp_path, ["m.py"], 1000, 1)
    afters = {m.after for m in mutants}
    assert {"if x != 3:", "return x | 7", "return self", "return 0", "if x == 2:"} <= afters
    assert not any("__repr__" in m.function or "int &" in m.after for m in mutants)
    assert left_out == {
        "a type annotation": 2, "a decorator for speed": 1, "the words of a `__repr__`": 3,
    }  # fmt: skip
    assert len(mutants) + sum(left_out.values()) == edits
    for m in mutants:
        assert m.source(tmp_path) != SOURCE
    again, _, _ = mutation.draw(tmp_path, ["m.py"], 5, 1)
    assert again == mutants[:5]


def test_names_of_mutants_say_where_and_what(mutation, tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    found = mutation.draw(tmp_path, ["m.py"], 1000, 1)[0]
    names = {m.name for m in found}
    for m in found:  # the line by which tests are chosen: no empty one
        text = SOURCE.splitlines()[m.line - 1].strip()
        assert text and text in m.before
    assert "m.py f: if x == 3: -> if x != 3:" in names
    assert "m.py g: return not self -> return self" in names


def test_explanations_are_sentences_of_different_mutants():
    table = tomllib.loads((QUALITY / "survivors.toml").read_text())
    names = [name for e in table["survivor"] for name in e["mutants"]]
    assert len({*names}) == len(names)
    assert all(e["why"].endswith(".") for e in table["survivor"])


def test_areas_name_what_exists():
    table = tomllib.loads((QUALITY / "areas.toml").read_text())
    for name, area in table["area"].items():
        for pattern in area["files"]:
            assert list(ROOT.glob(pattern)), (name, pattern)
        for test in area["tests"]:
            assert (ROOT / test.split()[0]).is_file(), (name, test)


# ---------------------------------------------------------------------- mutants in memory
SEEN = """
import sys
from pathlib import Path

import numba

sys.path.insert(0, "tests/quality")
import one

file, root = "pvmmu/search/shapley.py", Path.cwd()
text = (root / file).read_text().replace("        count += 1", "        count += 2")
plain = sys.argv[1:]
sys.meta_path.insert(0, one.Finder(root, plain, (file, text)))
if not plain:
    one.compile_anew(file)
from pvmmu.search import shapley as values
from pvmmu.modes import counters

print(values._members(7), callable(values._members), numba.extending.is_jitted(values._members),
      numba.extending.is_jitted(counters.emit))
"""


@pytest.mark.parametrize("plain", [["pvmmu/search/shapley.py"], []])
def test_a_mutated_kernel_is_seen_and_the_others_are_compiled(plain):
    """numba would load the machine code of the file that is not mutated, from its cache."""
    pytest.importorskip("coverage", reason="of `make mutants`")
    env = os.environ | {"NUMBA_DISABLE_JIT": "0"}
    out = subprocess.run(
        [sys.executable, "-c", SEEN, *plain], cwd=ROOT, env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert out.stdout.split() == ["6", "True", str(not plain), "True"]


_COMPILE = {"kernel", "part", "lean", "lean_part", "inner", "swift"}


@functools.cache
def names_in_kernels(source):
    """Names of other modules' that a module's kernels use: (module, name)."""
    found = set()
    tree = ast.parse(source)
    imported = {
        a.asname or a.name: (n.module, a.name)
        for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names
    }  # fmt: skip
    for f in ast.walk(tree):
        if isinstance(f, ast.FunctionDef) and _COMPILE & {ast.unparse(d) for d in f.decorator_list}:
            for n in ast.walk(f):
                if isinstance(n, ast.Name) and n.id in imported:
                    found.add(imported[n.id])
    return frozenset(found)


def test_no_compiled_kernel_uses_what_is_mutated():
    """Else it would be frozen in the machine code that is loaded from the cache."""
    assert ("m", "x") in (names_in_kernels("from m import x\n@kernel\ndef f():\n    return x"))
    table = tomllib.loads((QUALITY / "areas.toml").read_text())
    for name, area in table["area"].items():
        if area.get("compiled") and not area.get("recompile"):
            own = {p for pattern in area["files"] for p in ROOT.glob(pattern)}
            modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in own}
            for path in set((ROOT / "pvmmu").rglob("*.py")) - own:
                used = {m for m, _ in names_in_kernels(path.read_text())}
                assert not used & modules, (name, path)
