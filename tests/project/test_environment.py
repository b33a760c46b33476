"""environment.yml, pyproject.toml and the lock say the same."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


#: Names that differ on conda-forge.
CONDA_NAMES = {"python-moocore": "moocore"}


def conda() -> tuple[dict[str, SpecifierSet], list[str]]:
    """Names and bounds of environment.yml, and its pip section."""
    out = {}
    dependencies = environment()["dependencies"]
    for d in dependencies:
        if isinstance(d, str):
            m = re.fullmatch(r"([A-Za-z0-9_.\-]+)\s*([<>=!~]\S*)?", d)
            assert m, f"not 'name>=x,<y': {d!r}"
            out[canonicalize_name(CONDA_NAMES.get(m[1], m[1]))] = SpecifierSet(m[2] or "")
    return out, next((d["pip"] for d in dependencies if isinstance(d, dict)), [])


def test_the_environment_has_the_projects_name():
    assert environment()["name"] == project()["name"]


def test_packages_and_bounds_agree():
    env, pip = conda()
    want = {
        canonicalize_name(r.name): r.specifier for r in map(Requirement, project()["dependencies"])
    }
    assert {k: v for k, v in env.items() if k not in ("python", "pip")} == want
    assert pip == ["-e ."]


def test_the_python_floor_agrees():
    env, _ = conda()
    assert env["python"] == SpecifierSet(project()["requires-python"])


def test_the_lock_satisfies_the_project():
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9_.\-]+)==([^\s;\\]+)", LOCK))
    for r in map(Requirement, project()["dependencies"]):
        assert r.specifier.contains(pins[canonicalize_name(r.name)]), r


def test_the_lock_has_hashes_and_names_no_host():
    assert "://" not in LOCK
    assert "--index-url" not in LOCK
    assert "--find-links" not in LOCK
    pinned = re.findall(r"(?m)^[A-Za-z0-9_.\-]+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", LOCK)
    assert len(pinned) == len(re.findall(r"(?m)^[A-Za-z0-9_.\-]+==", LOCK))
