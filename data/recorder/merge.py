#!/usr/bin/env python3
"""Merge ftrace and xentrace data of a recording dom0 into text.

    merge.py DISK.img OUTDIR VCPUS [--only NAME] [--whole]

DISK.img is what `init` wrote: concatenated tar archives, first ``boot`` (event formats, kallsyms),
then one per recording (cpuN.raw = pages of trace_pipe_raw, xen.bin = xentrace's output).  Every
recording becomes OUTDIR/xen<VCPUS>-both.<workload>.<n>.txt.gz:

    tsc cpu K pid event field=value ...       ftrace
    tsc cpu X - KIND name field=value ...     xentrace

ordered by TSC (relative to the first line), from the last P0 mark (BEGIN for cmd_* workloads, and
with --whole) to END.  The marking hypercalls (sched_op with a bogus command) are left out.
Lost events of either side, time going backwards, or missing marks are errors.
"""
import argparse, bisect, gzip, io, re, struct, sys, tarfile
from pathlib import Path

# ---------------------------------------------------------------------- symbols
class Symbols:
    def __init__(self, text):
        table = []
        for line in text.splitlines():
            p = line.split()
            if p[1] not in "aA":
                table.append((int(p[0], 16), p[2]))
        table.sort(key=lambda x: x[0])  # stable: the first name of an address wins, as in the kernel
        self.at, self.names = [], []
        for addr, name in table:
            if not self.at or self.at[-1] != addr:
                self.at.append(addr)
                self.names.append(name)

    def __call__(self, addr):
        i = bisect.bisect_right(self.at, addr) - 1
        return self.names[i] if addr >= 0xFFFF800000000000 and i >= 0 else hex(addr)


# ---------------------------------------------------------------------- ftrace
#: Fields in hexadecimal; all others are decimal (pointers that the kernel declares without value, too).
HEX = frozenset("mm ptep pteval pmdp pmdval pudp pudval p4dp p4dval pgd cr3 addr end address ip error_code data".split())


class Format:
    def __init__(self, text):
        self.name = re.search(r"^name: (\S+)", text, re.M).group(1)
        self.id = int(re.search(r"^ID: (\d+)", text, re.M).group(1))
        self.fields = []
        for m in re.finditer(r"field:(.+?);\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d);", text):
            decl, offset, size, signed = m.group(1), int(m[2]), int(m[3]), m[4] == "1"
            array = re.search(r"\[(\w*)\]$", decl)
            name = re.sub(r"\[\w*\]$", "", decl).split()[-1].lstrip("*")
            if name.startswith("common_"):
                continue
            loc = "__data_loc" in decl
            kind = "loc" if loc else "char" if array and "char" in decl else "array" if array else "int"
            self.fields.append((name, offset, size, signed, kind))

    def text(self, data, sym):
        out = []
        for name, offset, size, signed, kind in self.fields:
            raw = data[offset:offset + size]
            if kind == "loc":
                where = int.from_bytes(raw, "little")
                value = data[where & 0xFFFF:(where & 0xFFFF) + (where >> 16)].split(b"\0")[0].decode()
            elif kind == "char":
                value = raw.split(b"\0")[0].decode()
            elif kind == "array":
                value = [hex(v) for v in struct.unpack(f"<{size // 8}Q", raw)]
            else:
                value = int.from_bytes(raw, "little", signed=signed)
                if name == "fn":
                    value = sym(value)
                elif name in HEX:
                    value = hex(value & (1 << 8 * size) - 1)
            out.append(f"{name}={value}")
        return " ".join(out)


def ring_events(pages, where):
    """Yield (tsc, data) of all events in pages of trace_pipe_raw."""
    for at in range(0, len(pages), 4096):
        page = pages[at:at + 4096]
        tsc, commit = struct.unpack_from("<QQ", page)
        if commit & 3 << 30:
            raise SystemExit(f"{where}: missed events in page {at // 4096}")
        pos, end = 16, 16 + (commit & 0xFFFFF)
        while pos < end:
            head, = struct.unpack_from("<I", page, pos)
            kind, delta = head & 31, head >> 5
            if kind == 29:  # padding
                if delta == 0:
                    break
                pos += 4 + struct.unpack_from("<I", page, pos + 4)[0]
                tsc += delta
            elif kind == 30:  # time extend
                tsc += delta + (struct.unpack_from("<I", page, pos + 4)[0] << 27)
                pos += 8
            elif kind == 31:  # absolute time stamp, 59 bits
                low = delta + (struct.unpack_from("<I", page, pos + 4)[0] << 27)
                tsc = tsc & ~((1 << 59) - 1) | low
                pos += 8
            else:
                tsc += delta
                if kind == 0:
                    size, start = struct.unpack_from("<I", page, pos + 4)[0], pos + 8
                    pos += 4 + size
                    yield tsc, page[start:pos]
                else:
                    start, pos = pos + 4, pos + 4 + kind * 4
                    yield tsc, page[start:pos]


