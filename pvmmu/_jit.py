"""Compiled kernels, cached on disk under a name that changes with any source of the package.

numba notices a change in the file of a cached function but not in the functions that it calls, and
would go on serving the old result. So the cache directory is named by a fingerprint of all sources
that a kernel can depend on (its room and those below: the import contract in pyproject.toml) and of
the versions of numba and Python; the fingerprint of all sources marks stored results.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import platformdirs
from numba.core import cgutils, config as numba_config, types
from numba.extending import intrinsic

_PACKAGE = Path(__file__).parent

# Arguments of kernels that call kernels. A plain 1 or True is a type of its own to numba, and the
# callee would be compiled anew for each; a numpy scalar is not.
ZERO, ONE = np.int64(0), np.int64(1)
NO, YES = np.bool_(False), np.bool_(True)


# What code of a room can import; elsewhere: everything.
_BASE = ("_jit.py", "errors.py", "paths.py")
_BELOW = {
    "x86": (*_BASE, "x86"),
    "guest": (*_BASE, "x86", "guest"),
    "modes": (*_BASE, "x86", "guest", "hooks", "modes"),
}


# What no kernel depends on.
_NO_KERNELS = (("guest", "workloads"), ("guest", "load_trace.py"))


@functools.cache
def fingerprint(room: str = "") -> str:
    """SHA-256 (hex, 16 digits) of sources and of the versions of numba and Python.

    Parameters
    ----------
    room : str
        ``"x86"``, ``"guest"`` or ``"modes"``: of what code in that room can import; otherwise of
        the whole package.
    """
    h = hashlib.sha256(f"{numba.__version__} {sys.version_info[:3]}".encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE)
        below = name.parts[0] in _BELOW.get(room, ()) and name.parts[:2] not in _NO_KERNELS
        if room not in _BELOW or below:
            h.update(name.as_posix().encode())
            h.update(path.read_bytes())
    return h.hexdigest()[:16]


@functools.cache
def cache_dir(room: str = "") -> Path | None:
    """Directory of compiled kernels of a room, None where no place can be written.

    ``PVMMU_CACHE_DIR`` overrides the place; the fingerprint is appended in any case.
    """
    places = [os.environ.get("PVMMU_CACHE_DIR"), platformdirs.user_cache_dir("pvmmu")]
    places.append(os.path.join(tempfile.gettempdir(), f"pvmmu-{os.getuid()}"))
    for place in filter(None, places):
        path = Path(place) / "kernels" / fingerprint(room)
        with contextlib.suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
            if os.access(path, os.W_OK):
                return path
    return None


@contextlib.contextmanager
def _our_cache(room: str) -> Iterator[bool]:
    """Numba asks for the directory when a function is decorated: it is ours for that moment."""
    before, place = numba_config.CACHE_DIR, cache_dir(room)  # type: ignore[attr-defined]
    numba_config.CACHE_DIR = str(place or "")  # type: ignore[attr-defined]
    try:
        yield place is not None
    finally:
        numba_config.CACHE_DIR = before  # type: ignore[attr-defined]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call: cached on disk, without the GIL."""
    return _compiled(function, no_cfunc_wrapper=True)


def part(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call: it needs no way in from Python."""
    return _compiled(function, no_cfunc_wrapper=True, no_cpython_wrapper=True)


def lean(function: Callable[..., Any]) -> Any:
    """Compile a kernel that allocates nothing.

    numba then counts no references to the arrays it is given: where a bundle of arrays goes through
    many small calls, the counting takes most of the time (14x in direct mode, 10x in the mm model).
    """
    return _compiled(function, no_cfunc_wrapper=True, _nrt=False)


def lean_part(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call and that allocates nothing; see `lean`."""
    return _compiled(function, no_cfunc_wrapper=True, no_cpython_wrapper=True, _nrt=False)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    room = function.__module__.removeprefix("pvmmu.").split(".")[0]
    with _our_cache(room) as cached:
        out = numba.njit(nogil=True, cache=cached, **options)(function)
    if hasattr(out, "_cache"):
        out._cache.save_overload = _if_it_can(out._cache.save_overload)
    return out


def _if_it_can(save: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel work that cannot be kept: on a full disk, or when LLVM hands out no object code
    (numba's "no compiled object yet", seen once in some hours of tests). It is compiled again in
    the next process.
    """

    def keep(*what: Any) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            save(*what)

    return keep


def inner(function: Callable[..., Any]) -> Any:
    """Compile a small function into the kernels that call it."""
    return numba.njit(nogil=True, inline="always")(function)


def swift(function: Callable[..., Any]) -> Any:
    """Compile a small function once; LLVM puts it into the kernels that call it."""
    return numba.njit(nogil=True, forceinline=True)(function)


def record(*fields: tuple[str, str] | tuple[str, str, tuple[int]]) -> np.dtype:
    """Return a type of records, aligned as in C: ``r.name`` in kernels, compiled or not.

    Parameters
    ----------
    fields : tuple
        Name, type, and shape of each; none of the names that arrays have (``size``, ``flags``).
    """
    return np.dtype((np.record, np.dtype(list(fields), align=True)))


@intrinsic
def _as_pointer(typingctx, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


def _in_python(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(int(address))


#: Return an address as a pointer, for `numba.carray`: the memory is somebody else's to keep.
pointer: Any = _in_python if numba_config.DISABLE_JIT else _as_pointer  # type: ignore[attr-defined]
