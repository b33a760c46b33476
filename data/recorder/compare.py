#!/usr/bin/env python3
"""Compare recordings of the same workloads: compare.py DIR_A DIR_B

Counts per file: Xen's records by kind, name and size, PTWR by function, and the kernel's by event.
What depends on timer ticks and other tasks (iret, context switches and what belongs to them) is
counted, but compared apart.
"""
import collections, re, sys
from pathlib import Path
from check import read, fields

NOISE = re.compile(r"iret|stack_switch|set_segment_base|vcpu_op|xen_version|sched_switch|context_switch|switch_mm|load_sp0|load_tls|"
                   r"write_cr3|op=3 |tlb_flush reason=0|event_channel|sched_op|mode=2|mc_issue|mc_batch|mc_flush|mc_entry|mc_extend|mc_callback|"
                   r"extend_mmuext_op|xen_[a-z0-9]*_val|continued|MARK|__vunmap|xen_make|HYPERCALL mmuext_op 2$|fn:smp_call|flush_reason")


def count(path):
    c = collections.Counter()
    for _, _, source, _, event, rest in read(path):
        if source == "K":
            c[f"K {event}" + (" " + rest.split()[0] if event in ("tlb_flush",) or event == "xen_mc_entry" else "")] += 1
            continue
        name, _, args = rest.partition(" ")
        if event in ("HYPERCALL_V2", "SUBCALL"):
            size = int(fields(args).get("arg1", "0"), 0) if name in ("mmu_update", "mmuext_op", "multicall") else 0
            kind = "HYPERCALL" if event == "HYPERCALL_V2" else event
            c[f"X continued {name}" if size >> 31 else f"X {kind} {name}" + (f" {size}" if size else "")] += 1
        elif event == "PTWR_EMULATION":
            c[f"X PTWR {fields(rest)['in']}"] += 1
        else:
            c[f"X {event} {fields(rest).get('ec', '')}"] += 1
    return c


def main():
    a, b = map(Path, sys.argv[1:3])
    same = total = 0
    for f in sorted(a.glob("*.gz")):
        g = b / f.name
        if not g.exists():
            continue
        x, y = count(f), count(g)
        diff = {k: (x[k], y[k]) for k in sorted(x.keys() | y.keys()) if x[k] != y[k]}
        real = {k: v for k, v in diff.items() if not NOISE.search(k)}
        noise = {k: v for k, v in diff.items() if NOISE.search(k) and k.startswith("X")}
        keys = [k for k in x.keys() | y.keys() if not NOISE.search(k)]
        total, same = total + len(keys), same + len(keys) - len(real)
        print(f"{f.name}: {len(keys) - len(real)} of {len(keys)} counts equal" + (f"; differ {real}" if real else "")
              + (f"; noise {noise}" if noise else ""))
    print(f"{same} of {total} counts equal")


if __name__ == "__main__":
    main()
