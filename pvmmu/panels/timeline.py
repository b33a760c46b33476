"""The panel of what a kernel does: a workload on two kernels, or beside its recording."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

import ipywidgets as W
import pandas as pd

from pvmmu.errors import GuestError
from pvmmu.figures.timeline import TimelineFigure
from pvmmu.guest.linux.profile import load_profile, profile_names
from pvmmu.guest.load_trace import load_trace, trace_names
from pvmmu.guest.timeline import operation_counts
from pvmmu.guest.trace import Platform, Trace
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload
from pvmmu.panels.controls import RECORDED, size_slider
from pvmmu.panels.history import State
from pvmmu.panels.kit import Picture, guarded, table_html
from pvmmu.panels.panel import Panel

#: Platforms on offer; levels follow the kernel where it is a 32-bit one.
PLATFORMS: Final = {
    "bare hardware": Platform(),
    "bare hardware with PCID": Platform(pcid=True),
    "bare hardware, two CPUs": Platform(vcpus=2),
    "Xen PV guest": XEN_PV,
    "32 bits, two levels": Platform(levels=2),
    "32 bits, PAE": Platform(levels=3, shared_kernel_pmd=True),
}


@functools.lru_cache(maxsize=64)
def _model(workload: str, n: int, kernel: str, platform: str) -> Trace:
    where = PLATFORMS[platform]
    if load_profile(kernel).arch == "i386" and where.levels > 3:
        where = dataclasses.replace(where, levels=3, shared_kernel_pmd=True)
    return run_workload(workload, n, kernel, where)


class TimelinePanel(Panel):
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
        super().__init__()
        self.figure = TimelineFigure(2)
        self.picture = Picture(self.figure.figure, "operations of two kernels in order, in lanes")
        kw: dict[str, Any] = {"layout": W.Layout(width="290px")}
        self.workload = W.Dropdown(
            options=list(WORKLOADS), value=workload, description="workload", **kw
        )
        self.size = size_slider(n, **kw)
        kernels = [*profile_names(), RECORDED]
        self.kernels = [
            W.Dropdown(options=kernels, value=k, description=f"kernel {x}", **kw)
            for x, (k, _) in zip("AB", (a, b), strict=True)
        ]
        self.platforms = [
            W.Dropdown(options=list(PLATFORMS), value=p, description="on", **kw) for _, p in (a, b)
        ]
        self.about, self.table, self.callers = W.HTML(), W.HTML(), W.HTML()
        self.cause = W.Dropdown(options=[("who makes ...", "")], layout=W.Layout(width="340px"))
        self.cause.observe(lambda _: self._list_callers(), "value")
        self._traces: list[Trace] = []
        rows = [W.HBox(pair) for pair in zip(self.kernels, self.platforms, strict=True)]
        controls = {
            "workload": self.workload, "size": self.size,
            "kernel A": self.kernels[0], "on A": self.platforms[0],
            "kernel B": self.kernels[1], "on B": self.platforms[1],
        }  # fmt: skip
        self.begin(
            controls,
            [W.HBox([self.workload, self.size]), *rows, self.about, self.picture.widget,
             self.cause, self.callers, self.table],
        )  # fmt: skip

    def _trace(self, kernel: str, platform: str) -> tuple[str, Trace]:
        name = f"{self.workload.value}.{self.size.value}"
        if kernel != RECORDED:
            trace = _model(self.workload.value, self.size.value, kernel, platform)
            return f"Linux {kernel} (model), {platform}", trace
        if name not in trace_names():
            have = [t for t in trace_names() if t.startswith(f"{self.workload.value}.")]
            raise GuestError(f"no recording {name} (there are {', '.join(have) or 'none'})")
        return "Linux 6.1 (recorded), Xen PV guest", load_trace(name)

    def _draw(self, state: State, before: State) -> None:
        what = WORKLOADS[self.workload.value]
        self.about.value = f"<i>{what.about} Size in {what.unit}.</i>"
        pairs = zip(self.kernels, self.platforms, strict=True)
        traces = [self._trace(k.value, p.value) for k, p in pairs]
        titles = {f"{x}. {title}": t for x, (title, t) in zip("AB", traces, strict=True)}
        self._traces = [t for _, t in traces]
        self.figure.draw(titles)
        self.picture.show()
        table = operation_counts(dict(zip("AB", self._traces, strict=True)))
        differs = table[table["A"] != table["B"]]
        note = f"{len(differs)} of {len(table)} operations differ in number"
        self.table.value = table_html(differs.assign(change=differs["B"] - differs["A"]), note)
        asked = [(f"who makes {op}", op) for op in table.index]
        self.cause.options = [("who makes ...", ""), *asked]
        self.cause.value = self.callers.value = ""

    @guarded
    def _list_callers(self) -> None:
        """List who makes an operation in either kernel."""
        op, counts = self.cause.value, {}
        for name, trace in zip("AB", self._traces, strict=True):
            rows = trace.to_frame()
            counts[name] = rows.loc[rows["op"] == op, "caller"].astype(str).value_counts()
        table = pd.DataFrame(counts).fillna(0).astype(int).rename_axis("caller")
        note = f"{op}: {table['A'].sum():,} in A, {table['B'].sum():,} in B"
        self.callers.value = table_html(table, note) if op else ""
