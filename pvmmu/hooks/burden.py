"""What a hook asks of the kernel that carries it, beside its call sites.

``data/hooks/intrusion.toml``: what bare hardware executes where it is called, who uses it, what
generic code has to promise, and which files outside of arch/x86 the commit that brought it touched.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from typing import Any

from pvmmu.errors import HookError
from pvmmu.hooks.catalogue import HookSet, catalogue
from pvmmu.paths import data_path


@dataclass(frozen=True)
class Burden:
    """What a hook asks of every kernel.

    Parameters
    ----------
    native : str
        A call of it on bare hardware: ``nothing`` (NOPs), an ``instruction``, or a ``call``.
    site_bytes : int
        Of code at each call site.
    instructions : int
        Executed by each call on bare hardware.
    users : tuple of str
        Backends in mainline that fill it in today.
    promises : tuple of str
        What generic code must keep to.
    """

    native: str
    site_bytes: int
    instructions: int
    users: tuple[str, ...] = ()
    promises: tuple[str, ...] = ()


@functools.cache
def _document() -> dict[str, Any]:
    path = data_path("hooks", "intrusion.toml")
    document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return document


def burden(hook: str) -> Burden:
    """Return what a `hook` asks; a hook of one's own is a call, and has no user.

    Raises
    ------
    HookError
        The catalogue has it, but ``data/hooks/intrusion.toml`` does not.
    """
    document = _document()
    row = document["hooks"].get(hook)
    if row is None:
        if catalogue()[hook].source != "registered in this process":
            raise HookError(f"data/hooks/intrusion.toml: no hooks.{hook}")
        row = {"native": "call", "users": [], "promises": []}
    kind = document["native"][row["native"]]
    return Burden(
        row["native"], kind["bytes"], kind["instructions"], tuple(row["users"]),
        tuple(row["promises"]),
    )  # fmt: skip


def outside_files(hooks: HookSet) -> dict[str, int]:
    """Return the files outside of arch/x86 that the commits which brought `hooks` touched.

    Returns
    -------
    dict of str to int
        By commit: number of files. A commit that brought several of them counts once.
    """
    return {
        commit: row["outside"]
        for commit, row in _document()["brought"].items()
        if any(h in hooks for h in row["hooks"])
    }


def weighting(name: str) -> dict[str, float]:
    """Return the weights that the weighting of that `name` gives to what is counted.

    Raises
    ------
    HookError
        There is none of that name.
    """
    known = _document()["weightings"]
    if name not in known:
        raise HookError(f"no weighting is named {name!r} (there are {', '.join(known)})")
    return dict(known[name])
