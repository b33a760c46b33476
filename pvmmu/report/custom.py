"""Hooks and modes of a session, as data: so that a proposal can be made elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pvmmu.errors import PvmmuError
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks import HookSet, catalogue, custom_hooks
from pvmmu.hooks.custom import register_hook
from pvmmu.modes import get_mode, mode_names, register
from pvmmu.modes.custom import CustomMode, Rule


def described(designs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return hooks and modes of this session that designs use, as values that JSON has.

    Parameters
    ----------
    designs : iterable of (str, str)
        Mode and hooks of each.

    Returns
    -------
    dict
        ``hooks`` and ``modes`` by name, either only if there are any; `define` takes it.

    Raises
    ------
    PvmmuError
        A mode is code of one's own, which no state can hold; names it.
    """
    modes, hooks = dict[str, Any](), HookSet()
    for spec, text in designs:
        mode = get_mode(spec)
        hooks |= HookSet.parse(text)
        if type(mode).__module__.split(".")[0] != "pvmmu" or isinstance(mode, CustomMode):
            modes[mode.name] = _mode(mode)
            hooks |= HookSet.of(*(n for r in mode.rules.values() for n in r.hooks))  # type: ignore[attr-defined]
    mine = custom_hooks()
    told = {name: _hook(name) for name in mine if name in hooks}
    for name in list(told):  # what a default calls
        told |= {n: _hook(n) for n in mine[name].default if n in mine}
    return {k: v for k, v in (("hooks", told), ("modes", modes)) if v}


def _hook(name: str) -> dict[str, Any]:
    hook = catalogue()[name]
    return {
        "operations": [op.name for op in hook.operations], "level": hook.level,
        "meaning": hook.meaning, "default": list(hook.default), "members": list(hook.members),
    }  # fmt: skip


def _mode(mode: Any) -> dict[str, Any]:
    name = mode.name
    if not isinstance(mode, CustomMode):
        raise PvmmuError(
            f"mode {name!r} is code of this session, not a table (pvmmu.modes.custom): a proposal "
            "that uses it cannot be made elsewhere"
        )
    mro = type(mode).__mro__
    own = {
        k for cls in mro[: mro.index(CustomMode)]
        for k, v in vars(cls).items() if inspect.isroutine(v) or isinstance(v, property)
    }  # fmt: skip
    if own:
        raise PvmmuError(
            f"mode {name!r} has code of its own ({', '.join(sorted(own))}): a proposal that uses "
            "it cannot be made elsewhere"
        )
    rules = {
        Op(op).name: {"hooks": list(r.hooks), "hooked": r.hooked, "unhooked": r.unhooked}
        for op, r in mode.rules.items()
    }
    return {"queue": mode.queue, "rules": rules}


def define(document: Any) -> None:
    """Register `document`, which `described` returned; what is there already must be the same.

    Raises
    ------
    PvmmuError
        A field is missing or wrong, or this session has another hook or mode of that name.
    """
    if not isinstance(document, Mapping):
        raise PvmmuError("own: not a table")
    hooks, modes = (document.get(kind, {}) for kind in ("hooks", "modes"))
    for kind, table in (("hooks", hooks), ("modes", modes)):
        if not isinstance(table, Mapping):
            raise PvmmuError(f"own.{kind}: not a table")
    waiting = dict(hooks)
    while waiting:  # a default comes before the hook that calls it
        ready = [n for n, h in waiting.items() if not set(_get(h, "default", n)) & waiting.keys()]
        if not ready:
            raise PvmmuError(f"own.hooks: the defaults of {', '.join(waiting)} go in a circle")
        for name in ready:
            _define_hook(name, waiting.pop(name))
    for name, table in modes.items():
        _define_mode(name, table)


def _get(table: Any, field: str, where: str) -> Any:
    if not isinstance(table, Mapping) or field not in table:
        raise PvmmuError(f"own: {where}: {field} is missing")
    return table[field]


def _ops(names: Iterable[str], where: str) -> list[Op]:
    for name in names:
        if name not in Op.__members__:
            raise PvmmuError(f"own: {where}: no operation {name!r}")
    return [Op[name] for name in names]


def _define_hook(name: str, table: Any) -> None:
    if name in custom_hooks():
        if _hook(name) != dict(table):
            raise PvmmuError(f"own: hook {name!r} is another one in this session")
        return
    register_hook(
        name, _ops(_get(table, "operations", name), name), level=_get(table, "level", name),
        meaning=_get(table, "meaning", name), default=_get(table, "default", name),
        members=_get(table, "members", name),
    )  # fmt: skip


def _define_mode(name: str, table: Any) -> None:
    rules = {
        op: Rule(tuple(_get(r, "hooks", name)), _get(r, "hooked", name), _get(r, "unhooked", name))
        for op, r in zip(
            _ops(_get(table, "rules", name), name), table["rules"].values(), strict=True
        )
    }
    if name in mode_names():
        mode = get_mode(name)
        if not isinstance(mode, CustomMode) or _mode(mode) != dict(table):
            raise PvmmuError(f"own: mode {name!r} is another one in this session")
        return
    queue = _get(table, "queue", name)
    fields = {"name": name, "rules": rules, "queue": queue, "__module__": "state"}
    made = type(name.title(), (CustomMode,), fields)
    made()  # a wrong queue or no rules
    register(made)
