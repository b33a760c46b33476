"""From the slider to the picture, for the panel of every notebook, in JupyterLab in Chromium.

    python benchmarks/panels.py [--moves N] [--out FILE] [NOTEBOOK ...]

Each notebook is run; then its slider is moved by the keyboard, one step at a time, to one end and
back. A move takes from the key to the first frame with another picture; the kernel's share of it
(replay and drawing) is what the panel itself shows. Ten fast moves follow, which must end in the
last state. The notebook of the search has limits, told at the end: they hold on an idle machine.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.harness import Notebook, chromium_page, find_chromium, jupyterlab  # noqa: E402
from browser.moves import PANELS, Driver  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "panels.md"
#: Of the search: medians of the way to the picture and of the kernel's share, in ms.
LIMITS = {"08-search": (150, 60)}


def measured(name: str, address: str, token: str, chromium: str, moves: int) -> dict[str, object]:
    """Return the row of a notebook."""
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, f"{name}.ipynb", 180).run_all(1800)
        page.wait_for_selector(".pvmmu-picture img")
        nb.wait_idle(300)
        panel = Driver(nb, name)
        panel.move()  # the first one may compile
        load = os.getloadavg()[0]
        times, kernel = zip(*(panel.move() for _ in range(moves)), strict=True)
        panel.move_fast()
        assert panel.errors() == [], panel.errors()
    return {
        "notebook": name, "slider": panel.slider,
        "median [ms]": statistics.median(times), "worst [ms]": max(times),
        "kernel, median [ms]": statistics.median(kernel), "kernel, worst [ms]": max(kernel),
        "load": f"{load:.1f} to {os.getloadavg()[0]:.1f}",
    }  # fmt: skip


def verdicts(rows: list[dict[str, object]]) -> list[str]:
    """Return a line for each notebook that has limits."""
    lines = []
    for row in rows:
        if row["notebook"] in LIMITS:
            limits = LIMITS[str(row["notebook"])]
            got = float(str(row["median [ms]"])), float(str(row["kernel, median [ms]"]))
            word = "kept" if all(g < m for g, m in zip(got, limits, strict=True)) else "NOT kept"
            lines.append(
                f"{row['notebook']}: {got[0]:.0f} ms of {limits[0]}, the kernel {got[1]:.0f} of "
                f"{limits[1]}: {word} (load {row['load']})."
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 08-search")
    parser.add_argument("--moves", type=int, default=30, help="of each (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"table (default {RESULTS})")
    args = parser.parse_args()
    unknown = set(args.notebooks) - PANELS.keys()
    chromium = find_chromium()
    if unknown or chromium is None:
        sys.exit(f"no notebook {', '.join(unknown)}" if unknown else "no Chromium was found")
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        shutil.copytree(ROOT / "notebooks", root)  # JupyterLab saves what it serves
        with jupyterlab(root, Path(work) / "state") as (address, token):
            rows: list[dict[str, object]] = []
            for name in args.notebooks or PANELS:
                rows.append(measured(name, address, token, chromium, args.moves))
                args.out.write_text(page_of(rows, args.moves), encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


def page_of(rows: list[dict[str, object]], moves: int) -> str:
    """Return the page of the notebooks that were measured."""
    lines = [
        "# From the slider to the picture",
        "",
        f"`python benchmarks/panels.py` wrote this on {datetime.date.today()}: {moves} moves in "
        f"each notebook, {os.cpu_count()} CPUs; the load is that of the last minute, before and "
        "after the moves, the browser's and JupyterLab's own included.",
        "",
        tabulate(sorted(rows, key=lambda r: str(r["notebook"])), headers="keys",
                 tablefmt="github", floatfmt=".0f"),
        "",
        *verdicts(rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
