"""A new user's first minutes: clone, ``make lab`` with an empty home, the first moved slider.

    python3 benchmarks/first_minutes.py [--out FILE]

Needs what a user needs (git, python3 with pip, make), a Chromium, and ``script`` for a terminal.
The clone is made of the last commit of this checkout, its environment anew; downloads of packages
go through pip as it is configured. The home holds one setting of JupyterLab, by which this script
can reach into the page. What was in the way at earlier trials is listed with its cure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "first-minutes.md"
#: What a new user stumbled over -> what was done about it.
STUMBLES = (
    ("`make lab` ran all ten notebooks before JupyterLab opened: many minutes without a slider",
     "JupyterLab opens first, at the front door; the notebooks run beside it"),
    ("JupyterLab opened at a list of files", "it opens `00-start-here.ipynb`"),
    ("the front door's panel had hooks and lists, but no slider; nothing of another kernel",
     "a kernel's model can be chosen, with workload and size"),
    ("a long mode's name was cut off beside its bar", "it is broken into lines, held by a test"),
    ("from another kernel one came back to the workload `null`, whatever was shown before",
     "workload and size are kept"),
    ("a model of a kernel is compiled at its first use: a minute without a word",
     "the panel says so"),
    ("beside an open list of files the front door's picture was cut off on the right",
     "it gets as narrow as the page, held by a test"),
)  # fmt: skip
# Runs in the clone's own environment: opens the notebook, runs it, moves a slider.
_BROWSER = """
import json, sys, time
sys.path.insert(0, "tests")
from browser.harness import Notebook, chromium_page, find_chromium
from browser.moves import Driver
address, token = sys.argv[1:]
marks = {}
with chromium_page(find_chromium()) as page:
    nb = Notebook(page).open(address, token, "00-start-here.ipynb", 180)
    marks["the front door is open"] = time.time()
    nb.run_all(900)
    page.wait_for_selector(".pvmmu-picture img")
    marks["its cells have run (kernels compiled: the cache was empty)"] = time.time()
    panel = Driver(nb, "00-start-here")
    took, _ = panel.move()
    marks["a slider was moved, and the picture followed"] = time.time()
    assert panel.errors() == []
print(json.dumps([marks, took]))
"""


def clean_environment(home: Path) -> dict[str, str]:
    """Return this environment without what belongs to a user or to another Python."""
    kept = {
        k: v for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "XDG_", "VIRTUAL_ENV", "PVMMU", "JUPYTER", "IPYTHON", "CI"))
    }  # fmt: skip
    venv = os.environ.get("VIRTUAL_ENV")
    path = [p for p in kept["PATH"].split(os.pathsep) if ".venv" not in p and p != f"{venv}/bin"]
    return kept | {"HOME": str(home), "PATH": os.pathsep.join(path), "BROWSER": "true"}


def trial(work: Path) -> tuple[list[tuple[str, float]], float]:
    """Return what happened when (seconds from the start), and how long the move took in ms."""
    home, clone, log = work / "home", work / "pvmmu", work / "lab.log"
    settings = home / ".jupyter" / "jupyter_lab_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"LabApp": {"expose_app_in_browser": true}}')  # for this script's page
    env, start = clean_environment(home), time.time()
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True, env=env)
    marks = [("cloned", time.time() - start)]
    command = ["script", "-qfec", "make lab", str(log)]
    lab = subprocess.Popen(command, cwd=clone, env=env, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        steps = {r"\[2/3\]": "an environment was made", r"\[3/3\]": "packages were installed"}
        address = None
        while address is None:
            time.sleep(0.2)
            text = log.read_text(errors="replace") if log.exists() else ""
            for pattern in [p for p in steps if re.search(p, text)]:
                marks.append((steps.pop(pattern), time.time() - start))
            address = re.search(r"(http://127\.0\.0\.1:\d+/)lab\S*[?&]token=(\w+)", text)
            if lab.poll() is not None:
                sys.exit(f"make lab ended:\n{text[-3000:]}")
        marks.append(("JupyterLab runs", time.time() - start))
        done = subprocess.run(
            [clone / ".venv/bin/python", "-c", _BROWSER, *address.groups()],
            cwd=clone, env=env, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"in the browser:\n{done.stderr[-3000:]}")
        seen, took = json.loads(done.stdout.splitlines()[-1])
        return [*marks, *((what, at - start) for what, at in seen.items())], took
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"table (default {RESULTS})")
    args = parser.parse_args()
    missing = [x for x in ("git", "make", "script", "python3") if shutil.which(x) is None]
    if missing:
        sys.exit(f"first_minutes needs {', '.join(missing)}")
    before, work = os.getloadavg()[0], Path(tempfile.mkdtemp(prefix="first-minutes."))
    try:
        marks, took = trial(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    load = ", ".join(f"{x:.1f}" for x in (before, *os.getloadavg()[:2]))
    lines = [
        "# The first minutes of a new user",
        "",
        f"`python3 benchmarks/first_minutes.py` wrote this on {datetime.date.today()}; "
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}; load before, and over the "
        f"last one and five minutes: {load}.",
        "",
        "| after [s] | what |",
        "|---:|:---|",
        *(f"| {at:.0f} | {what} |" for what, at in marks),
        "",
        f"That move took {took:.0f} ms, while the other notebooks were run beside it.",
        "",
        "## What was in the way",
        "",
        "| stumble | mended |",
        "|:---|:---|",
        *(f"| {what} | {cure} |" for what, cure in STUMBLES),
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
