"""One small example of every figure of pvmmu.figures, for tests that look at all of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pvmmu.costs import get_costs
from pvmmu.evidence.claims import evaluate, verdicts
from pvmmu.evidence.history import compared
from pvmmu.evidence.truth import (
    compare_designs,
    direct_vs_shadow,
    native_one,
    shipped_designs,
    shipped_measurements,
)
from pvmmu.evidence.unmerged import PROPOSALS, what_if
from pvmmu.figures import (
    claims as claims_module,
    contribution_figure,
    counterfactual_figure,
    debate_figure,
    designs_figure,
    direct_vs_shadow_figure,
    dot_matrix_figure,
    interaction_figure,
    interfaces_figure,
    lattice_figure,
    native_one_figure,
    proposals_figure,
    reality_figure,
    refill_figure,
    sensitivity_figure,
    three_ways_figure,
    timeline_figure,
)
from pvmmu.figures.style import style
from pvmmu.figures.workloads import workloads_figure
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.guest.workloads import run_workload
from pvmmu.hooks import HookSet
from pvmmu.panels import DesignPanel, ReachPanel, SearchPanel, TimelinePanel, WalkPanel
from pvmmu.replay import replay
from pvmmu.replay.compare import Comparison, Design, debate
from pvmmu.replay.sensitivity import sensitivity
from pvmmu.search import (
    DesignSpace,
    Draws,
    compare_interfaces,
    contributions,
    front,
    interactions,
    search,
)
from pvmmu.x86.examples import WAYS, ExampleSpace
from pvmmu.x86.refill import DISTURBANCES, refill

DESIGNS = {
    "today": ("linux-6.1", "direct"),
    "no late pin": ("linux-6.1 -dup_mmap -activate_mm", "direct"),
    "no announcement": ("linux-6.1 -alloc_pte", "direct"),
}
CLAIMS = ("late-pin", "nested")

sys.path.append(str(Path(__file__).parents[1]))  # for a run by itself
from conftest import ROOT, recorded  # noqa: E402


@functools.cache
def _found():
    traces = [recorded("fork.16"), recorded("mmap.16")]
    return search(traces, ["direct", "vmi"], progress=False)


@functools.cache
def _board() -> DesignSpace:
    return DesignSpace(_found(), ["direct", "vmi"], costs="p4-2006", draws=Draws(4, seed=1))


def _panel(mode: str = "direct", hooks: str = "linux-6.1 -set_pte") -> Figure:
    return DesignPanel("fork.64", mode, hooks).figure.figure


def _debate() -> Figure:
    return debate_figure(debate([recorded("fork.16"), recorded("make")]))


def _dots() -> Figure:
    edge = front(_board())
    sets = {str(i + 1): HookSet(mask) for i, mask in enumerate(edge["mask"])}
    values = {str(i + 1): f"{c:,.0f}" for i, c in enumerate(edge["cycles"])}
    return dot_matrix_figure(sets, values, "The front, from the fastest set to the smallest")


def _search() -> Figure:
    panel = SearchPanel(_found(), ("direct", "vmi"), "p4-2006")
    panel.against.value = "linux-2.6.27"
    return panel.figure.whole()


def _sensitivity() -> Figure:
    trace = recorded("fork.16")
    counts = {k: replay(trace, *v) for k, v in list(DESIGNS.items())[:2]}
    return sensitivity_figure(sensitivity(counts, "p4-2006", seed=1), "today")


def _refill() -> Figure:
    data, other = (
        load_memory_trace(n).pages(fetches=False, limit=400_000) for n in ("cc1", "sort")
    )
    return refill_figure(
        [refill(data, "skylake", 20_000, d, other) for d in DISTURBANCES], "cc1 on Skylake"
    )


def _timeline() -> Figure:
    pair = {"Linux 6.1 (model)": run_workload("fork", 16, "6.1"), "recorded": recorded("fork.16")}
    return timeline_figure(pair, "Two forks")


def _ways() -> Figure:
    space = ExampleSpace("5-level", "EPT, 5 levels")
    return three_ways_figure({way: space.walk("a page", way=way) for way in WAYS})


def _workloads() -> Figure:
    designs = tuple(Design.of(h, m, k) for k, (h, m) in zip("ABC", DESIGNS.values(), strict=True))
    costs = get_costs("p4-2006")
    traces = (recorded("fork.16"), recorded("mmap.16"))
    comparisons = [Comparison(t, designs, costs) for t in traces]
    return workloads_figure(comparisons, "What three designs enter for two workloads")


def _claims() -> Figure:
    table = verdicts(CLAIMS)
    title = claims_module.claims_finding(table)
    return claims_module.claims_figure({n: evaluate(n) for n in CLAIMS}, title)


def _omissions() -> Figure:
    table: pd.DataFrame = what_if([recorded("make"), recorded("fork.16")], samples=8)
    return claims_module.omissions_figure(table)


def _interfaces() -> Figure:
    return interfaces_figure(
        compare_interfaces(_board()), _board().modes, "Interfaces of the past by mode"
    )


#: Name -> what makes the figure.
GALLERY: dict[str, Callable[[], Figure]] = {
    "claims": _claims,
    "contribution": lambda: contribution_figure([contributions(_board(), "direct")]),
    "counterfactual": lambda: counterfactual_figure(*compare_designs(shipped_designs())),
    "debate": _debate,
    "designs": lambda: designs_figure(recorded("fork.16"), DESIGNS),
    "dots": _dots,
    "interaction": lambda: interaction_figure(interactions(_board(), "direct"), "direct"),
    "lattice": lambda: lattice_figure(_board(), front(_board()), compare_interfaces(_board())),
    "native-one": lambda: native_one_figure(native_one()),
    "panel": _panel,
    "panel-long-mode": lambda: _panel("direct:backend=2.6.27:stores=batched", "linux-2.6.27"),
    "panel-cannot-run": lambda: _panel("direct", "linux-6.1 -alloc_pte"),
    "predictions": lambda: claims_module.predictions_figure(compared(samples=8)),
    "proposals": lambda: proposals_figure(what_if([recorded("filerd.64")], PROPOSALS, samples=8)),
    "reach": lambda: ReachPanel("cc1").figure.figure,
    "reality": lambda: reality_figure(shipped_measurements(largest=16)),
    "refill": _refill,
    "omissions": _omissions,
    "search": _search,
    "sensitivity": _sensitivity,
    "direct_vs_shadow": lambda: direct_vs_shadow_figure(direct_vs_shadow()),
    "interfaces": _interfaces,
    "timeline": _timeline,
    "timeline-panel": lambda: TimelinePanel("mmap", 64).figure.figure,
    "walk": lambda: WalkPanel().figure.figure,
    "ways": _ways,
    "workloads": _workloads,
}
REFERENCES = ROOT / "tests" / "data" / "figures"
#: Dots per inch of the references: enough to see a line or a label move.
DPI = 60


@functools.cache
def drawn(name: str) -> tuple[Figure, tuple[tuple[Text, Bbox], ...]]:
    """Return a figure of the gallery, and the texts that are drawn in it, with their places."""
    figure, texts = GALLERY[name](), dict[int, Text]()
    plain = Text.draw

    def draw(text: Text, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            texts[id(text)] = text
        plain(text, *args, **kwargs)

    with style(), mock.patch.object(Text, "draw", draw):
        figure.canvas.draw()
        return figure, tuple((t, t.get_window_extent()) for t in texts.values())


def write(name: str, folder: Path) -> Path:
    """Write a figure of the gallery as a small picture."""
    path = folder / f"{name}.png"
    with style():
        drawn(name)[0].savefig(path, dpi=DPI, metadata={"Software": None})
    return path


if __name__ == "__main__":  # new references, to be looked at before they are committed
    REFERENCES.mkdir(exist_ok=True)
    for one in sys.argv[1:] or GALLERY:
        print(write(one, REFERENCES))
