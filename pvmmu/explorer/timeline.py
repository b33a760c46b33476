"""The panel of what a kernel does: a workload on two kernels, or beside its recording."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

import ipywidgets as W

from pvmmu.errors import GuestError
from pvmmu.explorer.kit import Messages, Picture, guarded
from pvmmu.figures.timeline import TimelineFigure
from pvmmu.guest.linux.profile import load_profile, profile_names
from pvmmu.guest.ops import Platform, Trace
from pvmmu.guest.timeline import operation_counts
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload
from pvmmu.library import load_trace, trace_names

#: Platforms on offer; levels follow the kernel where it is a 32-bit one.
PLATFORMS: Final = {
    "bare hardware": Platform(),
    "bare hardware with PCID": Platform(pcid=True),
    "bare hardware, two CPUs": Platform(vcpus=2),
    "Xen PV guest": XEN_PV,
    "32 bits, two levels": Platform(levels=2),
    "32 bits, PAE": Platform(levels=3, shared_kernel_pmd=True),
}
RECORDED: Final = "recorded"
_SIZES: Final = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


@functools.lru_cache(maxsize=64)
def _model(workload: str, n: int, kernel: str, platform: str) -> Trace:
    where = PLATFORMS[platform]
    if load_profile(kernel).arch == "i386" and where.levels > 3:
        where = dataclasses.replace(where, levels=3, shared_kernel_pmd=True)
    return run_workload(workload, n, kernel, where)


class TimelinePanel:
    """A panel over `run_workload`: workload, size, two kernels and platforms in; timelines out.

    Parameters
    ----------
    workload : str
        Key of `WORKLOADS`.
    n : int
        Its size.
    a, b : (str, str)
        Kernel profile and platform of each timeline; kernel ``"recorded"`` is the real one, if a
        recording of that workload and size ships with the package.
    """

    def __init__(
        self, workload: str = "fork", n: int = 16, *,
        a: tuple[str, str] = ("2.6.27", "bare hardware"),
        b: tuple[str, str] = ("6.18", "bare hardware"),
    ) -> None:  # fmt: skip
        self.messages, self.figure, self.redraws = Messages(), TimelineFigure(2), 0
        self.picture = Picture(self.figure.figure, "operations of two kernels in order, in lanes")
        self._shown: tuple[Any, ...] = ()
        kw: dict[str, Any] = {"layout": W.Layout(width="290px")}
        self.workload = W.Dropdown(
            options=list(WORKLOADS), value=workload, description="workload", **kw
        )
        self.size = W.SelectionSlider(options=_SIZES, value=n, description="size", **kw)
        kernels = [*profile_names(), RECORDED]
        self.kernels = [
            W.Dropdown(options=kernels, value=k, description=f"kernel {x}", **kw)
            for x, (k, _) in zip("AB", (a, b), strict=True)
        ]
        self.platforms = [
            W.Dropdown(options=list(PLATFORMS), value=p, description="on", **kw) for _, p in (a, b)
        ]
        self.about, self.table = W.HTML(), W.HTML()
        for control in (self.workload, self.size, *self.kernels, *self.platforms):
            control.observe(lambda _: self._redraw(), "value")
        rows = [W.HBox(pair) for pair in zip(self.kernels, self.platforms, strict=True)]
        self.view = W.VBox(
            [W.HBox([self.workload, self.size]), *rows, self.about, self.picture.widget,
             self.messages.widget, self.table]
        )  # fmt: skip
        self._redraw()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)

    def _trace(self, kernel: str, platform: str) -> tuple[str, Trace]:
        name = f"{self.workload.value}.{self.size.value}"
        if kernel != RECORDED:
            trace = _model(self.workload.value, self.size.value, kernel, platform)
            return f"Linux {kernel} (model), {platform}", trace
        if name not in trace_names():
            have = [t for t in trace_names() if t.startswith(f"{self.workload.value}.")]
            raise GuestError(f"no recording {name} (there are {', '.join(have) or 'none'})")
        return "Linux 6.1 (recorded), Xen PV guest", load_trace(name)

    @guarded
    def _redraw(self) -> None:
        controls = (self.workload, self.size, *self.kernels, *self.platforms)
        state = tuple(c.value for c in controls)
        if state == self._shown:
            return
        self._shown = state
        self.messages.clear()
        what = WORKLOADS[self.workload.value]
        self.about.value = f"<i>{what.about} Size in {what.unit}.</i>"
        pairs = zip(self.kernels, self.platforms, strict=True)
        traces = [self._trace(k.value, p.value) for k, p in pairs]
        titles = {f"{x}. {title}": t for x, (title, t) in zip("AB", traces, strict=True)}
        self.figure.draw(titles)
        self.picture.show()
        table = operation_counts(dict(zip("AB", (t for _, t in traces), strict=True)))
        differs = table[table["A"] != table["B"]]
        self.table.value = (
            f"<b>{len(differs)} of {len(table)} operations differ in number</b>" + differs.to_html()
        )
        self.redraws += 1
