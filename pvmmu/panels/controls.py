"""Controls of panels: choices that take values of one's own, groups with one value, a workload."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import ipywidgets as W

from pvmmu.costs import cost_names, get_costs
from pvmmu.errors import PvmmuError
from pvmmu.guest.linux.profile import profile_names
from pvmmu.guest.load_trace import load_trace, trace_names
from pvmmu.guest.trace import Trace
from pvmmu.guest.workloads import WORKLOADS
from pvmmu.modes import get_mode
from pvmmu.modes.known_modes import mode_variants

#: Sizes of modelled workloads.
SIZES: Final = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
#: Operations of a modelled workload that a panel waits for: some seconds, some hundred megabytes.
MOST_OPERATIONS: Final = 3_000_000
#: The kernel of what was recorded.
RECORDED: Final = "recorded"


class Choice(W.Dropdown):
    """A list of choices that also takes any other value that passes a check.

    Parameters
    ----------
    check : callable
        Raises a `PvmmuError` for a value that does not exist; returns the value to offer.
    options : iterable of (str, str) or str
        What is offered at first, as for a ``Dropdown``.
    value : str
        Chosen at first.
    """

    def __init__(
        self, check: Callable[[str], str], options: Iterable[Any], value: str, **kwargs: Any
    ) -> None:
        self._check = check
        super().__init__(options=list(options), **kwargs)
        self.set(value)

    def set(self, value: str) -> None:
        """Choose a value, and offer it from now on.

        Raises
        ------
        PvmmuError
            There is no such thing.
        """
        if not isinstance(value, str):
            raise PvmmuError(f"{value!r} is no text")
        options: Any = self.options  # type: ignore[has-type]
        offered = [o[1] if isinstance(o, tuple) else o for o in options]
        if value not in offered:
            value = self._check(value)
        if value not in offered:
            pairs = bool(options) and isinstance(options[0], tuple)
            self.options = (*options, (value, value) if pairs else value)
        self.value = value


def mode_choice(value: str, **kwargs: Any) -> Choice:
    """Return a choice of paging modes, older backends and other implementations among them."""
    options = [(title, spec) for spec, title in mode_variants().items()]
    return Choice(lambda v: get_mode(v).spec, options, value, description="mode", **kwargs)


def cost_choice(value: str, **kwargs: Any) -> Choice:
    """Return a choice of cost tables; a file will do, too."""

    def check(table: str) -> str:
        get_costs(table)
        return table

    return Choice(check, cost_names(), value, description="costs", **kwargs)


class Line(W.Text):
    """A line of text that passes a check before a state sets it; Enter ends an input."""

    def __init__(self, check: Callable[[str], Any], value: str, **kwargs: Any) -> None:
        self._check = check
        super().__init__(value=value, continuous_update=False, **kwargs)

    def set(self, value: str) -> None:
        """Set the text.

        Raises
        ------
        PvmmuError
            It does not pass.
        """
        self._check(value)
        self.value = value


class _Group:
    """Several widgets that hold one value."""

    def __init__(self, widgets: Mapping[str, Any]) -> None:
        self.widgets = dict(widgets)

    def observe(self, handler: Callable[[Any], None], names: str = "value", /) -> None:
        """Call `handler` when one of the widgets has changed."""
        for widget in self.widgets.values():
            widget.observe(handler, names)

    def _known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.widgets:
                raise PvmmuError(f"no {name!r} here (there are {', '.join(self.widgets)})")


class Checks(_Group):
    """Check boxes; the value is the list of those that are checked."""

    @property
    def value(self) -> list[str]:
        """Names of the boxes that are checked."""
        return [name for name, box in self.widgets.items() if box.value]

    def set(self, names: list[str]) -> None:
        """Check these boxes and no others."""
        self._known(names)
        for name, box in self.widgets.items():
            box.value = name in names


class Sliders(_Group):
    """Sliders by name; the value has all theirs."""

    @property
    def value(self) -> dict[str, int]:
        """Values by name."""
        return {name: slider.value for name, slider in self.widgets.items()}

    def set(self, values: Mapping[str, int]) -> None:
        """Move the sliders."""
        self._known(values)
        for name, slider in self.widgets.items():
            value, low, high = values.get(name), slider.min, slider.max
            if not isinstance(value, int) or not low <= value <= high:
                raise PvmmuError(f"{name}: {value!r} is not a number from {low} to {high}")
            slider.value = value


def size_slider(value: int, **kwargs: Any) -> W.SelectionSlider:
    """Return a slider over sizes: not an IntSlider, which a front end snaps to its own grid."""
    return W.SelectionSlider(options=SIZES, value=value, description="size", **kwargs)


class WorkloadChoice(_Group):
    """A recorded trace, or a workload of some size on the model of a kernel; one text names it.

    Parameters
    ----------
    value : str
        As `pvmmu.load_trace` takes it.
    """

    def __init__(self, value: str, **kwargs: Any) -> None:
        kernels = [("recorded (6.1, 6.12)", RECORDED)]
        kernels += [(f"model of {k}", k) for k in profile_names()]
        self.kernel = W.Dropdown(options=kernels, description="kernel", **kwargs)
        self.trace = Choice(
            _checked, trace_names(), trace_names()[0], description="trace", **kwargs
        )
        self.workload = W.Dropdown(options=list(WORKLOADS), description="workload", **kwargs)
        self.size = size_slider(16, **kwargs)
        super().__init__({"kernel": self.kernel, "trace": self.trace,
                          "workload": self.workload, "size": self.size})  # fmt: skip
        self.kernel.observe(lambda change: self._other(change["old"]), "value")
        self.widget = W.VBox()
        self.set(value)

    def _other(self, before: str) -> None:
        """Keep what was recorded when a model takes over, where it has that workload."""
        self._fit()
        name, _, size = str(self.trace.value).rpartition(".")
        if before == RECORDED and name in WORKLOADS and size.isdigit() and int(size) in SIZES:
            self.workload.value, self.size.value = name, int(size)

    def _fit(self) -> None:
        """Show the controls of what was recorded, or those of the model."""
        real, model = (self.trace,), (self.workload, self.size)
        shown = real if self.kernel.value == RECORDED else model
        self.widget.children = (self.kernel, *shown)

    @property
    def value(self) -> str:
        """Name of the stream."""
        if self.kernel.value == RECORDED:
            return str(self.trace.value)
        return f"{self.workload.value}.{self.size.value}@{self.kernel.value}"

    def set(self, value: str) -> None:
        """Choose a stream.

        Raises
        ------
        PvmmuError
            There is none of that name.
        """
        parts = re.fullmatch(r"(.+)\.(\d+)@([^/+]+)", value) if isinstance(value, str) else None
        model = parts is not None and parts[1] in WORKLOADS and int(parts[2]) in SIZES
        if parts is not None and model and parts[3] in profile_names():
            self.kernel.value, self.workload.value = parts[3], parts[1]
            self.size.value = int(parts[2])
        else:
            self.trace.set(value)
            self.kernel.value = RECORDED
        self._fit()


def shown_stream(name: str) -> Trace:
    """Return a stream, unless the model would make more operations of it than a panel can show.

    Parameters
    ----------
    name : str
        As `pvmmu.load_trace` takes it. How many operations a large workload has is told by those of
        sizes 1 and 2.

    Raises
    ------
    PvmmuError
        There is no such stream, or it has more than `MOST_OPERATIONS`.
    """
    parts = re.fullmatch(r"([^:]+)\.(\d+)(@.+)", name)
    size = int(parts[2]) if parts else 0
    if parts and size > 8:
        one, two = (len(load_trace(f"{parts[1]}.{n}{parts[3]}")) for n in (1, 2))
        likely = one + (size - 1) * (two - one)
        if likely > MOST_OPERATIONS:
            raise PvmmuError(
                f"{name} has about {likely / 1e6:.0f} million operations; a panel shows "
                f"{MOST_OPERATIONS / 1e6:.0f} million (the command pvmmu replay takes them)"
            )
    return load_trace(name)


def _checked(name: str) -> str:
    load_trace(name)
    return name
