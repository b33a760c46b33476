#!/usr/bin/env python3
"""Make the initramfs of the recording dom0.

    mkinitramfs.py --kernel DIR --runs FILE --out FILE [--ring-kb N] [--xen-pages N] [--add HOSTPATH=PATH]

--kernel is an unpacked Debian linux-image package. Only Python's standard library is used: the
archive is written in "newc" format, the modules' dependencies are read from their .modinfo.
"""
import argparse, gzip, lzma, os, re, stat, subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODULES = ["xen-privcmd", "xen-evtchn", "virtio_pci", "virtio_blk"]


class Cpio:
    def __init__(self):
        self.out, self.seen, self.ino = bytearray(), set(), 1

    def _entry(self, name, mode, data=b"", rdev=(0, 0)):
        head = "070701" + "".join(
            f"{v:08X}" for v in (self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name) + 1, 0))
        self.ino += 1
        self.out += head.encode() + name.encode() + b"\0"
        self.out += b"\0" * (-len(self.out) % 4) + data
        self.out += b"\0" * (-len(self.out) % 4)

    def dirs(self, path):
        for parent in reversed(Path(path).parents):
            p = str(parent).strip("./")
            if p and p not in self.seen:
                self.seen.add(p)
                self._entry(p, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o755):
        path = path.strip("/")
        if path in self.seen:
            return
        self.dirs(path)
        self.seen.add(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        path = path.strip("/")
        self.dirs(path)
        self.seen.add(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path, major, minor):
        self.dirs(path)
        self._entry(path, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def done(self):
        self._entry("TRAILER!!!", 0)
        return bytes(self.out)


def module(tree, name):
    """Return the ELF of a module, or None if it is built in."""
    for f in tree.rglob("*.ko*"):
        if f.name.split(".ko")[0].replace("-", "_") == name.replace("-", "_"):
            data = f.read_bytes()
            return lzma.decompress(data) if f.name.endswith(".xz") else data
    return None


def with_dependencies(tree, names):
    done = {}
    def visit(name):
        if name in done:
            return
        data = module(tree, name)
        if data is None:
            print("built in or absent:", name)
            return
        found = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (found.group(1).decode().split(",") if found else []):
            if other:
                visit(other)
        done[name] = data
    for name in names:
        visit(name)
    return done


def libraries(binary, env=None):
    """Yield the shared libraries that a dynamic program needs, by ldd."""
    text = subprocess.run(["ldd", binary], capture_output=True, text=True, env=env).stdout
    for path in re.findall(r"(/\S+)", text):
        if not path.endswith(":"):
            yield path


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--kernel", type=Path, required=True)
    p.add_argument("--runs", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--ring-kb", type=int, default=262144)
    p.add_argument("--xen-pages", type=int, default=16384)
    p.add_argument("--add", action="append", default=[], metavar="HOSTPATH=PATH")
    p.add_argument("--host-program", action="append", default=[], help="dynamic program of this machine")
    a = p.parse_args()
    c, guest = Cpio(), ROOT / "guestroot"
    for d in ("proc", "sys", "dev", "tmp", "bin", "t", "lib", "usr/bin"):
        c.dirs(d + "/x")
    c.node("dev/console", 5, 1)
    c.file("init", (HERE / "init").read_bytes())
    c.file("t/record.sh", (HERE / "record.sh").read_bytes())
    c.file("bin/busybox", (guest / "bin/busybox").read_bytes())
    for name in ("wl", "true_s", *(x.stem for x in (ROOT / "tools/apps").glob("*.c"))):
        c.file(f"t/{name}", (ROOT / "build" / name).read_bytes())
    for f in (ROOT / "tools/apps").iterdir():
        if f.suffix != ".c":
            c.file(f"t/{f.name}", f.read_bytes())
    names = [x for f in ("functions", "functions.extra") for x in (HERE / f).read_text().split()]
    c.file("t/functions", "\n".join(names).encode())
    c.file("t/runs", a.runs.read_bytes())
    c.file("t/ring_kb", str(a.ring_kb).encode())
    c.file("t/xen_pages", str(a.xen_pages).encode())
    # xentrace and its libraries
    lib = guest / "usr/lib/x86_64-linux-gnu"
    xentrace = guest / "usr/lib/xen-4.17/bin/xentrace"
    c.file("bin/xentrace", xentrace.read_bytes())
    env = {**os.environ, "LD_LIBRARY_PATH": str(lib)}
    needed = [xentrace, *map(Path, a.host_program)]
    for program in needed:
        if program != xentrace:
            c.file(str(program), program.read_bytes())
        for so in libraries(str(program), env):
            inside = so if so.startswith("/lib64/") else f"/usr/lib/x86_64-linux-gnu/{Path(so).name}"
            c.file(inside, Path(so).resolve().read_bytes())
    c.link("lib/x86_64-linux-gnu", "../usr/lib/x86_64-linux-gnu")
    for item in a.add:
        src, dst = item.split("=")
        if Path(src).is_dir():
            for f in sorted(Path(src).rglob("*")):
                if f.is_file():
                    c.file(f"{dst}/{f.relative_to(src)}", f.read_bytes())
        else:
            c.file(dst, Path(src).read_bytes())
    tree = next((a.kernel / "lib/modules").iterdir())
    mods = with_dependencies(tree, MODULES)
    for name, data in mods.items():
        c.file(f"lib/m/{name}.ko", data)
    c.file("lib/modules.load", "".join(f"/lib/m/{m}.ko\n" for m in mods).encode())
    with gzip.open(a.out, "wb", 1) as f:
        f.write(c.done())


if __name__ == "__main__":
    main()
