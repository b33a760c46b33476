"""Verdicts on all hook sets from excerpts, against the replay of whole streams."""

from __future__ import annotations

import random

import pytest
from conftest import recorded

from pvmmu.guest.excerpts import excerpts
from pvmmu.guest.load_trace import trace_names
from pvmmu.hooks import HookSet, catalogue, interfaces
from pvmmu.modes import get_mode
from pvmmu.modes.partition import Space
from pvmmu.modes.soundness import Level, soundness_over
from pvmmu.search.verdicts import judge_all


@pytest.fixture(scope="module")
def streams():
    """Every shipped stream of at most 2,000 operations."""
    return [t for t in map(recorded, trace_names()) if len(t) <= 2000]


@pytest.mark.compiled
def test_excerpts_show_what_all_streams_show(streams):
    few = excerpts(streams)
    assert len({t.platform for t in few}) == len(few)
    assert sum(map(len, few)) < sum(map(len, streams)) / 10
    mode, r = get_mode("direct"), random.Random(7)
    judged = judge_all(mode, few, Space.all())
    met, bases = set(), [i.hooks for i in interfaces().values()]
    for _ in range(40):
        hooks = set(r.choice(bases)) | set(judged.partition.required)
        for _ in range(r.randrange(6)):
            hooks ^= {r.choice(list(catalogue()))}
        want = soundness_over(streams, HookSet.of(*hooks), mode).level
        assert judged.level_of(HookSet.of(*hooks)) == want, sorted(hooks)
        met.add(want)
    assert met >= {Level.SOUND, Level.WARNS, Level.DIES}
