"""Coverage-guided fuzzing of every reader; findings are kept in ``corpus/`` and tested ever after.

    python tests/fuzz/run.py [NAME ...] [--inputs 100000] [--out FILE]

Each reader runs in processes of its own (an input that ends the process is a finding, too), fed by
libFuzzer through atheris, with the package's own Python instrumented. ``make fuzz`` runs all.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
#: No input of this size may need more memory, or more time.
MEMORY_MIB, SECONDS = 3_000, 20
_MOST_BYTES = 4_096  # or as many as the longest seed has
_MOST_FINDINGS = 10
#: Readers that run kernels which need compilation, and what of them is followed.
_COMPILED = {"strace": "pvmmu.guest.strace"}


def fuzz_here(name: str, arguments: list[str]) -> None:
    """Fuzz one reader in this process, until libFuzzer ends it."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent)]
    compiled = os.environ.get("NUMBA_DISABLE_JIT") == "0"
    if compiled:  # what is imported already is not instrumented, and so can be compiled
        import pvmmu.guest.memory_trace
        import pvmmu.guest.workloads
        import pvmmu.replay  # noqa: F401
    with atheris.instrument_imports(include=[_COMPILED[name] if compiled else "pvmmu"]):
        from readers import READERS

        accepts = READERS[name].accepts
    for seed in READERS[name].seeds():
        accepts(seed)  # compiles
    atheris.Setup([sys.argv[0], *arguments], lambda data: accepts(data) and None)
    atheris.Fuzz()


def campaign(name: str, inputs: int) -> dict[str, object]:
    """Fuzz a reader in other processes, past findings, until all inputs are made; return a row."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from readers import CORPUS, READERS

    done, found, start = 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        grown, left = Path(folder) / "corpus", Path(folder) / "left"
        for place in (grown, left):
            place.mkdir()
        kept = sorted((CORPUS / name).glob("*"))
        seeds = [*READERS[name].seeds(), *(p.read_bytes() for p in kept)]
        for i, seed in enumerate(seeds):
            (grown / f"seed-{i}").write_bytes(seed)
        most = max(_MOST_BYTES, *map(len, seeds))
        while done < inputs and len(found) < _MOST_FINDINGS:
            log = _run(name, grown, left, inputs - done, most)
            made = [int(x) for x in re.findall(r"^#(\d+)", log, re.M)]
            done += max(made, default=0) + 1
            for path in left.iterdir():
                if path.name.startswith("slow-unit"):
                    path.unlink()
                    continue
                found.append(_keep(path, CORPUS / name))
                reason = re.findall(r"^(\w*(?:Error|Exception|Warning)\b.*|==.*ERROR.*)", log, re.M)
                print(f"{name}: {found[-1]}: {reason[0] if reason else log[-300:]}", flush=True)
        reached = re.findall(r"cov: (\d+)", log)
    return {
        "reader": name, "inputs": done, "branches reached": int(reached[-1]) if reached else 0,
        "findings": len(found), "seconds": round(time.monotonic() - start),
    }  # fmt: skip


def _run(name: str, grown: Path, left: Path, inputs: int, most: int) -> str:
    command = [
        sys.executable, __file__, "--here", name, f"-runs={inputs}", f"-max_len={most}",
        f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={SECONDS}", "-seed=1",
        f"-artifact_prefix={left}/", str(grown),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False,
        # without compilation kernels are followed, too, and their bounds checked
        env={**os.environ, "NUMBA_DISABLE_JIT": str(int(name not in _COMPILED))},
    )  # fmt: skip
    return done.stdout + done.stderr


def _keep(path: Path, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / path.name
    shutil.move(path, kept)
    return kept.name


def main() -> None:
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from readers import READERS

    rows = []
    for name in args.names or READERS:
        rows.append(campaign(name, args.inputs))
        print(rows[-1], flush=True)
        if not args.names:
            write(args.out, rows)
    raise SystemExit(any(row["findings"] for row in rows))


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(out: Path, rows: list[dict[str, object]]) -> None:
    """Write the page of results."""
    head = list(rows[0])
    lines = [
        "# Fuzzing of every reader\n",
        f"Made by `tests/fuzz/run.py`, {time.strftime('%Y-%m-%d')}: a reader takes an input or "
        "raises an error of ours; anything else is a finding, kept in `corpus/`.\n",
        f"| {' | '.join(head)} |", "|" + "---|" * len(head),
        *(f"| {' | '.join(map(_shown, row.values()))} |" for row in rows),
    ]  # fmt: skip
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
