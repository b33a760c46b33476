"""Hooks of your own, in the catalogue of this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pvmmu.errors import HookError
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks.catalogue import (
    Hook,
    HookSet,
    catalogue,
    custom_hooks,
    interfaces,
    replace_custom_hooks,
)

#: Greatest bit of a hook: masks are stored as signed 64-bit numbers.
LAST_BIT: Final = 62


def register_hook(
    name: str, operations: Iterable[Op], *, level: str = "low",
    meaning: str = "a hook of one's own", default: Iterable[str] = (), members: Iterable[str] = (),
) -> Hook:  # fmt: skip
    """Add a hook of your own to the catalogue of this process.

    Modes that ship with the package do not read it; a mode of your own (`pvmmu.modes.custom`) does,
    where its rules name it.

    Parameters
    ----------
    name : str
        Of the hook; registering it again replaces it.
    operations : iterable of Op
        What it covers.
    level : str
        ``low`` or ``high``.
    meaning : str
        One line for readers.
    default : iterable of str
        Hooks that its default implementation calls.
    members : iterable of str
        Members of the ops structure; default: one of the hook's name.

    Returns
    -------
    Hook
        With a bit of its own; hook sets that are stored by mask hold in this process only.

    Raises
    ------
    HookError
        The name is taken by a hook of the catalogue or an interface, a default does not exist, the
        level is none, or there is no bit left.
    """
    shipped = catalogue().keys() - custom_hooks().keys()
    if level not in ("low", "high"):
        raise HookError(f"hook {name!r}: level must be 'low' or 'high', not {level!r}")
    if name in shipped or name in interfaces() or not name.isidentifier():
        raise HookError(f"hook {name!r}: the name is taken, or no name")
    HookSet.of(*default)
    taken = {h.bit for h in catalogue().values() if h.name != name}
    bit = next((b for b in range(LAST_BIT + 1) if b not in taken), None)
    if bit is None:
        raise HookError(f"hook {name!r}: all {LAST_BIT + 1} bits of a mask are taken")
    hook = Hook(
        name=name, bit=bit, members=tuple(members) or (name,), level=level,
        operations=tuple(Op(o) for o in operations), merged="never", accessors=(),
        implementers=(), meaning=meaning, source="registered in this process",
        default=tuple(default),
    )  # fmt: skip
    replace_custom_hooks(custom_hooks() | {name: hook})
    return hook


def unregister_hook(name: str) -> None:
    """Take the hook of your own called `name` out of the catalogue, if it is there."""
    replace_custom_hooks({k: h for k, h in custom_hooks().items() if k != name})
