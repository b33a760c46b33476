"""KVM's published fork, exec and sh against measured prices."""

from __future__ import annotations

from pvmmu.evidence.kvm_published import FACTOR, published_kvm


def test_shadow_over_nested_is_within_a_factor() -> None:
    table = published_kvm()
    assert list(table.index) == ["fork", "exec", "sh"]
    assert (table["factor"] < FACTOR).all()
    assert (table["factor"] > 1 / FACTOR).all()
    assert (table["low"] <= table["predicted"]).all()
    assert (table["predicted"] <= table["high"]).all()
    # the order of the three, too
    assert table["predicted"].is_monotonic_decreasing
