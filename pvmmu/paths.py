"""Where the package's data are: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path

from pvmmu.errors import PvmmuError

_PACKAGE = Path(__file__).parent


def data_path(*parts: str) -> Path:
    """Return a path within the package's data.

    Raises
    ------
    PvmmuError
        The data are not there (a broken installation).
    """
    for root in (_PACKAGE / "data", _PACKAGE.parent / "data"):
        if root.is_dir():
            return root.joinpath(*parts)
    raise PvmmuError(f"the data of pvmmu are missing ({_PACKAGE / 'data'}): reinstall the package")
