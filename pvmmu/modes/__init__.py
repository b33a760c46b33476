"""Paging modes: what each operation becomes, hooked or not.

A mode is a small frozen class (see `pvmmu.modes.base.Mode`); `get_mode` makes one from a text such
as ``"direct:backend=2.6.27,stores=batched"``, `register` adds one of your own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pvmmu.errors import ModeError, did_you_mean
from pvmmu.modes.base import Mode
from pvmmu.modes.direct import Direct
from pvmmu.modes.lguest import Lguest
from pvmmu.modes.native import Native
from pvmmu.modes.nested import Nested
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.kvm_pvmmu import KvmPvmmu
from pvmmu.modes.vmi import Vmi

__all__ = [
    "Direct",
    "KvmPvmmu",
    "Lguest",
    "Mode",
    "Native",
    "Nested",
    "Shadow",
    "Vmi",
    "get_mode",
    "mode_names",
    "register",
    "unregister",
]

_MODES: dict[str, type[Any]] = {
    cls.name: cls for cls in (Native, Direct, Vmi, Lguest, KvmPvmmu, Shadow, Nested)
}


def mode_names() -> list[str]:
    """Return the names of the modes."""
    return list(_MODES)


def register(mode: type[Any]) -> type[Any]:
    """Make `mode`, a class of your own, known under its ``name``; a decorator: returns it."""
    _MODES[mode.name] = mode
    return mode


def unregister(name: str) -> None:
    """Forget the mode of your own called `name`; nothing happens if there is none."""
    if name in _MODES and _MODES[name].__module__.split(".")[0] != "pvmmu":
        del _MODES[name]


def get_mode(spec: str | Mode) -> Mode:
    """Return a mode from `spec`: a name, then ``:key=value,key=value`` for its parameters.

    Raises
    ------
    ModeError
        The name, a parameter or its value does not exist.
    """
    if not isinstance(spec, str):
        return spec
    name, *parameters = spec.replace(",", ":").split(":")
    if name not in _MODES:
        hint = did_you_mean(name, _MODES)
        raise ModeError(f"no mode is named {name!r}{hint} (there are {', '.join(_MODES)})")
    cls, values = _MODES[name], {}
    given = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    types = {f.name: f.type for f in given}
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key not in types:
            have = ", ".join(types) or "none"
            raise ModeError(f"mode {name!r} has no parameter {key!r} (it has {have})")
        values[key] = _number(value) if types[key] in ("int", int) else value
    mode: Mode = cls(**values)
    return mode


def _number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
