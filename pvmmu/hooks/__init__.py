"""What a guest kernel may call: the hooks, interfaces of the past, call sites, custom hooks.

A hook, an interface or a call site is a row in ``data/hooks``, with its source; here it is read,
checked and named. A hook of a kernel of your own is registered with `hooks.custom`.
"""

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
from pvmmu.hooks.members import Member, member_table, members

__all__ = [
    "NO_HOOKS",
    "Hook",
    "HookSet",
    "Interface",
    "Member",
    "catalogue",
    "custom_hooks",
    "interfaces",
    "member_table",
    "members",
    "release_number",
    "replace_custom_hooks",
]  # fmt: skip
