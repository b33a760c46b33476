"""``pvmmu tlb``: what a memory trace misses in the TLBs of processors, and in any other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pvmmu.cli import common
from pvmmu.errors import PvmmuError
from pvmmu.figures.reach import ReachFigure
from pvmmu.figures.style import save_figure
from pvmmu.guest.readers.memory.lines import Layout
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace, memory_trace_names
from pvmmu.guest.readers.memory.read import read_accesses
from pvmmu.guest.readers.sniff import Kind, kind_of, local
from pvmmu.x86.accesses import Pages
from pvmmu.x86.geometry import geometry_names
from pvmmu.x86.reach import MissStream, Reach, first_data_levels
from pvmmu.x86.tlb import Tlb

#: Sets and ways of the first and the second level of the figure.
FIRST, SECOND = (16, 4), (128, 12)
_LAYOUTS = [x.name.lower() for x in Layout]
#: References of a walk: four levels, and four of a guest over four of a hypervisor (SDM vol. 3C
#: §28.3: 5 * 5 - 1).
NATIVE, NESTED = 4, 24


@dataclass
class Misses:
    """What a memory trace misses; made piece by piece.

    Attributes
    ----------
    reach, behind : Reach
        All geometries of a first level; and of a second one behind `FIRST`.
    processors : dict of str to Tlb
        Each processor that ships.
    walks : dict of str to int
        Accesses that no level of a processor had.
    accesses : int
        Data accesses and fetches.
    """

    reach: Reach = field(default_factory=Reach)
    behind: Reach = field(default_factory=lambda: Reach(sizes=False))
    processors: dict[str, Tlb] = field(
        default_factory=lambda: {name: Tlb(name) for name in geometry_names()}
    )
    walks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(geometry_names(), 0))
    accesses: int = 0
    _first: MissStream = field(default_factory=lambda: MissStream(*FIRST))

    def add(self, everything: Pages, data: Pages) -> None:
        """Make the next accesses of `everything`; curves are those of `data`."""
        self.accesses += len(everything)
        for name, tlb in self.processors.items():
            self.walks[name] += tlb.run(everything).walks
        self.reach.add(data)
        self.behind.add(self._first.of(data))


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu tlb") -> int:
    """Run the command."""
    p = argparse.ArgumentParser(
        prog=prog, description="TLB misses of a memory trace: of processors that ship, of every "
        "size, and the page walks. Memory stays bounded however long the trace is.",
    )  # fmt: skip
    p.add_argument("file", metavar="FILE",
                   help=f"memory trace of any known layout, - for standard input, or a name: "
                   f"{', '.join(memory_trace_names())}")  # fmt: skip
    p.add_argument("--layout", choices=_LAYOUTS, help="whose lines they are (default: found out)")
    p.add_argument("--fetches", action="store_true", help="curves with instruction fetches, too")
    p.add_argument("--figure", type=Path, metavar="OUT", help="write OUT.png, OUT.svg and OUT.pdf")
    p.add_argument("--json", action="store_true", help="print one JSON document")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    args = p.parse_args(argv)
    m = Misses()
    for everything, data in _pieces(args):
        m.add(everything, data)
    if not m.reach.accesses:
        raise PvmmuError(f"{args.file}: no data access in it (--fetches counts fetches, too)")
    name = Path(args.file).name
    if args.figure:
        figure = ReachFigure()
        figure.show_trace(m.reach, first_data_levels())
        figure.show_geometry(name, m.reach, m.behind, FIRST, SECOND)
        save_figure(figure.figure, args.figure)
    if args.json:
        common.print_json(_document(name, m) | common.versions())
    else:
        print(_text(name, m))
    return 0


def _pieces(args: argparse.Namespace) -> Iterator[tuple[Pages, Pages]]:
    """Yield the pages of all accesses, and of those that the curves are of."""
    if args.file in memory_trace_names():
        trace = load_memory_trace(args.file)
        yield trace.pages(), trace.pages(fetches=args.fetches)
        return
    path = local(args.file)
    if args.layout is None and path.is_file():
        kind = kind_of(path)
        if kind is not Kind.MEMORY:
            raise PvmmuError(
                f"{path}: {kind.value}, not a memory trace: pvmmu replay {path} reads it"
            )
    for piece in read_accesses(path, args.layout, progress=not args.quiet):
        everything, data = piece.pages(), piece.pages(fetches=args.fetches)
        yield everything, data


def _document(name: str, m: Misses) -> dict[str, Any]:
    per = 1000 / max(m.accesses, 1)
    curve = m.reach.fully_associative()
    return {
        "trace": name, "accesses": m.accesses, "curves_of": m.reach.accesses,
        "pages": m.reach.pages,
        "processors": [
            {"processor": n, "walks": w, "per_1000": w * per, "references": w * NATIVE,
             "nested_references": w * NESTED}
            for n, w in m.walks.items()
        ],
        "first_levels": [
            {"processor": n, "sets": sets, "ways": ways, "misses": m.reach.misses(sets, ways)}
            for n, (sets, ways) in first_data_levels().items()
        ],
        "miss_curve": [
            {"entries": int(n), "misses": int(curve[n])} for n in _sizes(m.reach.pages)
        ],
    }  # fmt: skip


def _sizes(pages: int) -> list[int]:
    """Return the sizes at which a curve is told: powers of two, and as many entries as pages."""
    return [*(1 << i for i in range(pages.bit_length()) if 1 << i < pages), pages]


def _text(name: str, m: Misses) -> str:
    d = _document(name, m)
    first = {x["processor"]: x["misses"] for x in d["first_levels"]}
    rows = [
        [x["processor"], f"{first[x['processor']]:,}" if x["processor"] in first else "-",
         f"{x['walks']:,}", f"{x['per_1000']:.3g}", f"{x['references']:,}",
         f"{x['nested_references']:,}"]
        for x in d["processors"]
    ]  # fmt: skip
    head = ["processor", "1st level misses", "walks", "in 1,000", "references", "nested (at most)"]
    per = 1000 / m.reach.accesses
    curve = [
        [f"{x['entries']:,}", f"{x['misses']:,}", f"{x['misses'] * per:.3g}"]
        for x in d["miss_curve"]
    ]
    where = f"{name}: {m.accesses:,} accesses"
    if m.reach.accesses != m.accesses:
        where += f"; {m.reach.accesses:,} of them to {m.reach.pages:,} pages of data"
    else:
        where += f" to {m.reach.pages:,} pages"
    return "\n".join([
        where, "", _table(rows, head), "",
        "fully associative, of any size (pages of 4 KiB, least recently used goes first)",
        _table(curve, ["entries", "misses", "in 1,000"]),
    ])  # fmt: skip


def _table(rows: list[list[str]], head: list[str]) -> str:
    align = ["left" if head[0] == "processor" else "right", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=align)
