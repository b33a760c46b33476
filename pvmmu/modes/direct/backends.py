"""Xen backends of guest kernels, as data: how the hooks of each reach the hypervisor.

``data/hooks/backends.toml`` says what the fields mean and where each backend was read.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from typing import Any, Final

from pvmmu.errors import ModeError
from pvmmu.guest.provenance import Platform
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.direct.kernel import Backend
from pvmmu.paths import data_path

_UPPER: Final = ("store", "request", "clear")


@dataclass(frozen=True)
class Rules:
    """A backend; the fields are those of ``data/hooks/backends.toml``.

    Parameters
    ----------
    title, source : str
        For readers.
    by_address, stores_with_pae : frozenset of Op
        Carried by ``update_va_mapping`` where the address space is the task's own; those of them
        that are stores with PAE.
    upper : str
        ``store``, ``request`` or ``clear``.
    update_by_request, clear_by_request, establish, extends_updates, extends_mmuext, \
    announces_in_bracket, root_first, pins_leaves, walks_by_calls, births_by_store, single_clear, \
    defers, entries, room, bypass : int
        Numbers and switches.
    """

    title: str
    source: str
    by_address: frozenset[Op]
    stores_with_pae: frozenset[Op]
    upper: str
    update_by_request: int
    clear_by_request: int
    establish: int
    extends_updates: int
    extends_mmuext: int
    announces_in_bracket: int
    root_first: int
    pins_leaves: int
    walks_by_calls: int
    births_by_store: int
    single_clear: int
    defers: int
    entries: int
    room: int
    bypass: int

    def addressed(self, platform: Platform) -> frozenset[Op]:
        """Return the operations that go by address on `platform`."""
        return self.by_address - self.stores_with_pae if platform.levels == 3 else self.by_address

    @property
    def limits(self) -> tuple[int, int, bool]:
        """The multicall buffer, as `pvmmu.modes.direct.multicall.new_machine` takes it."""
        return self.entries, self.room, bool(self.bypass)

    def numbers(self, platform: Platform, *, by_store: bool) -> Backend:
        """Return the numbers that the loop of direct mode reads.

        Parameters
        ----------
        platform : Platform
            What the guest sees.
        by_store : bool
            Tables are typed from birth, and a store of the guest may make them read-only.
        """
        pae = platform.levels == 3
        return Backend(
            extends_updates=self.extends_updates,
            extends_mmuext=self.extends_mmuext,
            announces_in_bracket=self.announces_in_bracket,
            root_first=self.root_first,
            split_ptlock=int(platform.split_ptlock and self.pins_leaves),
            user_root=int(platform.user_root),
            walks_by_calls=self.walks_by_calls,
            # PAE came after late pin (Xen 0ea8f12a67, 2005-07-11)
            births_by_store=int(by_store and self.births_by_store and not pae),
            halves=(1 if self.single_clear else 3) if pae else 0,
            defers=self.defers,
        )


@functools.cache
def backends() -> dict[str, Rules]:
    """Return all backends by name, oldest first.

    Raises
    ------
    ModeError
        The file cannot be read, or a backend misses a field or has one too many.
    """
    path = data_path("hooks", "backends.toml")
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _rules(table) for name, table in doc.items()}
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as e:
        raise ModeError(f"{path}: {e}") from None


def _rules(table: dict[str, Any]) -> Rules:
    if table["upper"] not in _UPPER:
        raise TypeError(f"upper = {table['upper']!r} is none of {', '.join(_UPPER)}")
    for field in ("by_address", "stores_with_pae"):
        table[field] = frozenset(Op[name] for name in table[field])
    return Rules(**table)
