"""Kernel profiles: which operations each kernel makes, and when, as tables with sources.

A profile is a TOML file in ``data/kernels``; its first comment says how to read it. A profile may
inherit from another and list only what differs. `Profile.frame` shows one, `diff` two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from pvmmu.errors import ProfileError
from pvmmu.files import read_toml, validated
from pvmmu.guest.linux.profile_keys import (
    ALLOC,
    ALWAYS,
    CHANGED,
    CLEAR,
    FLUSH_MM,
    FLUSH_PAGE,
    MOST_CALLS,
    N_PARAMETERS,
    OTHER,
    RELEASE,
    SET,
    THIS,
    WRITABLE,
    YOUNG,
    Par,
    Step,
)
from pvmmu.guest.vocabulary import Op
from pvmmu.paths import data_path

_WHEN: Final = {"": ALWAYS, "writable": WRITABLE, "young": YOUNG, "changed": CHANGED}
_STANDS_FOR: Final = {
    "ALLOC_TABLE": ALLOC, "SET_UPPER": SET, "CLEAR_UPPER": CLEAR, "RELEASE_TABLE": RELEASE,
    "FLUSH_PAGE": FLUSH_PAGE, "FLUSH_MM": FLUSH_MM,
}  # fmt: skip
_CALL: Final = re.compile(
    r"(?:(?P<on>child|new): )?(?P<op>[A-Z_0-9]+)(?: if (?P<when>\w+))?(?: by (?P<by>\w+))?"
)


@dataclass(frozen=True)
class Call:
    """One call of an MMU operation in a step.

    Parameters
    ----------
    op : str
        Name of an `Op`, or of what stands for one.
    on : str
        Empty for the entry itself, ``child`` or ``new`` for the other one.
    when : str
        Condition on the entry before the step; empty for always.
    by : str
        Function that makes the call.
    """

    op: str
    on: str = ""
    when: str = ""
    by: str = ""

    def __str__(self) -> str:
        on = f"{self.on}: " if self.on else ""
        when = f" if {self.when}" if self.when else ""
        return f"{on}{self.op}{when}"


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid")
    value: int
    source: str
    meaning: str = ""


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    calls: list[str]
    source: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kernel: str
    arch: str
    read_in: str
    inherits: str
    parameters: dict[str, _Value] = {}
    bits: dict[str, _Value] = {}
    steps: dict[str, _Step] = {}


@dataclass(frozen=True)
class Profile:
    """What a kernel does.

    Parameters
    ----------
    kernel : str
        Version, such as ``"6.1"``.
    arch : str
        ``x86-64`` or ``i386``.
    read_in : str
        Sources that the profile was read in.
    parameters, bits : dict of str to (int, str, str)
        Value, source and meaning of each number; of each bit of an entry (-1: it has none).
    steps : dict of str to (tuple of Call, str)
        Calls and source of each step.
    """

    kernel: str
    arch: str
    read_in: str
    parameters: Mapping[str, tuple[int, str, str]]
    bits: Mapping[str, tuple[int, str, str]]
    steps: Mapping[str, tuple[tuple[Call, ...], str]]

    def frame(self) -> pd.DataFrame:
        """Return the profile as a table: what, its value in words, by whom, source."""
        rows: list[dict[str, object]] = []
        for name, (calls, source) in self.steps.items():
            by = ", ".join(dict.fromkeys(c.by for c in calls if c.by))
            text = "; ".join(map(str, calls)) or "-"
            rows.append({"what": name, "says": text, "by": by, "source": source})
        for group in (self.parameters, self.bits):
            for name, (value, source, meaning) in group.items():
                says = f"{value} ({meaning})" if meaning else str(value)
                rows.append({"what": name, "says": says, "by": "", "source": source})
        return pd.DataFrame(rows).set_index("what")

    def pack(self, callers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return parameters and steps as kernels use them; functions get numbers in `callers` (name
        -> number).

        Returns
        -------
        parameters : int64[N_PARAMETERS]
            Indexed by `Par`; those of the platform are 0.
        steps : int16[step, call, 4]
            Operation, entry, condition, caller.
        """
        numbers = np.zeros(N_PARAMETERS, np.int64)
        for name, (value, _, _) in self.parameters.items():
            numbers[Par[name.upper()]] = value
        for name, (bit, _, _) in self.bits.items():
            flag = bit if name == "inverted" else 0 if bit < 0 else 1 << bit
            numbers[Par[name.upper()]] = np.uint64(flag).astype(np.int64)
        steps = np.zeros((len(Step), MOST_CALLS, 4), np.int16)
        for name, (calls, _) in self.steps.items():
            for i, call in enumerate(calls):
                op = _STANDS_FOR.get(call.op) or Op[call.op]
                caller = callers.setdefault(call.by, len(callers)) if call.by else -1
                on = OTHER if call.on else THIS
                steps[Step[name.upper()], i] = (op, on, _WHEN[call.when], caller)
        return numbers, steps


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the package, oldest kernel first."""
    names = [p.stem for p in data_path("kernels").glob("*.toml")]
    return sorted(names, key=lambda n: ([int(x) for x in re.findall(r"\d+", n)], n))


@functools.cache
def load_profile(name: str) -> Profile:
    """Return a profile by its `name`, or from a file of your own (a path that ends in ``.toml``).

    Raises
    ------
    ProfileError
        There is none of that name, or it says something that does not exist; the message names
        file and field.
    """
    path = Path(name) if name.endswith(".toml") else data_path("kernels") / f"{name}.toml"
    if not path.is_file():
        have = ", ".join(profile_names())
        raise ProfileError(f"no kernel profile is named {name!r} (there are {have})")
    file = validated(_File, read_toml(path, ProfileError), path, ProfileError)
    base = load_profile(file.inherits) if file.inherits else None
    return Profile(
        file.kernel, file.arch, file.read_in,
        _merged(base.parameters if base else {}, file.parameters, path, "parameters"),
        _merged(base.bits if base else {}, file.bits, path, "bits"),
        {**(base.steps if base else {}), **_steps(file, path)},
    )  # fmt: skip


def _merged(
    base: Mapping[str, tuple[int, str, str]], own: dict[str, _Value], path: Path, group: str
) -> dict[str, tuple[int, str, str]]:
    out = dict(base)
    for name, v in own.items():
        if name.upper() not in Par.__members__:
            raise ProfileError(f"{path}: {group}.{name}: there is no such parameter")
        meaning = v.meaning or (base[name][2] if name in base else "")
        out[name] = (v.value, v.source, meaning)
    return out


def _steps(file: _File, path: Path) -> dict[str, tuple[tuple[Call, ...], str]]:
    out = {}
    for name, step in file.steps.items():
        where = f"{path}: steps.{name}"
        if name.upper() not in Step.__members__:
            raise ProfileError(f"{where}: there is no such step")
        if len(step.calls) > MOST_CALLS:
            raise ProfileError(f"{where}: {len(step.calls)} calls, at most {MOST_CALLS}")
        out[name] = (tuple(_call(text, where) for text in step.calls), step.source)
    return out


def _call(text: str, where: str) -> Call:
    """Read one call."""
    m = _CALL.fullmatch(text)
    parts: dict[str, Any] = m.groupdict(default="") if m else {"op": "", "when": ""}
    if parts["op"] not in Op.__members__ and parts["op"] not in _STANDS_FOR:
        raise ProfileError(f"{where}: {text!r} names no operation")
    if parts["when"] not in _WHEN:
        have = ", ".join(filter(None, _WHEN))
        raise ProfileError(f"{where}: condition {parts['when']!r} does not exist ({have})")
    return Call(**parts)


def diff(before: str, after: str) -> pd.DataFrame:
    """Return what differs between the profiles `before` and `after`, with the latter's sources."""
    a, b = load_profile(before).frame(), load_profile(after).frame()
    both = a.join(b, how="outer", lsuffix="_a", rsuffix="_b").fillna("-")
    both = both[both["says_a"] != both["says_b"]]
    order = [*b.index, *a.index.difference(b.index)]
    both = both.loc[[w for w in order if w in both.index]]
    return pd.DataFrame({before: both["says_a"], after: both["says_b"], "source": both["source_b"]})
