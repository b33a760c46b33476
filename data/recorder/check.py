#!/usr/bin/env python3
"""Consistency of merged recordings: what the kernel said it asked, and what Xen received.

    check.py FILE...        rules of ../README.md, one line per file; exit status 1 if one fails

K, by the kernel's own records            X, by Xen's
  mmu_update requests                       direct mmu_update calls (continuations left out) + sub-calls
  mmuext_op requests                        the same of mmuext_op
  multicalls, sub-calls                     multicalls (continuations left out), sub-calls
  non-empty flushes                         each is followed by its hypercall before the next flush of that CPU
  page_fault_user + page_fault_kernel       PAGE_FAULT
  stack_switch entries (op=3)               stack_switch
"""
import collections, gzip, sys

ENTER = {"fn:paravirt_enter_lazy_mmu", "fn:xen_enter_lazy_mmu"}
LEAVE = {"fn:paravirt_leave_lazy_mmu", "fn:xen_leave_lazy_mmu"}
START = {"fn:paravirt_start_context_switch", "fn:xen_start_context_switch"}
END = {"fn:paravirt_end_context_switch", "fn:xen_end_context_switch"}
CALLS = {"mmu_update", "mmuext_op", "multicall", "update_va_mapping", "stack_switch"}


def read(path):
    with gzip.open(path, "rt") as f:
        for line in f:
            p = line.rstrip("\n").split(" ", 5)
            yield int(p[0]), int(p[1]), p[2], p[3], p[4], p[5] if len(p) > 5 else ""


def fields(rest):
    return dict(x.split("=", 1) for x in rest.split() if "=" in x)


def check(path):
    k, x = collections.Counter(), collections.Counter()
    lazy, expected, left, early, late = set(), {}, collections.Counter(), 0, 0
    cont, ptwr = collections.Counter(), collections.Counter()
    last, pinning = -1, set()
    for tsc, cpu, source, pid, event, rest in read(path):
        assert tsc >= last, f"{path}: out of order"
        last = tsc
        if source == "K":
            k[event] += 1
            if event in ENTER:
                lazy.add(cpu)
            elif event in LEAVE or event in START:
                lazy.discard(cpu)
            elif event == "xen_mmu_set_pte":
                if cpu not in lazy:
                    k["direct set_pte"] += 1
            elif event in ("xen_mmu_alloc_ptpage", "xen_mmu_release_ptpage"):
                f = fields(rest)
                if f["level"] == "4" and f["pinned"] == "1":
                    pinning.add(pid)
            elif event == "xen_mc_issue":
                pinning.discard(pid)
            elif event == "xen_mc_flush":
                n = int(fields(rest)["mcidx"])
                if n:
                    late += cpu in expected  # the flush before had no hypercall
                    expected[cpu] = n
                    k["flush"] += 1
                if n > 1:
                    k["multicall"] += 1
                    k["sub-calls"] += n
            elif event == "xen_mc_entry":
                k["stack_switch"] += rest.startswith("op=3 ")
                # not always: mremap moves a whole table by allocating it again, pinned as it is
                k["pinned pte pages"] += pid in pinning and rest.startswith("op=26 ")
        else:
            name, _, args = rest.partition(" ")
            size = int(fields(args).get("arg1", "0x1"), 0) if name in CALLS else 0
            if event == "PTWR_EMULATION":
                ptwr[fields(rest)["in"]] += 1
            if event not in ("HYPERCALL_V2", "SUBCALL"):
                x[event] += 1
                continue
            if event == "SUBCALL":
                left[cpu] -= 1
                x["sub-calls"] += not size & 1 << 31
            if size & 1 << 31:
                cont[name] += 1
                continue
            if event == "HYPERCALL_V2" and name == "multicall":
                if left[cpu] > 0:
                    cont[name] += 1
                    left[cpu] = size
                    continue
                left[cpu] = size
            if event == "HYPERCALL_V2":
                x[name] += 1
                if name in CALLS and cpu in expected:
                    n = expected.pop(cpu)
                    early += (n > 1) != (name == "multicall") or (n > 1 and n != size)
            x[f"{name} requests"] += size
    rows = {
        "mmu_update requests": (k["direct set_pte"] + k["fn:xen_extend_mmu_update"], x["mmu_update requests"]),
        "mmuext_op requests": (
            k["fn:xen_extend_mmuext_op"] + sum(v for e, v in k.items() if e.startswith("fn:xen_flush_tlb"))
            + k["pinned pte pages"], x["mmuext_op requests"]),
        "multicalls": (k["multicall"], x["multicall"]),
        "sub-calls": (k["sub-calls"], x["sub-calls"]),
        "page faults": (k["page_fault_user"] + k["page_fault_kernel"], x["PAGE_FAULT"]),
        "stack_switch": (k["stack_switch"], x["stack_switch"]),
        "flushes without their call": (late + early, 0),
    }
    bad = {n: v for n, v in rows.items() if v[0] != v[1]}
    totals = (f"mmu_update {x['mmu_update']} ({x['mmu_update requests']} requests), update_va_mapping {x['update_va_mapping']}, "
              f"mmuext_op {x['mmuext_op']}, multicalls {x['multicall']} ({x['sub-calls']} sub-calls), faults {x['PAGE_FAULT']}, "
              f"PTWR {x['PTWR_EMULATION']} {dict(ptwr.most_common())}, continued {dict(cont)}, flushes {k['flush']}")
    return rows, bad, totals


def main():
    good = total = 0
    for path in sys.argv[1:]:
        rows, bad, totals = check(path)
        good, total = good + len(rows) - len(bad), total + len(rows)
        print(f"{path.rsplit('/', 1)[-1]}: {'K/X equal in all ' + str(len(rows)) if not bad else 'DIFFERENT (K, X): ' + str(bad)}; {totals}")
    print(f"{good} of {total} comparisons equal")
    return int(good != total)


if __name__ == "__main__":
    sys.exit(main())
