"""Hooks: the catalogue, sets of them, and the interfaces of the past by name.

The catalogue and the interfaces are data (``data/hooks/*.toml``, call sites in
``data/hooks/callsites.csv``); a new hook is a new table there.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pvmmu.errors import HookError, did_you_mean
from pvmmu.guest.provenance import Provenance
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks.members import members
from pvmmu.paths import data_path


@dataclass(frozen=True)
class Hook:
    """A member (or a pair of members that belong together) of the ops structure.

    Parameters
    ----------
    name : str
        Name in the latest kernel that has it.
    bit : int
        Position in the mask of a `HookSet`.
    members, aliases : tuple of str
        Members of the ops structure; older names.
    level : str
        ``low`` or ``high``.
    operations : tuple of Op
        What it covers.
    default : tuple of str
        Hooks that the default implementation calls in its turn; empty: the native operation.
    merged, removed : str
        First release that offers it (``never``), first that no longer does.
    implementers : tuple of str
        Backends that did something in it.
    accessors : tuple of str
        Names under which its call sites are counted.
    meaning, source, adds : str
        For readers; `adds` says which operations it adds to the guest's.
    """

    name: str
    bit: int
    members: tuple[str, ...]
    level: str
    operations: tuple[Op, ...]
    merged: str
    accessors: tuple[str, ...]
    implementers: tuple[str, ...]
    meaning: str
    source: str
    aliases: tuple[str, ...] = ()
    default: tuple[str, ...] = ()
    removed: str = ""
    adds: str = ""

    @property
    def was_merged(self) -> bool:
        """Whether any release ever offered it."""
        return self.merged != "never"


@dataclass(frozen=True)
class Interface:
    """An interface of the past: a named hook set.

    Parameters
    ----------
    name, title, kernel, source : str
        `kernel` is the release it belongs to, empty for none.
    backend : str
        Backend of direct mode whose rules its hooks follow; empty: the mode's default.
    hooks : HookSet
        What it offered or used.
    """

    name: str
    title: str
    kernel: str
    source: str
    hooks: HookSet
    backend: str = ""


@functools.cache
def catalogue() -> dict[str, Hook]:
    """Return all hooks by name, in order of their bits.

    Raises
    ------
    HookError
        The catalogue, or a hook of your own, contradicts itself.
    """
    tables = _toml("hooks.toml")
    hooks = {name: _hook(name, table) for name, table in tables.items()} | _CUSTOM
    bits = [h.bit for h in hooks.values()]
    if len(set(bits)) != len(bits):
        raise HookError("data/hooks/hooks.toml: two hooks share a bit")
    for h in hooks.values():
        for other in h.default:
            if other not in hooks:
                raise HookError(f"data/hooks/hooks.toml: {h.name}.default: no hook {other!r}")
    return dict(sorted(hooks.items(), key=lambda item: item[1].bit))


#: Hooks that were registered in this process (`pvmmu.hooks.custom`).
_CUSTOM: dict[str, Hook] = {}


def replace_custom_hooks(hooks: dict[str, Hook]) -> None:
    """Set the `hooks`, by name, that are in the catalogue of this process only."""
    _CUSTOM.clear()
    _CUSTOM.update(hooks)
    catalogue.cache_clear()
    _by_any_name.cache_clear()


def custom_hooks() -> dict[str, Hook]:
    """Return the hooks that are in the catalogue of this process only."""
    return dict(_CUSTOM)


def _toml(name: str) -> dict[str, Any]:
    path = data_path("hooks", name)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise HookError(f"{path}: {e}") from None


def _hook(name: str, table: dict[str, Any]) -> Hook:
    try:
        operations = tuple(Op[o] for o in table.pop("operations"))
        lists = {k: tuple(v) for k, v in table.items() if isinstance(v, list)}
        return Hook(name=name, operations=operations, **{**table, **lists})
    except (KeyError, TypeError) as e:
        raise HookError(f"data/hooks/hooks.toml: [{name}]: {e}") from None


@functools.cache
def _by_any_name() -> dict[str, tuple[str, ...]]:
    """Names, aliases and members of any release -> hooks; ``enter_mmap`` is two of them."""
    names: dict[str, tuple[str, ...]] = {h.name: (h.name,) for h in catalogue().values()}
    for h in catalogue().values():
        for alias in (*h.aliases, *h.members):
            names.setdefault(alias, (h.name,))
    for m in members().values():
        if m.hooks:
            names.setdefault(m.member, m.hooks)
    return names


@dataclass(frozen=True)
class HookSet:
    """A set of hooks: the lever of every design.

    Parameters
    ----------
    mask : int
        Bit *i* is the hook whose ``bit`` is *i*; stable from version to version.

    Examples
    --------
    >>> low = HookSet.of("set_pte", "set_pmd")
    >>> (low | HookSet.parse("lazy_mmu")).names
    ('set_pte', 'set_pmd', 'lazy_mmu')
    """

    mask: int = 0

    def __post_init__(self) -> None:
        every = sum(1 << h.bit for h in catalogue().values())
        if self.mask < 0 or self.mask & ~every:
            raise HookError(f"mask {self.mask:#x} has bits that are no hook (all: {every:#x})")

    @classmethod
    def of(cls, *names: str) -> HookSet:
        """Return the set of the hooks called `names` (aliases allowed).

        Raises
        ------
        HookError
            A name is unknown; suggests the nearest.
        """
        mask = 0
        for name in names:
            for hook in _lookup(name):
                mask |= 1 << catalogue()[hook].bit
        return cls(mask)

    @classmethod
    def every(cls) -> HookSet:
        """Return the set of all hooks of the catalogue."""
        return cls.of(*catalogue())

    @classmethod
    def parse(cls, text: str | HookSet | Iterable[str]) -> HookSet:
        """Read a set from `text`: names of hooks or interfaces; ``-`` before a name takes it away.

        ``"linux-6.1 +ptep_get_and_clear -lazy_mmu"`` is an interface, one hook more and one less;
        ``"set_pte+set_pmd"`` are two hooks. A mask (``0x1f``) and an iterable of names are
        understood, too.

        Raises
        ------
        HookError
            A name is unknown; suggests the nearest.
        """
        if isinstance(text, HookSet):
            return text
        if not isinstance(text, str):
            return cls.of(*text)
        text = text.strip()
        if re.fullmatch(r"0x[0-9a-fA-F]+", text):
            return cls(int(text, 16))
        out, sign = cls(), "+"
        for word in re.findall(r"(?:(?<=\s)-|[+])\s*|[^\s+]+", f" {text}"):
            if word.strip() in ("+", "-"):
                sign = word.strip()
                continue
            part = interfaces()[word].hooks if word in interfaces() else cls.of(word)
            out, sign = (out | part if sign == "+" else out - part), "+"
        return out

    # ------------------------------------------------------------------ algebra
    def __or__(self, other: HookSet) -> HookSet:
        return HookSet(self.mask | other.mask)

    def __and__(self, other: HookSet) -> HookSet:
        return HookSet(self.mask & other.mask)

    def __sub__(self, other: HookSet) -> HookSet:
        return HookSet(self.mask & ~other.mask)

    def __xor__(self, other: HookSet) -> HookSet:
        return HookSet(self.mask ^ other.mask)

    def __le__(self, other: HookSet) -> bool:
        return self.mask & ~other.mask == 0

    def __contains__(self, name: str) -> bool:
        return bool(self.mask >> catalogue()[name].bit & 1)

    def __iter__(self) -> Iterator[str]:
        return (h.name for h in catalogue().values() if self.mask >> h.bit & 1)

    def __len__(self) -> int:
        return self.mask.bit_count()

    # ------------------------------------------------------------------ names
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the hooks in the order of the catalogue."""
        return tuple(self)

    @property
    def short(self) -> str:
        """Short readable form that `parse` understands.

        The nearest interface and what differs from it, or the hooks themselves if that is shorter.
        """
        if not self.mask:
            return "none"
        forms = ["+".join(self)]
        for name, i in interfaces().items():
            more, less = self - i.hooks, i.hooks - self
            if i.hooks.mask:
                forms.append(
                    name + "".join(f" +{h}" for h in more) + "".join(f" -{h}" for h in less)
                )
        return min(forms, key=len)

    def __str__(self) -> str:
        return self.short

    @property
    def low(self) -> HookSet:
        """Its low-level hooks: those of one entry, register or table page."""
        return HookSet.of(*(name for name in self if catalogue()[name].level == "low"))

    @property
    def members(self) -> int:
        """Members of the ops structure that the set needs."""
        return sum(len(catalogue()[name].members) for name in self)

    def counterfactual(self, provenance: Provenance) -> bool:
        """Whether the set never was an interface of the era of a trace with this `provenance`.

        It was one if the kernel of the trace offered every hook of it, and it is not an older
        kernel's complete interface.
        """
        if not self.mask:
            return False
        era = provenance.kernel_version
        return not era or any(not _offered(catalogue()[name], era) for name in self)


