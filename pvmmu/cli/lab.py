"""``pvmmu lab``: the notebooks in a folder of one's own, and JupyterLab over them."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pvmmu.files import unwritable, whole_file
from pvmmu.paths import notebooks_path


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu lab") -> int:
    """Run the command; JupyterLab takes the place of this process if there is a terminal."""
    p = argparse.ArgumentParser(
        prog=prog, description="Copy the notebooks that ship with pvmmu to a folder and open "
        "JupyterLab there. A notebook that is there already stays as it is.",
    )  # fmt: skip
    p.add_argument("folder", nargs="?", type=Path, default=Path("pvmmu-notebooks"), metavar="DIR",
                   help="folder (default %(default)s)")  # fmt: skip
    p.add_argument("--copy-only", action="store_true", help="do not open JupyterLab")
    p.add_argument("--replace", action="store_true", help="replace notebooks that are there")
    args = p.parse_args(argv)
    for path, what in copy_notebooks(args.folder, replace=args.replace):
        print(f"{path}: {what}")
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", str(args.folder)]
    if os.getuid() == 0:
        command.append("--allow-root")
    if args.copy_only or not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(f"open them with: jupyter lab {args.folder}")
        return 0
    sys.stdout.flush()
    os.execv(sys.executable, command)


def copy_notebooks(folder: Path, *, replace: bool = False) -> list[tuple[Path, str]]:
    """Copy the notebooks that ship with the package.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    replace : bool
        Whether notebooks that are there are replaced.

    Returns
    -------
    list of (Path, str)
        Each notebook and what was done: ``copied``, ``unchanged``, ``replaced``, ``kept (yours
        differs)``.

    Raises
    ------
    PvmmuError
        The folder cannot be written.
    """
    done = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(notebooks_path().glob("*.ipynb")):
            target = folder / source.name
            there = target.exists()
            if there and target.read_bytes() == source.read_bytes():
                done.append((target, "unchanged"))
            elif there and not replace:
                done.append((target, "kept (yours differs)"))
            else:
                with whole_file(target) as tmp:
                    shutil.copyfile(source, tmp)
                done.append((target, "replaced" if there else "copied"))
    except OSError as e:
        raise unwritable(folder, e) from None
    return done
