"""Exactness: the hypervisor's own counts, predicted from the guest's operations."""

from __future__ import annotations

import dataclasses
import json
import lzma

import pandas as pd
import pytest
from conftest import RECORDINGS, recording_paths, short_name

from pvmmu.evidence import truth
from pvmmu.evidence.truth import __main__ as command
from pvmmu.evidence.xentrace_counts import COUNTERS, measure_recording
from pvmmu.guest.trace import Op
from pvmmu.modes.events import Event, column
from pvmmu.paths import data_path

PATHS = recording_paths()


@pytest.mark.parametrize("path", PATHS, ids=short_name)
def test_counts_and_order_equal_what_xen_recorded(path):
    table = truth.compare(path)
    assert list(table["counter"]) == [*(column(e) for e in COUNTERS), "order_of_calls"]
    assert table["verdict"].eq("ok").all(), table.to_string()


def test_the_recordings_exercise_what_is_compared():
    """Else equality would be that of zeros."""
    totals = pd.read_csv(data_path("truth", "xen_pv_counts.csv")).drop(columns="trace").sum()
    zero = {name for name, n in totals.items() if n == 0}
    # the multicalls of these guests never held an mmu_update: they are sent by themselves
    assert zero == {"sub_mmu_update", "sub_mmu_update_requests"}
    assert totals["mmu_update"] > 100_000


@pytest.mark.parametrize("path", PATHS, ids=short_name)
def test_the_shipped_counts_are_those_of_the_recording(path):
    shipped = pd.read_csv(data_path("truth", "xen_pv_counts.csv")).set_index("trace")
    real = measure_recording(path)
    row = shipped.loc[short_name(path)]
    assert {column(e): real.counts[e] for e in COUNTERS} == row.drop("continuations").to_dict()
    assert row["continuations"] == sum(real.continuations.values())


def test_our_count_of_hypervisor_records_is_that_of_the_recorders():
    """The whole programs came with totals, counted by other code."""
    totals = pd.read_csv(RECORDINGS / "totals.csv")
    names = {
        "hypercall:mmu_update": Event.MMU_UPDATE, "mmu_update.requests": Event.MMU_UPDATE_REQUESTS,
        "hypercall:update_va_mapping": Event.UPDATE_VA_MAPPING,
        "hypercall:mmuext_op": Event.MMUEXT_OP, "mmuext_op.requests": Event.MMUEXT_OP_REQUESTS,
        "hypercall:multicall": Event.MULTICALL, "multicall.subcalls": Event.MULTICALL_SUBCALLS,
        "subcall:update_va_mapping": Event.SUB_UPDATE_VA_MAPPING,
        "subcall:mmuext_op": Event.SUB_MMUEXT_OP,
        "subcall.mmuext_op.requests": Event.SUB_MMUEXT_OP_REQUESTS,
    }  # fmt: skip
    compared = 0
    for path in PATHS:
        theirs = totals[
            (totals["recording"] == path.name.removesuffix(".txt.xz")) & (totals["source"] == "X")
        ]
        if theirs.empty:
            continue
        counts, real = theirs.set_index("event")["count"], measure_recording(path)
        for name, event in names.items():
            assert counts.get(name, 0) == real.counts[event], (path.name, name)
            compared += 1
        continued = {
            k.removeprefix("continuation:"): v
            for k, v in counts.items()
            if k.startswith("continuation:")
        }
        assert continued == dict(real.continuations)
    assert compared == 60


