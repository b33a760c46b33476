"""What a proposal consists of, as a short JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pvmmu.costs import CostTable, get_costs
from pvmmu.costs.default import default_costs
from pvmmu.errors import PvmmuError
from pvmmu.guest.load_trace import Reading, load_trace, ships
from pvmmu.guest.trace import COLUMNS, Trace
from pvmmu.replay.compare import Design
from pvmmu.report.custom import define, described
from pvmmu.report.run_report import AGAINST, against

#: Version of the format.
FORMAT: Final = 1
#: Workloads beside the first one, unless others are named: whole programs whose instructions were
#: measured.
WORKLOADS: Final = ("bbloop", "dash3", "pipeline", "gcheap")
#: Designs that can be told apart in a table of 72 columns.
MOST: Final = 5


@dataclass(frozen=True)
class State:
    """A proposal: its design, what it is compared with, and on which workloads.

    Parameters
    ----------
    designs : tuple of (str, str)
        Mode and hooks; the first one is proposed, the second one is what it is measured by.
    workloads : tuple of str
        Streams (`pvmmu.load_trace`) or files; the claim is about the first one.
    costs : str
        Name of a cost table, or a file.
    folder : Path
        Where relative files are.
    made : mapping
        Versions and numbers of the bundle that this state comes from; empty for a new one.
    how : Reading
        How files of system calls are read; a bundle keeps what they were read as.
    """

    designs: tuple[tuple[str, str], ...]
    workloads: tuple[str, ...]
    costs: str = "xen-2026"
    folder: Path = Path()
    made: Mapping[str, Any] = field(default_factory=dict)
    how: Reading = field(default_factory=Reading)

    @classmethod
    def of(
        cls, trace: str, designs: Sequence[str] = (), costs: str = "",
        workloads: Sequence[str] = WORKLOADS, how: Reading | None = None,
    ) -> State:  # fmt: skip
        """Return a new state.

        Parameters
        ----------
        trace : str
            Of the claim.
        designs : sequence of str
            ``MODE=HOOKS``; alone, the first is compared with `pvmmu.report.run_report.against`.
        costs : str
            Name of a cost table; default: that of the trace's era and the first mode.
        workloads : sequence of str
            More traces for the tables.
        how : Reading, optional
            How files of system calls are read.

        Raises
        ------
        PvmmuError
            A design, trace or cost table does not exist, a mode is code of one's own, or there are
            more than `MOST` designs.
        """
        given = [Design.parse(d) for d in designs] or [Design.of(*AGAINST[0])]
        given += against(given[0]) if len(given) == 1 else []
        pairs = tuple((d.mode, d.hooks.short) for d in given)
        traces = tuple(dict.fromkeys([trace, *workloads]))
        kernel = load_trace(trace, how or Reading()).provenance.kernel
        costs = costs or default_costs(kernel, given[0].mode)
        return cls(pairs, traces, costs, how=how or Reading()).checked()

    def checked(self) -> State:
        """Return this state with hook sets in their short form, once all of it is known to exist.

        Raises
        ------
        PvmmuError
            It does not.
        """
        if not 2 <= len(self.designs) <= MOST:
            raise PvmmuError(f"a proposal compares 2 to {MOST} designs, not {len(self.designs)}")
        if not self.workloads:
            raise PvmmuError("a proposal needs a workload")
        designs = [Design.of(hooks, mode) for mode, hooks in self.designs]
        described(self.designs)
        self.cost_table()
        for workload in self.workloads:
            self.trace(workload)
        return replace(self, designs=tuple((d.mode, d.hooks.short) for d in designs))

    def trace(self, workload: str) -> Trace:
        """Return the trace of `workload`, under the name that it has here."""
        beside = self.folder / workload
        if not ships(workload) and beside.is_file():
            return load_trace(beside, self.how)
        trace = load_trace(workload, self.how)
        if "@" not in workload:
            return trace
        named = replace(trace.provenance, source=workload.replace("/", ":"))
        columns = {name: trace[name] for name in COLUMNS}
        return Trace(columns, trace.mms, trace.callers, named)

    def cost_table(self) -> CostTable:
        """Return the cost table."""
        beside = self.folder / self.costs
        own = self.costs.endswith(".toml") and beside.is_file()
        return get_costs(beside if own else self.costs)

    def json(self) -> str:
        """Return the state as text; a panel takes it, too."""
        (mode, hooks), *against = self.designs
        document = {
            "proposal": FORMAT, "trace": self.workloads[0], "mode": mode, "hooks": hooks,
            "costs": self.costs, "against": [list(d) for d in against],
            "workloads": list(self.workloads[1:]), "own": described(self.designs),
            "made": dict(self.made),
        }  # fmt: skip
        return json.dumps(document, indent=1) + "\n"


def load_state(path: str | Path) -> State:
    """Read the state of a bundle.

    Parameters
    ----------
    path : path-like
        ``state.json``, or the folder that it is in.

    Raises
    ------
    PvmmuError
        It cannot be read, a field is missing or wrong, or names what does not exist; names file and
        field.
    """
    path = Path(path)
    path = path / "state.json" if path.is_dir() else path
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PvmmuError(f"{path}: no such file") from None
    except (OSError, ValueError) as e:
        raise PvmmuError(f"{path}: not a state of a proposal ({e})") from None
    return read_state(d, path)


def read_state(d: Any, path: Path = Path("state")) -> State:
    """Return the state in a document, once all that it names is known to exist.

    Parameters
    ----------
    d : dict
        Of JSON; hooks and modes that it defines are registered.
    path : Path
        Its file; others are looked for beside it.

    Raises
    ------
    PvmmuError
        As `load_state`.
    """
    if not isinstance(d, dict) or d.get("proposal") != FORMAT:
        raise PvmmuError(f"{path}: not a state of a proposal (proposal: {FORMAT} is missing)")
    designs = [(_text(path, d, "mode"), _text(path, d, "hooks"))]
    designs += [_pair(path, x) for x in _list(path, d, "against")]
    workloads = [_text(path, d, "trace"), *map(str, _list(path, d, "workloads"))]
    made = d.get("made", {})
    if not isinstance(made, dict):
        raise PvmmuError(f"{path}: made: not a table")
    state = State(tuple(designs), tuple(workloads), _text(path, d, "costs"), path.parent, made)
    try:
        define(d.get("own", {}))
        return state.checked()
    except PvmmuError as e:
        raise PvmmuError(f"{path}: {e}") from None


def _text(path: Path, d: Mapping[str, Any], name: str) -> str:
    if not isinstance(d.get(name), str):
        raise PvmmuError(f"{path}: {name}: a text is needed")
    return str(d[name])


def _list(path: Path, d: Mapping[str, Any], name: str) -> list[Any]:
    value = d.get(name)
    if not isinstance(value, list):
        raise PvmmuError(f"{path}: {name}: a list is needed")
    return value


def _pair(path: Path, value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(x, str) for x in value):
        raise PvmmuError(f"{path}: against: each is a mode and its hooks, not {value!r}")
    return value[0], value[1]
