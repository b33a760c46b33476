"""Files that appear whole or not at all, and TOML files that are read with one clear error."""

from __future__ import annotations

import contextlib
import os
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pvmmu.errors import PvmmuError

M = TypeVar("M", bound=BaseModel)


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


def read_toml(path: Path, error: type[PvmmuError]) -> dict[str, Any]:
    """Return the table in the file `path`; raise `error`, naming it, if that cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise error(f"{path}: not TOML ({e})") from None


def validated(
    model: type[M], table: dict[str, Any], where: Path | str, error: type[PvmmuError]
) -> M:
    """Return `table` as a `model`; raise `error`, naming `where` and the field, if it is none."""
    try:
        return model.model_validate(table)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"])) or model.__name__.strip("_").lower()
        message = first["msg"].removeprefix("Value error, ")
        raise error(f"{where}: {field}: {message}") from None
