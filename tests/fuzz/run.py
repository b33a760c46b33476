"""Coverage-guided fuzzing of every reader; findings are kept in ``corpus/`` and tested ever after.

    python tests/fuzz/run.py [NAME ...] [--inputs 100000]
    python tests/fuzz/run.py --page

Each reader runs in processes of its own (an input that ends the process is a finding, too), fed by
libFuzzer through atheris, with the package's own Python instrumented. ``make fuzz`` runs all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
#: The last campaign of each reader, and the page made of them.
KEPT, RESULTS = HERE / "results.json", HERE / "RESULTS.md"
#: No input of this size may need more memory, or more time.
MEMORY_MIB, SECONDS = 3_000, 20
_MOST_BYTES = 4_096  # or as many as the longest seed has
_MOST_FINDINGS = 10
#: Readers that run kernels which need compilation, and what of them is followed.
_COMPILED = {"strace": "pvmmu.guest.readers.strace", "measurements": "pvmmu.evidence.truth"}


def fuzz_here(name: str, arguments: list[str]) -> None:
    """Fuzz one reader in this process, until libFuzzer ends it."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "twins")]
    compiled = os.environ.get("NUMBA_DISABLE_JIT") == "0"
    if compiled:  # what is imported already is not instrumented, and so can be compiled
        import pvmmu.guest.readers.memory.memory_trace
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
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "twins")]
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
        while done < inputs and len(found) == len(set(found)) < _MOST_FINDINGS:
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
        "date": time.strftime("%Y-%m-%d"),
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
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args()
    if args.page:
        page()
        return
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "twins")]
    from readers import READERS

    found = 0
    for name in args.names or READERS:
        row = campaign(name, args.inputs)
        found += int(str(row["findings"]))
        print(row, flush=True)
        keep(row)
    raise SystemExit(found > 0)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def keep(row: dict[str, object]) -> None:
    """Keep the result of a campaign, and write the page of all."""
    rows = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    rows[row["reader"]] = row
    KEPT.write_text(json.dumps(rows, indent=1) + "\n")
    page()


def page() -> None:
    """Write the page: the last campaign of each reader, and what was ever found."""
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "twins")]
    from readers import READERS

    kept = json.loads(KEPT.read_text())
    rows = [kept[name] for name in READERS if name in kept]
    head = list(rows[0])
    lines = [
        "# Fuzzing of every reader\n",
        "Made by `tests/fuzz/run.py` (`make fuzz`): the last campaign of each reader. "
        "A reader takes an input or raises an error of ours; anything else is a finding.\n",
        f"| {' | '.join(head)} |", "|" + "---|" * len(head),
        *(f"| {' | '.join(_shown(r[h]) for h in head)} |" for r in rows),
        "\n## Findings\n",
        "Of all campaigns, of `make strict` and `make soak` and the tests (`findings.toml`). "
        "Inputs are kept in `corpus/`.\n",
        "| finding | by | what it was | what is done | held by |", "|---|---|---|---|---|",
        *(f"| {f['name']} | `{f['by']}` | {f['what']} | {f['now']} | `{held(f)}` |"
          for f in findings()),
    ]  # fmt: skip
    RESULTS.write_text("\n".join(lines) + "\n")


def findings() -> list[dict[str, str]]:
    """Return what was found, as ``findings.toml`` tells it."""
    return list(tomllib.loads((HERE / "findings.toml").read_text())["finding"])


def held(finding: dict[str, str]) -> str:
    """Return the test that holds a finding: its own, or that of the corpus."""
    return finding.get(
        "held", "tests/project/test_fuzz.py::test_what_fuzzing_found_is_taken_or_refused"
    )


if __name__ == "__main__":
    main()
