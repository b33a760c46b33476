"""Changes of memory that calls of a recording make, on the guest model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pvmmu.guest.linux.faults import VM_SHARED, VM_WRITE
from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.memory import Change

if TYPE_CHECKING:
    from pvmmu.guest.readers.strace.run import Run, Task

_SHARED: Final = frozenset({"MAP_SHARED", "MAP_SHARED_VALIDATE"})
_DROPS: Final = frozenset({"MADV_DONTNEED", "MADV_DONTNEED_LOCKED"})


class Changes:
    """Makes changes of memory for the tasks of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._make = {
            "mmap": self._mmap, "munmap": self._munmap, "mprotect": self._mprotect,
            "madvise": self._madvise, "mremap": self._mremap, "brk": self._brk,
            "mlock": self._mlock, "mlockall": self._mlockall, "munlockall": self._munlockall,
            "shmget": self._nothing, "shmat": self._shmat, "shmdt": self._shmdt,
            "map_shadow_stack": self._shadow_stack,
        }  # fmt: skip

    def make(self, task: Task, index: int, c: Change) -> None:
        """Make the change `c` of the call `index`."""
        self._make[c.kind](task, index, c)

    def _nothing(self, task: Task, index: int, c: Change) -> None:
        task.process.system_calls(1)

    def _mmap(self, task: Task, index: int, c: Change) -> None:
        run, space, shared = self.run, self.run.space(task), bool(c.words & _SHARED)
        file = None
        if (c.fd >= 0 and run.named.get(index) != "/dev/zero") or shared:
            name = run.named.get(index, f"shared memory of line {index}")
            file = self.file(name, max(run.sizes.get(name, 0), c.offset + c.pages))
        populate = (c.populated or space.locked) and c.prot != "-"
        task.process.mmap(
            c.pages, c.result, c.prot, shared=shared, file=file, populate=populate,
            offset=c.offset if file is not None and c.fd >= 0 else 0,
        )  # fmt: skip
        reserve = "MAP_NORESERVE" in c.words
        run.touching.mapped(task, c.result, c.pages, c.prot, not shared, reserve)

    def _shadow_stack(self, task: Task, index: int, c: Change) -> None:
        task.process.mmap(c.pages, c.result, "r")

    def _munmap(self, task: Task, index: int, c: Change) -> None:
        task.process.munmap(c.at, c.pages)

    def _mprotect(self, task: Task, index: int, c: Change) -> None:
        self.cover(task, c.at, c.pages)
        if "w" in c.prot:
            self.run.touching.made_writable(task, c.at, c.at + c.pages * PAGE)
        if c.pages:
            task.process.mprotect(c.at, c.pages, c.prot)
        else:
            task.process.system_calls(1)

    def _madvise(self, task: Task, index: int, c: Change) -> None:
        p, (advice,) = task.process, c.words
        makes = {"MADV_COLD": p.cold, **dict.fromkeys(_DROPS, p.dontneed)}.get(advice)
        if not c.pages or (makes is None and not advice.startswith("MADV_POPULATE")):
            self.run.remarks[f"{advice} without effect"] += 1
            p.system_calls(1)
            return
        self.cover(task, c.at, c.pages)
        if makes is not None:
            makes(c.at, c.pages)
        else:
            self._populate(task, c.at, c.pages)

    def _mremap(self, task: Task, index: int, c: Change) -> None:
        p, run = task.process, self.run
        if not c.pages:  # another view of shared memory
            p.mmap(c.new_pages, c.result, "rw", shared=True,
                   file=self.file(f"shared memory of line {index}", c.new_pages))  # fmt: skip
            return
        self.cover(task, c.at, c.pages)
        if c.result == c.at and c.new_pages > c.pages:  # grows in place: no entry changes
            prot = "rw" if self._flags(task, c.at) & VM_WRITE else "r"
            p.mmap(c.new_pages - c.pages, c.at + c.pages * PAGE, prot)
        else:
            p.mremap(c.at, c.pages, None if c.result == c.at else c.result, c.new_pages)
            if "MREMAP_DONTUNMAP" in c.words:
                p.mmap(c.pages, c.at, "rw")
        if c.new_pages > c.pages:
            grown = c.result + c.pages * PAGE
            flags = self._flags(task, c.result)
            prot = "rw" if flags & VM_WRITE else "r"
            run.touching.mapped(task, grown, c.new_pages - c.pages, prot, not flags & VM_SHARED)

    def _brk(self, task: Task, index: int, c: Change) -> None:
        p, end, space = task.process, -(-c.result // PAGE) * PAGE, self.run.space(task)
        mm = p.mm
        assert mm is not None
        before = space.brk or end
        if end > before:
            mm.layout.brk = before
            p.mmap((end - before) // PAGE, before, "rw", populate=space.locked)
            self.run.touching.mapped(task, before, (end - before) // PAGE, "rw", True)
        elif end < before:
            p.munmap(end, (before - end) // PAGE)
        else:
            p.system_calls(1)
        space.brk = mm.layout.brk = end

    def _mlock(self, task: Task, index: int, c: Change) -> None:
        task.process.system_calls(1)
        at = c.at & -PAGE
        if "MLOCK_ONFAULT" not in c.words and c.pages:
            self._populate(task, at, c.pages)

    def _mlockall(self, task: Task, index: int, c: Change) -> None:
        task.process.system_calls(1)
        self.run.space(task).locked = "MCL_FUTURE" in c.words and "MCL_ONFAULT" not in c.words
        mm = task.process.mm
        if "MCL_CURRENT" in c.words and "MCL_ONFAULT" not in c.words and mm is not None:
            for v in mm.maps.table[:-1].copy():
                start, end = int(v["start"]), int(v["end"])
                self._populate(task, start, (end - start) // PAGE)

    def _munlockall(self, task: Task, index: int, c: Change) -> None:
        self.run.space(task).locked = False
        task.process.system_calls(1)

    def _shmat(self, task: Task, index: int, c: Change) -> None:
        run, name = self.run, f"shared memory {c.fd}"
        pages = run.sizes.get(name)
        if pages is None:
            run.remarks["shmat of memory of unknown size, left out"] += 1
            task.process.system_calls(1)
            return
        prot = "r" if "SHM_RDONLY" in c.words else "rw"
        task.process.mmap(pages, c.result, prot, shared=True, file=self.file(name, pages))
        run.space(task).attached[c.result] = pages
        run.touching.mapped(task, c.result, pages, prot, False)

    def _shmdt(self, task: Task, index: int, c: Change) -> None:
        pages = self.run.space(task).attached.pop(c.at, 0)
        if pages:
            task.process.munmap(c.at, pages)
        else:
            task.process.system_calls(1)

    # ------------------------------------------------------------------ what they need
    def _populate(self, task: Task, at: int, pages: int) -> None:
        """Give what is mapped in a range its pages, as if it were written (populate_vma_range)."""
        mm = task.process.mm
        assert mm is not None
        end = at + pages * PAGE
        for v in mm.maps.table[mm.maps.within(at, end)].copy():
            flags = int(v["vm_flags"])
            start, stop = max(at, int(v["start"])), min(end, int(v["end"]))
            if flags & 7:
                write = bool(flags & VM_WRITE) and not flags & VM_SHARED
                mm.populate(task.process.cpu, start, (stop - start) // PAGE, write)

    def _flags(self, task: Task, at: int) -> int:
        mm = task.process.mm
        assert mm is not None
        found = mm.maps.table[mm.maps.within(at, at + 1)]
        return int(found[0]["vm_flags"]) if len(found) else 0

    def cover(self, task: Task, at: int, pages: int) -> None:
        """Map what a call names and no recorded call has mapped: parts of the executable."""
        mm, page = task.process.mm, at
        assert mm is not None
        end = at + pages * PAGE
        for start, stop in [
            (int(v["start"]), int(v["end"])) for v in mm.maps.table[mm.maps.within(at, end)]
        ] + [(end, end)]:
            if page < start:
                missing = (min(start, end) - page) // PAGE
                self.map_quietly(task, page // PAGE, missing, "rw")
                self.run.touching.mapped(task, page, missing, "rw", True)
                self.run.touching.now(task)
            page = max(page, stop)

    def map_quietly(self, task: Task, page: int, pages: int, prot: str, name: str = "") -> None:
        """Map a part of the executable without a system call."""
        mm = task.process.mm
        assert mm is not None
        file = self.file(name or f"{task.process.name} {page:x}", pages)
        mm.mmap(task.process.cpu, pages, page * PAGE, prot, file=file)
        self.run.remarks["pages of executables mapped by exec, inferred"] += pages

    def file(self, name: str, pages: int) -> File:
        """Return the file of that name, of so many pages when it is first mapped."""
        run = self.run
        if name not in run.files:
            cached = pages <= run.guest.machine.frames // 4
            run.files[name] = run.guest.file(pages, name, cached)
            if not cached:
                run.remarks["files larger than a quarter of memory, not in the page cache"] += 1
        return run.files[name]
