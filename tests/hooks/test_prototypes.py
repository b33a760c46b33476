"""Every hook of the catalogue has a prototype that fits a mail."""

import re

from pvmmu.hooks import catalogue
from pvmmu.hooks.prototypes import prototypes


def test_every_hook_has_a_prototype_that_fits_a_mail():
    assert set(prototypes()) == set(catalogue())
    for name, p in prototypes().items():
        lines = p.prototype.split("\n")
        assert len(lines) <= 4 and max(map(len, lines)) <= 68, name
        assert p.prototype.isascii() and p.prototype.count("(") == p.prototype.count(")"), name


def test_the_members_are_those_of_the_ops_structure():
    grouped = {"pte_val", "lazy_mmu", "context_switch"}  # several members each
    for name, p in prototypes().items():
        members = re.findall(r"\(\*(\w+)\)\(", p.prototype)
        if name not in grouped:
            assert set(members) & {name, *catalogue()[name].members}, (name, members)


def test_what_no_call_can_carry_is_what_soundness_finds():
    """A read-modify-write that returns the old entry has no call: mmu_update returns none."""
    missing = {name for name, p in prototypes().items() if not p.exists}
    assert missing == {"ptep_get_and_clear", "get_and_clear_ptes", "ptep_test_and_clear_young"}
