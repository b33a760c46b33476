"""Members of the ops structure since 2.6.20: when each came and went, and who filled it in.

Hooks are levers: what a replay can switch. Members are what a kernel's source says; several of them
may be one hook under other names, and a few carry nothing that a trace holds
(``data/hooks/README.md``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pandas as pd

from pvmmu.paths import data_path


@dataclass(frozen=True)
class Member:
    """A member of the ops structure of some releases.

    Parameters
    ----------
    member : str
        Its name in the source.
    hooks : tuple of str
        Hooks of the catalogue that it is; empty: no recorded operation goes through it.
    merged, removed : str
        First release that has it (``never``), first that no longer has (empty: today's has).
    by, removed_by : str
        Commit, or message with the patch; empty where none was read.
    implementers : tuple of str
        Who did something in it.
    remark : str
        For readers.
    """

    member: str
    hooks: tuple[str, ...]
    merged: str
    by: str
    removed: str
    removed_by: str
    implementers: tuple[str, ...]
    remark: str

    @property
    def life(self) -> str:
        """Its releases in words."""
        if self.merged == "never":
            return "in no release"
        return f"Linux {self.merged} to {self.removed or 'today'}"


@functools.cache
def members() -> dict[str, Member]:
    """Return every member by name, as ``data/hooks/members.csv`` lists them."""
    table = pd.read_csv(data_path("hooks", "members.csv"), dtype=str).fillna("")
    return {
        row["member"]: Member(
            row["member"], tuple(row["hook"].split()), row["merged"], row["by"], row["removed"],
            row["removed_by"], tuple(row["implementers"].split()), row["remark"],
        )
        for _, row in table.iterrows()
    }  # fmt: skip


def member_table() -> pd.DataFrame:
    """Return the members as a table, by name, in the order of the file.

    Returns
    -------
    DataFrame
        Texts: ``hooks``, ``merged``, ``removed``, ``by``, ``removed_by``, ``implementers``,
        ``remark``.
    """
    rows = [
        {
            "member": m.member, "hooks": ", ".join(m.hooks), "merged": m.merged,
            "removed": m.removed, "by": m.by, "removed_by": m.removed_by,
            "implementers": ", ".join(m.implementers), "remark": m.remark,
        }
        for m in members().values()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("member")
