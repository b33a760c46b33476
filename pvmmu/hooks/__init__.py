"""What a guest kernel may call: the hooks, interfaces of the past, call sites, custom hooks."""

from __future__ import annotations

from pvmmu.hooks.catalogue import (
    NO_HOOKS,
    Hook,
    HookSet,
    Interface,
    catalogue,
    interfaces,
    own_hooks,
    release_number,
    replace_own_hooks,
)

__all__ = [
    "NO_HOOKS", "Hook", "HookSet", "Interface", "catalogue", "interfaces", "own_hooks",
    "release_number", "replace_own_hooks",
]  # fmt: skip