#: A rule, broken, and a recording that tells.
BROKEN = {
    "a batch holds 32 requests": ({"rules": {"room": 512}}, "fork.64"),
    "no single-call bypass": ({"rules": {"bypass": 0}}, "mmap.1"),
    "set_pte by address": (
        {"rules": {"update_by_request": 0, "by_address": frozenset({Op.SET_PTE})}}, "mmap.1"
    ),
    "upper stores always by request": ({"rules": {"upper": "request"}}, "fork.1"),
    "upper clears always by request": ({"rules": {"upper": "clear"}}, "fork.1"),
    "requests do not merge": ({"rules": {"extends_updates": 0}}, "fork.64"),
    "walks by calls": ({"rules": {"walks_by_calls": 1}}, "fork.1"),
    "pins do not merge": ({"numbers": {"extends_mmuext": 0}}, "fork.1"),
    "no split page-table locks": ({"numbers": {"split_ptlock": 0}}, "mmap.1"),
    "one root": ({"numbers": {"user_root": 0}}, "fork.1"),
    "the root is walked first": ({"numbers": {"root_first": 1}}, "fork.1"),
    "tables are announced by calls at once": ({"numbers": {"announces_in_bracket": 0}}, "mmap.1"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_needed(rule, monkeypatch):
    """Breaking a rule of the backend breaks the prediction."""
    import pvmmu.modes.direct as direct

    change, name = BROKEN[rule]
    broken = dataclasses.replace(direct.BACKENDS["6.1"], **change.get("rules", {}))
    monkeypatch.setitem(direct.BACKENDS, "6.1", broken)
    original = direct.run_direct

    def run(rows, mechanism, times, in_range, walks, backend, machine):
        backend = backend._replace(**change.get("numbers", {}))
        original(rows, mechanism, times, in_range, walks, backend, machine)

    monkeypatch.setattr(direct, "run_direct", run)
    [path] = (p for p in PATHS if short_name(p) == name)
    assert truth.compare(path)["verdict"].eq("DIFFERS").any()


@pytest.mark.parametrize(
    ("hooks", "name"),
    [
        ("linux-6.1 -lazy_mmu", "fork.16"),
        ("linux-6.1 -ptep_modify_prot", "mprotect.16"),
        ("linux-6.1 -exit_mmap", "fork.1"),
        ("linux-6.1 -dup_mmap", "fork.1"),
        ("linux-6.1 -set_pte", "mmap.1"),
        ("linux-6.1 -context_switch", "fork.1"),
        ("linux-6.1 -flush_tlb_multi", "smpmmap.16"),
        ("linux-6.1 +ptep_get_and_clear", "mmap.16"),
    ],
)
def test_the_wrong_hooks_do_not_fit(hooks, name):
    """The guest had exactly these hooks: with others the prediction fails."""
    [path] = (p for p in PATHS if short_name(p) == name)
    table = truth.compare(path, hooks)
    if hooks.endswith("-context_switch"):  # a CR3 load is one call in either case
        assert table["verdict"].eq("ok").all()
    else:
        assert table["verdict"].eq("DIFFERS").any()


def test_pinning_at_the_first_cr3_load_differs_in_order_only():
    [path] = (p for p in PATHS if short_name(p) == "fork.64")
    table = truth.compare(path, "linux-6.1 -dup_mmap", "direct:without=cr3").set_index("counter")
    assert table.loc["order_of_calls", "verdict"] == "DIFFERS"
    assert table.drop("order_of_calls")["verdict"].eq("ok").all()


# ---------------------------------------------------------------------- the command
def run(capsys, *args):
    status = command.main([str(a) for a in args])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_the_command_agrees(capsys):
    status, out, err = run(capsys, *(p for p in PATHS if short_name(p) in ("fork.1", "mmap.1")))
    assert status == 0
    assert out.rstrip().endswith("30 of 30 agree")
    assert not err


def test_the_command_differs(capsys, tmp_path):
    """One hypercall less in the record: exit status 1, and the counter is named."""
    [path] = (p for p in PATHS if short_name(p) == "mmap.1")
    lines = lzma.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    lines.remove(next(line for line in lines if "HYPERCALL_V2 mmu_update arg1=0x1" in line))
    changed = tmp_path / "mmap.1.txt"
    changed.write_text("".join(lines))
    status, out, _ = run(capsys, changed)
    assert status == 1
    wrong = [line.split()[0] for line in out.splitlines() if "DIFFERS" in line]
    assert wrong == ["mmu_update", "mmu_update_requests", "order_of_calls"]
    assert out.rstrip().endswith("12 of 15 agree")


def test_the_command_writes_json(capsys):
    [path] = (p for p in PATHS if short_name(p) == "fork.1")
    status, out, _ = run(capsys, path, "--json")
    doc = json.loads(out)
    assert status == 0
    assert doc["agree"] == doc["total"] == 15
    assert {c["counter"] for c in doc["files"][0]["counters"]} >= {"mmu_update", "order_of_calls"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["/nonexistent.txt"], "no such file"),
        ([__file__], "not a record"),
        ([str(PATHS[0]), "--hooks", "set_ptr"], "did you mean"),
        ([str(PATHS[0]), "--mode", "dirct"], "did you mean 'direct'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, args, message):
    status, _, err = run(capsys, *args)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_design_that_the_recording_cannot_be_is_an_error(capsys):
    [path] = (p for p in PATHS if short_name(p) == "mmap.1")
    status, _, err = run(capsys, path, "--hooks", "none")
    assert status == 2
    assert "never translated" in err


def test_the_command_says_which_events_a_recording_has_and_lacks(tmp_path, capsys):
    source = RECORDINGS / "xen1-both.mprotect.16.txt.xz"
    path = tmp_path / "run.mprotect.16.txt"
    text = lzma.decompress(source.read_bytes()).decode().splitlines()
    path.write_text("\n".join(x for x in text if "enter_lazy_mmu" not in x) + "\n")
    assert command.main([str(path)]) == 0
    has, lacks = (x for x in capsys.readouterr().out.splitlines() if x.startswith("  events it"))
    assert "xen_mmu_ptep_modify_prot_start" in has
    assert "X PTWR_EMULATION" in has or "fn:change_protection" in has
    assert lacks == "  events it lacks: fn:paravirt_enter_lazy_mmu or fn:xen_enter_lazy_mmu"
