"""What a guest kernel may call: the hooks, interfaces of the past, call sites, custom hooks."""

from __future__ import annotations

from pvmmu.hooks.catalogue import (
    NO_HOOKS,
    Hook,
    HookSet,
    Interface,
    catalogue,
    custom_hooks,
    interfaces,
    release_number,
    replace_custom_hooks,
)

__all__ = [
    "NO_HOOKS",
    "Hook",
    "HookSet",
    "Interface",
    "catalogue",
    "custom_hooks",
    "interfaces",
    "release_number",
    "replace_custom_hooks",
]  # fmt: skip
