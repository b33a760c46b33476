"""The folder: text, figures, data, state and an executed notebook, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from pvmmu.costs.files import copy_costs
from pvmmu.errors import PvmmuError
from pvmmu.figures.style import save_figure
from pvmmu.figures.workloads import workloads_figure
from pvmmu.files import unwritable
from pvmmu.guest.load_trace import ships
from pvmmu.report.mail import mail
from pvmmu.report.notebook import write_notebook
from pvmmu.report.results import Results, results
from pvmmu.report.state import State, load_state
from pvmmu.report.text import claim, text

_STATE: Final = "state.json"


def write_bundle(state: State, folder: str | Path, *, notebook: bool = True) -> list[Path]:
    """Write a proposal.

    Parameters
    ----------
    state : State
        What is proposed.
    folder : path-like
        Is made; an older bundle there is replaced, anything else is not.
    notebook : bool
        Also write and execute ``proposal.ipynb`` (some seconds more).

    Returns
    -------
    list of Path
        The files: ``proposal.txt`` (the mail), ``details.txt``, ``workloads.png`` (``.svg``,
        ``.pdf``), ``results.csv`` (``.parquet``), ``state.json``, ``proposal.ipynb``, and traces
        and cost tables that do not ship. Hooks and modes of this session are in the state.

    Raises
    ------
    PvmmuError
        A trace does not exist, a mode is code, or the folder holds something else or cannot be
        written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or _foreign(folder)):
        raise PvmmuError(f"{folder}: is there already and no bundle; name another folder")
    found = results(state)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        old = work.with_name(f"{work.name}.old")
    except OSError as e:
        raise PvmmuError(f"{folder}: cannot be made ({e.strerror or e})") from None
    try:
        _fill(work, found, notebook)
        work.chmod(0o755)
        if folder.exists():  # kept until the new one has its place
            folder.rename(old)
        work.rename(folder)
    except OSError as e:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise unwritable(folder, e) from None
    finally:
        for rest in (work, old):
            shutil.rmtree(rest, ignore_errors=True)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _foreign(folder: Path) -> bool:
    """Whether a folder holds something that is no bundle."""
    return any(folder.iterdir()) and not (folder / _STATE).is_file()


def _fill(work: Path, found: Results, notebook: bool) -> None:
    (work / "proposal.txt").write_text(mail(found), encoding="ascii")
    (work / "details.txt").write_text(text(found), encoding="ascii")
    save_figure(
        workloads_figure(found.comparisons, claim(found.comparisons[0])), work / "workloads"
    )
    found.table.to_csv(work / "results.csv", index=False, lineterminator="\n")
    found.table.to_parquet(work / "results.parquet", index=False)
    state = replace(
        found.state, workloads=_kept(work, found), costs=_kept_costs(work, found),
        made=found.made(),
    )  # fmt: skip
    (work / _STATE).write_text(state.json(), encoding="utf-8")
    if notebook:
        write_notebook(work)


def _kept(work: Path, found: Results) -> tuple[str, ...]:
    """Put traces that do not ship with the package into the bundle; return where all are."""
    names = []
    for name, c in zip(found.state.workloads, found.comparisons, strict=True):
        if not ships(name) and "@" not in name:
            name = f"{c.trace.name}.parquet"
            c.trace.save(work / name)
        names.append(name)
    return tuple(names)


def _kept_costs(work: Path, found: Results) -> str:
    """Put a cost table of one's own into the bundle; return where it is."""
    costs, state = found.state.costs, found.state
    if not costs.endswith(".toml"):
        return costs
    beside = state.folder / costs
    return copy_costs(beside if beside.is_file() else Path(costs), work)


def remake(
    path: str | Path, folder: str | Path, *, notebook: bool = True
) -> tuple[list[Path], str]:
    """Make a bundle again from its state.

    Parameters
    ----------
    path : path-like
        ``state.json``, or its folder.
    folder, notebook
        As for `write_bundle`.

    Returns
    -------
    list of Path, str
        The files; and whether the numbers are those of then, and if not, why.

    Raises
    ------
    PvmmuError
        The state cannot be used, or the folder cannot be written.
    """
    state = load_state(path)
    change = results(state).change()
    return write_bundle(state, folder, notebook=notebook), change