def ftrace_lines(cpu, pages, formats, sym, where):
    last = 0
    for tsc, data in ring_events(pages, where):
        kind, _, _, pid = struct.unpack_from("<HBBi", data)
        if tsc < last:
            raise SystemExit(f"{where}: ftrace goes back in time")
        last = tsc
        f = formats[kind]
        if f.name == "function":
            ip, parent = struct.unpack_from("<QQ", data, 8)
            text = f"fn:{sym(ip)} caller={sym(parent)}"
        elif f.name == "print":
            text = "MARK s=" + data[16:].split(b"\0")[0].decode().strip()
        else:
            text = f"{f.name} {f.text(data, sym)}"
        yield tsc, cpu, f"{cpu} K {pid} {text}"


# ---------------------------------------------------------------------- xentrace
HYPERCALLS = dict(enumerate(
    "set_trap_table mmu_update set_gdt stack_switch set_callbacks fpu_taskswitch sched_op_compat platform_op "
    "set_debugreg get_debugreg update_descriptor ni11 memory_op multicall update_va_mapping set_timer_op "
    "event_channel_op_compat xen_version console_io physdev_op_compat grant_table_op vm_assist "
    "update_va_mapping_otherdomain iret vcpu_op set_segment_base mmuext_op xsm_op nmi_op sched_op callback_op "
    "xenoprof_op event_channel_op physdev_op hvm_op sysctl domctl kexec_op tmem_op argo_op xenpmu_op dm_op "
    "hypfs_op".split()))
PV = {3: "TRAP", 4: "PAGE_FAULT", 5: "FORCED_INVALID_OP", 6: "EMULATE_PRIVOP", 7: "EMULATE_4GB",
      8: "MATH_STATE_RESTORE", 9: "PAGING_FIXUP", 10: "GDT_LDT_MAPPING_FAULT", 11: "PTWR_EMULATION",
      12: "PTWR_EMULATION", 13: "HYPERCALL_V2", 14: "SUBCALL"}
CPU_CHANGE, LOST, WRAP = 0x1F003, 0x1F001, 0x1F002


def xen_lines(data, sym, where):
    pos, cpu, tsc, last = 0, 0, 0, {}
    while pos < len(data):
        head, = struct.unpack_from("<I", data, pos)
        pos += 4
        event, n, timed = head & 0xFFFFFFF, head >> 28 & 7, head >> 31
        if timed:
            tsc, = struct.unpack_from("<Q", data, pos)
            pos += 8
        extra = struct.unpack_from(f"<{n}I", data, pos)
        pos += 4 * n
        if event == CPU_CHANGE:
            cpu = extra[0]
            continue
        if event == WRAP:
            continue
        if event == LOST:
            raise SystemExit(f"{where}: xentrace lost records")
        if event >> 12 not in (0x201, 0x202):
            raise SystemExit(f"{where}: unexpected xentrace event {event:#x}")
        if timed:
            if tsc < last.get(cpu, 0):
                raise SystemExit(f"{where}: xentrace goes back in time")
            last[cpu] = tsc
        kind, wide = PV[event & 0xFF], event & 0x100
        if kind in ("HYPERCALL_V2", "SUBCALL"):
            op, args, k = extra[0], [], 1
            for i in range(6):
                width = op >> (20 + 2 * i) & 3
                if width:
                    value = extra[k] | (extra[k + 1] << 32 if width == 2 else 0)
                    k += width
                    args.append((i, value))
            name = HYPERCALLS.get(op & 0xFFFFF, str(op & 0xFFFFF))
            if name == "sched_op" and args and 0x7000 <= args[0][1] <= 0x7101:
                yield tsc, cpu, None, args[0][1]
                continue
            text = f"{kind} {name} " + " ".join(f"arg{i}={v:#x}" for i, v in args)
        elif kind == "PAGE_FAULT":
            rip, addr, ec = struct.unpack("<QQI" if wide else "<III", struct.pack(f"<{n}I", *extra))
            text = f"{kind} pf rip={rip:#x} addr={addr:#x} ec={ec:#x} in={sym(rip)}"
        elif kind == "PTWR_EMULATION":
            pte, addr, rip = struct.unpack("<QQQ", struct.pack(f"<{n}I", *extra))
            text = f"{kind} ptwr pte={pte:#x} addr={addr:#x} rip={rip:#x} in={sym(rip)}"
        else:
            text = f"{kind} - " + " ".join(f"d{i}={v:#x}" for i, v in enumerate(extra))
        yield tsc, cpu, f"{cpu} X - {text}", None


