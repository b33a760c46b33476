"""Sweeps: every hook set accounted for, statuses, interruption, provenance."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import recorded

from pvmmu.errors import PvmmuError
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import Direct, get_mode
from pvmmu.modes.classes import subsets
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space
from pvmmu.replay import replay
from pvmmu.search import sweep as module
from pvmmu.search.store import jobs_of
from pvmmu.search.sweep import sweep

NAMES = list(catalogue())
MODES = [
    "direct", "direct:backend=2.6.27", "direct:stores=batched", "direct:stores=refuse",
    "direct:without=cr3", "direct:backend=2005", "direct:backend=2007", "direct:backend=2.6.23",
    "vmi", "native",
]  # fmt: skip


def outcome(mode, trace, hooks):
    result = mode.run(trace, hooks)
    return "infeasible" if isinstance(result, Infeasible) else tuple(result.low)


@pytest.mark.parametrize("spec", MODES)
@pytest.mark.parametrize("name", ["fork.1", "mprotect.16", "forkexec.0", "smpmmap.16", "filerd.16"])
def test_classes_are_exact(spec, name):
    """Every set of a random space, one by one, against its class: the same outcomes as often."""
    trace, mode = recorded(name), get_mode(spec)
    r = random.Random(f"{spec} {name}")
    for _ in range(3):
        free = HookSet.of(*r.sample(NAMES, 6))
        always = HookSet.of("pte_val", *(n for n in NAMES if r.random() < 0.9)) - free
        space = Space(free, always)
        one_by_one = Counter(outcome(mode, trace, s | always) for s in subsets(free.names))
        by_class: Counter = Counter()
        for c in mode.classes(trace, space):
            found = outcome(mode, trace, c.hooks)
            assert (found == "infeasible") == bool(c.infeasible), c
            by_class[found] += c.size
        assert by_class == one_by_one


@pytest.mark.parametrize("spec", MODES)
@pytest.mark.parametrize("name", ["fork.16", "make", "redis", "smpmmap.64", "getppid.10"])
def test_all_hook_sets_are_accounted_for(spec, name):
    sizes = [c.size for c in get_mode(spec).classes(recorded(name), Space.all())]
    assert sum(sizes) == 2 ** len(NAMES)


def test_a_sweep_is_a_tidy_table():
    t = recorded("fork.16")
    space = Space(HookSet.of("lazy_mmu", "set_ptes", "exit_mmap"), HookSet.parse("linux-6.1"))
    space = Space(space.free, space.always - space.free)
    d = sweep([t], space, ["direct", "native"], ["p4-2006", "xen-2026"], progress=False)
    assert d.groupby(["mode", "costs"])["hook_sets"].sum().eq(8).all()
    assert d["status"].eq("ok").all()
    for row in d.itertuples():
        counts = replay(t, row.hooks, row.mode)
        assert counts.entries == row.entries
        assert counts.cycles(row.costs) == pytest.approx(row.cycles)
        assert row.cycles_low <= row.cycles <= row.cycles_high
        assert HookSet.parse(row.hooks).mask == row.mask
    assert d.attrs["traces"] == {"fork.16": t.fingerprint}
    assert d.attrs["complete"]


def test_attrs_survive_parquet(tmp_path):
    d = sweep(["fork.1"], ["linux-6.1"], ["direct"], ["p4-2006"], progress=False)
    d.to_parquet(tmp_path / "s.parquet")
    assert pd.read_parquet(tmp_path / "s.parquet").attrs == d.attrs


def test_infeasible_designs_are_rows():
    d = sweep(["mmap.1"], ["linux-6.1", "linux-6.1 -alloc_pte"], ["direct"], ["p4-2006"],
              progress=False)  # fmt: skip
    assert list(d["status"]) == [
        "ok",
        "infeasible: a new PTE table is never announced (alloc_pte)",
    ]
    assert np.isnan(d["cycles"].iloc[1])
    assert d["cycles"].iloc[0] > 0


def test_a_design_that_fails_is_a_row(monkeypatch):
    original = Direct.run

    def run(self, trace, hooks, log=False):
        if "lazy_mmu" in hooks:
            raise PvmmuError("out of luck")
        return original(self, trace, hooks, log)

    monkeypatch.setattr(Direct, "run", run)
    d = sweep(["fork.1"], ["linux-6.1", "linux-6.1 -lazy_mmu"], ["direct"], progress=False)
    assert list(d["status"]) == ["error: out of luck", "ok"]


@pytest.mark.parametrize("stored", [False, True])
def test_ctrl_c_keeps_what_is_done(monkeypatch, tmp_path, stored):
    name, calls = ("write_job", []) if stored else ("count_shard", [])
    original = getattr(module, name)

    def some(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, name, some)
    monkeypatch.setattr(module, "jobs_of", partial(jobs_of, size=1))
    store = tmp_path / "s" if stored else None
    with ThreadPoolExecutor(1) as pool:
        d = sweep(["fork.16"], "all", ["direct"], executor=pool, progress=False, store=store)
    assert d.attrs["complete"] is False
    assert 0 < len(d) < 3000
    assert d["status"].notna().all()
    monkeypatch.undo()
    whole = sweep(["fork.16"], "all", ["direct"], progress=False)
    pd.testing.assert_frame_equal(d[["mask", "entries"]], whole.iloc[: len(d)][["mask", "entries"]])


def test_an_executor_of_ones_own_gives_the_same_rows():
    with ThreadPoolExecutor(2) as pool:
        a = sweep(["fork.1"], "all", ["vmi"], ["p4-2006"], executor=pool, progress=False)
    b = sweep(["fork.1"], "all", ["vmi"], ["p4-2006"], progress=False)
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((["fork.11"], "all", ["direct"]), "no trace named 'fork.11'"),
        ((["fork.1"], ["set_ptr"], ["direct"]), "did you mean 'set_pte'"),
        ((["fork.1"], "all", ["shadw"]), "no mode is named 'shadw'"),
        ((["fork.1"], "all", ["direct"], ["p5"]), "no cost table is named 'p5'"),
    ],
)
def test_wrong_names_are_errors_before_any_work(args, message):
    with pytest.raises(PvmmuError) as e:
        sweep(*args, progress=False)
    assert message in str(e.value)


def test_progress_has_a_rate(capsys):
    sweep(["fork.1"], ["linux-6.1"], ["direct"], progress=True)
    sweep(["fork.1"], ["linux-6.1"], ["direct"], progress=False)
    assert "error" not in capsys.readouterr().err.lower()
