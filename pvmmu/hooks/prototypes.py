"""What a hook looks like to a maintainer: its member of the ops structure, the call it takes.

Facts of `data/hooks/prototypes.toml`, whose head names their sources.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass

from pvmmu.errors import HookError
from pvmmu.paths import data_path


@dataclass(frozen=True)
class Prototype:
    """How a hook is declared and carried.

    Parameters
    ----------
    prototype : str
        C, at most three lines of 68 columns.
    carried : str
        Operation of Xen's PV interface; empty: nothing reaches the hypervisor.
    exists : bool
        Whether that operation exists and does all that the native one does.
    """

    prototype: str
    carried: str
    exists: bool


@functools.cache
def prototypes() -> dict[str, Prototype]:
    """Return the prototypes by the names of hooks; those of custom hooks are not known.

    Raises
    ------
    HookError
        The file cannot be read, or a field is missing.
    """
    path = data_path("hooks", "prototypes.toml")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: Prototype(**table) for name, table in tables.items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError) as e:
        raise HookError(f"{path}: {e}") from None