# ---------------------------------------------------------------------- recordings
def archives(path):
    """Return {directory: {file: bytes}} of concatenated tar archives."""
    out = {}
    with tarfile.open(path, "r:", ignore_zeros=True) as tar:
        for m in tar:
            if m.isfile():
                d, _, f = m.name.removeprefix("./").partition("/")
                out.setdefault(d, {})[f] = tar.extractfile(m).read()
            elif not m.isdir():
                break
    return out


def formats_of(text):
    found = [Format(t) for t in re.split(r"^== .*\n", text, flags=re.M) if "name:" in t]
    return {f.id: f for f in found}


def stats(text):
    return {k.strip(): v.strip() for k, v in (x.split(":", 1) for x in text.splitlines() if ":" in x)}


def merge(name, files, formats, sym, whole):
    ncpu = sum(f.startswith("stats") for f in files)
    k, entries = [], 0
    for cpu in range(ncpu):
        s = stats(files[f"stats{cpu}"].decode())
        lost = {x: s[x] for x in ("overrun", "commit overrun", "dropped events") if s[x] != "0"}
        if lost:
            raise SystemExit(f"{name}: ftrace lost events on CPU {cpu}: {lost}")
        mine = list(ftrace_lines(cpu, files[f"cpu{cpu}.raw"], formats, sym, f"{name} cpu{cpu}"))
        if len(mine) != int(s["entries"]):
            raise SystemExit(f"{name}: {len(mine)} ftrace events, the buffer held {s['entries']}")
        entries += len(mine)
        k += mine
    x = list(xen_lines(files["xen.bin"], sym, name))
    marks = [a for *_, a in x if a is not None]
    if marks.count(0x7100) != 1 or marks.count(0x7101) != 1:
        raise SystemExit(f"{name}: xentrace has marks {marks}")
    k.sort(key=lambda e: e[0])
    at = {}
    for tsc, _, text in k:
        if " MARK s=" in text:
            at[text.rsplit("=", 1)[1]] = tsc  # the last of each
    first = at["BEGIN"] if whole or name.startswith("cmd") else at["P0"]
    lines = [e for e in k if first <= e[0] <= at["END"]]
    lines += [e[:3] for e in x if e[2] is not None and first <= e[0] <= at["END"]]
    lines.sort(key=lambda e: e[0])
    return [f"{tsc - first} {text}\n" for tsc, _, text in lines], entries, len(x)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("disk", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("vcpus", type=int)
    p.add_argument("--only")
    p.add_argument("--whole", action="store_true")
    a = p.parse_args()
    dirs = archives(a.disk)
    boot = dirs.pop("boot")
    sym, formats = Symbols(boot["kallsyms"].decode()), formats_of(boot["formats"].decode())
    a.out.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, files in dirs.items():
        if a.only and a.only != name:
            continue
        out = files["out"].decode(errors="replace")
        if "\nstatus 0" not in "\n" + out or "RESULT" not in out or "cmd status" in out:
            print(f"{name}: FAILED: {out!r}")
            status = 1
            continue
        try:
            lines, nk, nx = merge(name, files, formats, sym, a.whole)
        except SystemExit as e:
            print("ERROR", e)
            status = 1
            continue
        path = a.out / f"xen{a.vcpus}-both.{name}.txt.gz"
        with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as f:
            f.write("".join(lines).encode())
        print(f"{path.name}: {len(lines)} lines (whole run: {nk} K, {nx} X; none lost)", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
