"""``pvmmu costs``: prices fitted to measurements."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pvmmu.costs import CostTable, cost_names, get_costs
from pvmmu.costs.files import write_costs
from pvmmu.costs.fit import left_out
from pvmmu.evidence.truth.instructions import PROGRAM
from pvmmu.evidence.truth.prices import DIRECT_NAME, fit_folder


def standing(table: CostTable) -> str:
    """Say whether a table was measured; of priors, by what factor they miss the measured one.

    What is compared needs no clock: an emulated store to a page table in direct mode, in requests
    that have a call each.
    """
    if table.unit == "instructions":
        return "measured, in instructions"
    if "Xen PV" not in f"{table.title} {table.hypervisor}":
        return "priors"  # of other modes
    ratios = []
    for one in (table, get_costs(DIRECT_NAME)):
        price = one.parts({k: 1.0 for k in ("pte_emulation", "mmu_update", "mmu_update_requests")})
        ratios.append(price["pte_emulation"] / price.iloc[1:].sum())
    return f"priors, emulation x {ratios[0] / ratios[1]:.1f}"


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu costs") -> int:
    """Run the command; return its exit status (0 done; wrong input raises)."""
    p = argparse.ArgumentParser(
        prog=prog, description="List cost tables, or fit one to measured instructions."
    )
    what = p.add_subparsers(dest="what", required=True, metavar="list|fit")
    what.add_parser("list", help="names, kinds and titles of the tables that ship")
    fit = what.add_parser("fit", help="prices from counts and instructions (least squares)")
    fit.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER",
        help="measured design space (data/truth/designs) or KVM (data/truth/kvm_instructions)",
    )  # fmt: skip
    fit.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the tables there")
    args = p.parse_args(argv)
    if args.what == "list":
        for shipped in map(get_costs, cost_names()):
            print(f"{shipped.name:<28} {standing(shipped):<29} {shipped.title}")
        return 0
    for folder in args.folders:
        for name, table in fit_folder(folder).items():
            print(f"{name}  ({folder}: {len(table.counts)} rows)")
            print(table.fitted.frame().round(1).to_string())
            off = left_out(table.counts, table.added, table.fitted).abs()
            whole = off.index.get_level_values(0).str.startswith(PROGRAM)
            for kind, errors in (("programs", off[whole]), ("micro workloads", off[~whole])):
                if len(errors):
                    print(
                        f"{kind}, each priced without itself: median {errors.median():.1%}, "
                        f"95 % within {errors.quantile(0.95):.1%}"
                    )
            for a, b in table.fitted.tied:
                print(f"read as a sum: {a} and {b}")
            if args.output:
                path = args.output / f"{name}.toml"
                write_costs(table.document, path)
                print(f"written: {path}")
            print()
    return 0
