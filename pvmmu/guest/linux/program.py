"""Programs: the layout of an executable, and the memory it is known to touch.

A program is a TOML file in ``data/programs``: its segments (as ``readelf -lW`` prints them; mapped
as in fs/binfmt_elf.c) and, under names such as ``start`` or ``fork_child``, what it does: accesses
``r``, ``w``, ``x`` and those that the kernel makes for it, ``kr`` and ``kw``, each with addresses;
``brk PAGES``; ``protect ADDRESS PAGES PROTECTION``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from pvmmu.errors import ProfileError
from pvmmu.files import read_toml, validated
from pvmmu.guest.linux.faults import FETCH, KERNEL, READ, WRITE
from pvmmu.paths import data_path

_HOW: Final = {"r": READ, "w": WRITE, "x": FETCH, "kr": KERNEL | READ, "kw": KERNEL | WRITE}


#: Ends of the stack without randomisation: TASK_SIZE of x86-64 and i386.
_STACK_64, _STACK_32 = (1 << 47) - 4096, 0xC000_0000


class Segment(BaseModel):
    """A LOAD segment of an executable (sizes and addresses in bytes)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    prot: str


@dataclass(frozen=True)
class Action:
    """One thing that a program does.

    Parameters
    ----------
    kind : str
        ``touch``, ``brk`` or ``protect``.
    how : int
        Kind of access of a touch.
    numbers : tuple of int
        Addresses of a touch; pages of a brk; address and pages of a protect.
    prot : str
        Protection.
    """

    kind: str
    how: int = 0
    numbers: tuple[int, ...] = ()
    prot: str = ""


@dataclass(frozen=True)
class Program:
    """An executable.

    Parameters
    ----------
    name, source : str
        Where layout and touches come from.
    segments : tuple of Segment
        What exec maps.
    does : dict of str to tuple of Action
        What the program does at its start and on other occasions.
    """

    name: str
    source: str = ""
    segments: tuple[Segment, ...] = ()
    does: Mapping[str, tuple[Action, ...]] = field(default_factory=dict)

    def in_32_bits(self) -> Program:
        """Return the same program as a 32-bit kernel would run it.

        An assumption: segments and accesses are the same, but for the stack, which is below 3 GiB;
        accesses between (libraries, vDSO) are left out.
        """
        does = {
            what: tuple(replace(a, numbers=_narrow(a)) for a in actions)
            for what, actions in self.does.items()
        }
        return replace(self, does=does)

    @property
    def pages(self) -> int:
        """Pages of the file that are mapped."""
        return max((-(-(s.offset + s.filesz) // 4096) for s in self.segments), default=0)


def _narrow(action: Action) -> tuple[int, ...]:
    if action.kind != "touch":
        return action.numbers
    near = _STACK_64 - (8 << 20)
    moved = (x if x < near else x - _STACK_64 + _STACK_32 for x in action.numbers)
    return tuple(x for x in moved if x < _STACK_32)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    source: str
    segments: list[Segment]
    does: dict[str, list[str]] = {}


def program_names() -> list[str]:
    """Return the names of the programs that come with the package."""
    return sorted(p.stem for p in data_path("programs").glob("*.toml"))


@functools.cache
def load_program(name: str) -> Program:
    """Return a program by its `name`, or from a file of your own (a path that ends in ``.toml``).

    Raises
    ------
    ProfileError
        There is none of that name, or its file is wrong; the message names file and field.
    """
    path = Path(name) if name.endswith(".toml") else data_path("programs") / f"{name}.toml"
    if not path.is_file():
        raise ProfileError(f"no program is named {name!r} (there are {', '.join(program_names())})")
    file = validated(_File, read_toml(path, ProfileError), path, ProfileError)
    does = {
        what: tuple(_action(text, f"{path}: does.{what}") for text in actions)
        for what, actions in file.does.items()
    }
    return Program(file.name, file.source, tuple(file.segments), does)


def _action(text: str, where: str) -> Action:
    """Read one action."""
    word, *rest = text.split()
    try:
        if word in _HOW and rest:
            return Action("touch", _HOW[word], tuple(int(x, 0) for x in rest))
        if word == "brk":
            return Action("brk", 0, (int(*rest),))
        if word == "protect":
            at, pages, prot = rest
            return Action("protect", 0, (int(at, 0), int(pages)), prot)
    except (ValueError, TypeError):
        pass
    raise ProfileError(f"{where}: {text!r} is no action (r, w, x, kr, kw, brk or protect)")
