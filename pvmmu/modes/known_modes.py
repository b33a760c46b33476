"""Every paging mode worth trying, with its older backends and other implementations, by text."""

from __future__ import annotations

from typing import Final

from pvmmu.modes import get_mode, mode_names
from pvmmu.modes.direct import Direct
from pvmmu.modes.direct.backends import backends
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS

#: What Xen makes of a store that no hook carries.
_STORES: Final = {
    "batched": "batched writable tables, 2004-06",
    "refuse": "unhooked writes refused",
}


def mode_variants() -> dict[str, str]:
    """Return the texts of modes for `pvmmu.modes.get_mode`, each with a title for readers.

    Returns
    -------
    dict of str to str
        Direct mode with each policy and each backend, older backends also with batched writable
        tables; shadow mode with each implementation's rules; all others; last, modes of your own.
    """
    found = {"direct": Direct.title}
    for stores, title in _STORES.items():
        found[Direct(stores=stores).spec] = f"direct (Xen): {title}"
    for name, rules in reversed(backends().items()):
        if name == Direct().backend:
            continue
        found[Direct(name).spec] = f"direct (Xen), backend: {rules.title}"
        found[Direct(name, "batched").spec] = f"direct (Xen), batched tables, backend: {name}"
    for code, shadow in IMPLEMENTATIONS.items():
        found[Shadow(code).spec] = f"shadow: {shadow.title} ({code})"
    for name in mode_names():
        mode = get_mode(name)
        found.setdefault(mode.spec, getattr(mode, "title", "") or f"{name} (of this session)")
    return found
