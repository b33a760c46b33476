"""The matrix of hooks: check boxes by level, interfaces of the past, and what is known of each."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as W

from pvmmu.hooks import NO_HOOKS, Hook, HookSet, catalogue, interfaces
from pvmmu.hooks.callsites import callsite_kernels, callsites
from pvmmu.panels.kit import tip


class HookMatrix:
    """Check boxes for all hooks, grouped by level, and presets of the past.

    Parameters
    ----------
    value : HookSet
        Checked at first.
    """

    def __init__(self, value: HookSet = NO_HOOKS) -> None:
        self._handlers: list[Callable[[Any], None]] = []
        self._quiet = False
        self.boxes = {name: self._box(hook) for name, hook in catalogue().items()}
        self.presets = W.Dropdown(
            options=[
                ("preset ...", ""),
                *((f"{n}: {i.title}", n) for n, i in interfaces().items()),
            ],
            layout=W.Layout(width="98%"),
        )
        self.presets.observe(self._on_preset, "value")
        self.find = W.Text(placeholder="find a hook", layout=W.Layout(width="98%"))
        tip(self.find, "by name, meaning, operation or user: all others are hidden")
        self.find.observe(lambda change: self._show_found(change["new"]), "value")
        self._groups = {level: self._group(level) for level in ("low", "high")}
        parts = ([W.HTML(f"<b>{level}-level</b>"), g] for level, g in self._groups.items())
        self.widget = W.VBox(
            [self.presets, self.find, *(w for part in parts for w in part), W.HTML(_about_all())],
            layout=W.Layout(width="520px", flex="0 0 auto"),
        )  # fmt: skip
        self.widget.add_class("pvmmu-hooks")
        self.value = value

    def _group(self, level: str) -> W.GridBox:
        return W.GridBox(
            [self.boxes[n] for n, h in catalogue().items() if h.level == level],
            layout=W.Layout(grid_template_columns="repeat(3, 172px)", grid_gap="0px"),
        )

    def _box(self, hook: Hook) -> W.Checkbox:
        box = _checkbox(hook)
        box.observe(self._on_box, "value")
        return box

    @property
    def value(self) -> HookSet:
        """The hooks that are checked."""
        return HookSet.of(*(n for n, b in self.boxes.items() if b.value))

    @value.setter
    def value(self, hooks: HookSet) -> None:
        self._quiet = True
        try:
            for name in hooks:
                if name not in self.boxes:  # registered since
                    hook = catalogue()[name]
                    self.boxes[name] = box = self._box(hook)
                    group = self._groups[hook.level]
                    group.children = (*group.children, box)
            for name, box in self.boxes.items():
                box.value = name in hooks
        finally:
            self._quiet = False
        self._tell({"new": hooks})

    def set(self, hooks: str) -> None:
        """Check the hooks of a set.

        Raises
        ------
        HookError
            There is no such hook.
        """
        self.value = HookSet.parse(hooks)

    def observe(self, handler: Callable[[Any], None], names: str = "value", /) -> None:
        """Call `handler` when the set has changed, once for a preset."""
        self._handlers.append(handler)

    def _show_found(self, text: str) -> None:
        """Hide the hooks in which a text does not stand."""
        words = text.lower().split()
        for name, box in self.boxes.items():
            hook = catalogue()[name]
            known = (*hook.members, *hook.aliases, hook.meaning, *hook.implementers,
                     *(op.name for op in hook.operations))  # fmt: skip
            said = " ".join([name, *known]).lower()
            box.layout.display = "" if all(w in said for w in words) else "none"

    def dim(self, idle: Iterable[str]) -> None:
        """Grey out the hooks that do not matter here."""
        idle = set(idle)
        for name, box in self.boxes.items():
            (box.add_class if name in idle else box.remove_class)("pvmmu-idle")

    def mark(self, other: HookSet) -> None:
        """Underline the hooks in which the set differs from another one."""
        for name, box in self.boxes.items():
            differs = box.value != (name in other)
            (box.add_class if differs else box.remove_class)("pvmmu-differs")

    def _tell(self, change: dict[str, Any]) -> None:
        for handler in self._handlers:
            handler(change)

    def _on_box(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self._tell(change)

    def _on_preset(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.value = interfaces()[change["new"]].hooks
            self.presets.value = ""


def _checkbox(hook: Hook) -> W.Checkbox:
    box = W.Checkbox(
        description=hook.name, indent=False, layout=W.Layout(width="168px", margin="0 4px 0 0")
    )
    since, used = _known(hook)
    tip(box, f"{hook.meaning}. {since}; used by {used}.")
    if not hook.was_merged:
        box.add_class("pvmmu-never")
    return box


def _known(hook: Hook) -> tuple[str, str]:
    since = f"since {hook.merged}" if hook.was_merged else "never merged"
    return since, ", ".join(hook.implementers) or "nobody"


def _about_all() -> str:
    """Return a table, folded up, of what each hook covers, who used it and where it is called."""
    sites = callsites(HookSet.every())
    head = ("hook", "level", "covers", "offered", "used by", "calls in mm and generic code",
            "in x86", "files of mm/")  # fmt: skip
    rows = ["".join(f"<th>{h}</th>" for h in head)]
    for name, hook in catalogue().items():
        covers = ", ".join(op.name for op in hook.operations)
        at = sites.loc[name]
        cells = (name, hook.level, covers, *_known(hook), at["generic"], at["x86"], at["files"])
        title = html.escape(hook.meaning, quote=True)
        rows.append("".join(f"<td title='{title}'>{html.escape(str(c))}</td>" for c in cells))
    table = "".join(f"<tr>{r}</tr>" for r in rows)
    return (
        "<details><summary>What each hook covers, who used it, where it is called "
        f"(Linux {callsite_kernels()[-1]})</summary>"
        f"<div class='pvmmu-table'><table>{table}</table></div></details>"
    )
