"""Two layers to cycles: instructions times CPI, and what a processor takes beyond them."""

from __future__ import annotations

import pytest

from pvmmu.costs import get_costs
from pvmmu.costs.default import anachronism, default_costs
from pvmmu.costs.processor import get_processor, in_cycles, processor_names
from pvmmu.errors import CostError

XEN = "xen-4.17-instructions"


@pytest.mark.parametrize("name", processor_names())
def test_every_figure_of_a_processor_has_a_source_and_a_range(name: str) -> None:
    cpu = get_processor(name)
    for figure in (cpu.cpi, *cpu.beyond.values()):
        assert figure.range[0] < figure.range[1]
        assert len(figure.source) > 20
    assert set(cpu.beyond) == {"syscall", "exception", "cr3_load", "invlpg", "refill", "exit"}


def test_cycles_are_instructions_times_cpi_and_the_hardware_beyond() -> None:
    xen, cpu = get_costs(XEN), get_processor("skylake-2017")
    table = get_costs(f"{XEN}@skylake-2017")
    assert table.unit == "cycles"
    call = table.events["mmu_update"]
    beyond = cpu.beyond["syscall"]
    assert call.value == xen.events["mmu_update"].value * cpu.cpi.value + beyond.value
    low, high = xen.events["mmu_update"].range
    assert call.range[0] == pytest.approx(low * cpu.cpi.range[0] + beyond.range[0])
    assert call.range[1] == pytest.approx(high * cpu.cpi.range[1] + beyond.range[1])
    assert call.kind == "prior"
    flush = cpu.beyond["invlpg"].value + cpu.beyond["refill"].value
    assert table.events["tlb_flush_one"].value == flush  # no instruction, but time


def test_a_call_is_not_cheaper_than_two_switches_of_rings() -> None:
    """PVM (SOSP 2023): 0.179 us one way, 447 cycles; a Xen call goes both ways."""
    table = get_costs(f"{XEN}@skylake-2017+xpti")
    request = table.events["mmu_update"].value + table.events["mmu_update_requests"].value
    assert request > 2 * 447


def test_xpti_is_two_loads_of_cr3_for_each_entry() -> None:
    plain, hidden = (get_costs(f"{XEN}@skylake-2017{x}") for x in ("", "+xpti"))
    load = get_processor("skylake-2017").beyond["cr3_load"].value
    for name in ("mmu_update", "pte_emulation", "page_fault"):
        assert hidden.events[name].value == plain.events[name].value + 2 * load
    same = "mmu_update_requests"
    assert hidden.events[same].value == plain.events[same].value


def test_an_exit_of_a_virtual_machine_costs_beyond_its_instruction() -> None:
    kvm = get_costs("kvm-6.1-shadow-instructions")
    table = get_costs("kvm-6.1-shadow-instructions@skylake-2017")
    exits = get_processor("skylake-2017").beyond["exit"].value
    assert table.events["invlpg_exit"].value == kvm.events["invlpg_exit"].value + exits
    assert table.events["shadow_made"].value == kvm.events["shadow_made"].value


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(CostError, match="no processor is named 'skylake'; did you mean"):
        get_costs(f"{XEN}@skylake")
    with pytest.raises(CostError, match=r"'pti' is no option \(there is xpti\)"):
        get_costs(f"{XEN}@skylake-2017+pti")
    with pytest.raises(CostError, match="'p4-2006' is in cycles already"):
        in_cycles(get_costs("p4-2006"), "skylake-2017")


@pytest.mark.parametrize(
    ("kernel", "mode", "table"),
    [
        ("6.1.192", "direct", "xen-2026"), ("6.18", "shadow:code=kvm-6.1", "epyc-2020-svm"),
        ("2.6.27", "direct:backend=2.6.27", "core2-2007"), ("2.6.18", "vmi", "p4-2006-bt"),
        ("2.6.32", "nested", "nehalem-2009-vtx"), ("2.6.12", "direct", "p4-2006"),
    ],
)  # fmt: skip
def test_default_prices_are_of_the_kernels_era(kernel: str, mode: str, table: str) -> None:
    assert default_costs(kernel, mode) == table
    assert anachronism(table, kernel) == ""


def test_prices_of_another_era_are_marked() -> None:
    assert anachronism("p4-2006", "6.1") == "anachronism: prices of 2006, a kernel of 2022"
    assert anachronism("xen-2026", "2.6.18") == "anachronism: prices of 2026, a kernel of 2006"
    assert anachronism(XEN, "2.6.18") == ""  # instructions have no year


def test_a_published_exit_is_not_the_whole_system_call() -> None:
    """lkml 2012.2/00527: 1,344 to 1,376 cycles from VMRUN to #VMEXIT; 2,528 is the ioctl."""
    table = get_costs("epyc-2020-svm")
    assert 1344 <= table.events["vmcall"].value <= 1376
    assert table.events["cr4_write_exit"].value == 3957
    assert table.events["cr3_write_exit"].value == 3480
