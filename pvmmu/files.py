"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pvmmu.errors import PvmmuError


@contextlib.contextmanager
def whole_file(path: Path, error: type[PvmmuError] = PvmmuError) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it takes the place of `path` only on success.

    Parameters
    ----------
    path : Path
        The target.
    error : type
        Raised, with the target's name and the reason, if it cannot be written.
    """
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(fd)
        tmp = Path(name)
        try:
            yield tmp
            tmp.chmod(0o644)
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)
    except OSError as e:
        raise unwritable(path, e, error) from None


def unwritable(path: Path, e: OSError, error: type[PvmmuError] = PvmmuError) -> PvmmuError:
    """Return `error` of the target `path`, which cannot be written for the reason of `e`."""
    reason = e.strerror or (os.strerror(e.errno) if e.errno else e)
    return error(f"{path}: cannot be written ({reason})")