#: The empty set.
NO_HOOKS = HookSet()


def _lookup(name: str) -> tuple[str, ...]:
    names = _by_any_name()
    if name not in names and name in members():
        m = members()[name]
        raise HookError(
            f"{name} is a member of the ops structure ({m.life}), but no hook: no recorded "
            "operation goes through it"
        )
    if name not in names:
        hint = did_you_mean(name, [*names, *interfaces()])
        raise HookError(f"no hook or interface is named {name!r}{hint}")
    return names[name]


def release_number(text: str) -> tuple[int, ...]:
    """Return the numbers of a release's `text`, to compare releases: ``v2.6.27`` is (2, 6, 27)."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _offered(hook: Hook, era: tuple[int, ...]) -> bool:
    """Whether the kernel of a release offered a hook."""
    if not hook.was_merged:
        return False
    gone = bool(hook.removed) and release_number(hook.removed) <= era
    return release_number(hook.merged) <= era and not gone


@functools.cache
def interfaces() -> dict[str, Interface]:
    """Return the interfaces of the past by name.

    Raises
    ------
    HookError
        One names a hook that does not exist.
    """
    out = {}
    for name, table in _toml("interfaces.toml").items():
        unknown = [h for h in table["hooks"] if h not in catalogue()]
        if unknown:
            raise HookError(f"data/hooks/interfaces.toml: [{name}]: no hook {unknown[0]!r}")
        mask = sum(1 << catalogue()[h].bit for h in table.pop("hooks"))
        out[name] = Interface(name=name, hooks=HookSet(mask), **table)
    return out
