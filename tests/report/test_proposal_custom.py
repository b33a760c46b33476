"""Hooks, modes and prices of a session travel with a proposal, or are refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import pytest

from pvmmu import modes
from pvmmu.errors import PvmmuError
from pvmmu.guest.trace import Op
from pvmmu.hooks import custom_hooks
from pvmmu.hooks.custom import register_hook, unregister_hook
from pvmmu.modes.custom import CustomMode, Rule
from pvmmu.panels import DesignPanel
from pvmmu.report import State, load_state, results, write_bundle

DESIGNS = ["shy=set_pte+lazy_mmu+unmap_range", "shy=set_pte+lazy_mmu"]
PRICES = """title = "A hypervisor of mine"
cpu = "a fast one"
year = 2026
mhz = 3000
like = "xen-2026"
[events.custom_trap]
value = 1800
unit = "cycles"
kind = "prior"
range = [900, 4000]
source = "my guess"
"""


def forget():
    modes.unregister("shy")
    unregister_hook("unmap_range")


@pytest.fixture
def shy():
    register_hook("unmap_range", [Op.PTE_GET_AND_CLEAR], level="high", meaning="clear a range")

    @modes.register
    class Shy(CustomMode):
        name = "shy"
        queue = 16
        rules: ClassVar = {
            Op.SET_PTE: Rule(("set_pte",), "update", "trap"),
            Op.PTE_GET_AND_CLEAR: Rule(("unmap_range",), "update", "trap"),
            Op.LAZY_ENTER: Rule(("lazy_mmu",), "bracket"),
            Op.LAZY_LEAVE: Rule(("lazy_mmu",), "end"),
        }  # fmt: skip

    yield Shy
    forget()


@pytest.fixture
def bundle(shy, tmp_path):
    prices = tmp_path / "mine.toml"
    prices.write_text(PRICES)
    state = State.of("fork.16", DESIGNS, str(prices), ["mmap.4@2.6.22"])
    write_bundle(state, tmp_path / "a", notebook=False)
    prices.unlink()  # what is needed is in the bundle
    return tmp_path / "a"


def test_a_bundle_is_made_again_in_a_process_that_knows_nothing(bundle):
    code = (
        "import sys; from pvmmu.cli import main; "
        f"sys.exit(main(['proposal', '--no-notebook', '--state', {str(bundle)!r}, '--out', "
        f"{str(bundle.parent / 'b')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "same model: all 4 numbers are the same" in done.stdout
    for name in ("results.csv", "state.json", "workloads.svg", "mine.toml"):
        assert (bundle / name).read_bytes() == (bundle.parent / "b" / name).read_bytes(), name
    table = (bundle / "results.csv").read_text()
    assert "mmap.4@2.6.22" in table and "unmap_range" in table


def test_a_changed_model_is_said(bundle):
    document = json.loads((bundle / "state.json").read_text())
    document["made"]["model"] = "0" * 16
    document["made"]["entries"]["fork.16 A"] += 1
    (bundle / "state.json").write_text(json.dumps(document))
    told = results(load_state(bundle)).change()
    assert "the model has changed since" in told and "1 of 4 numbers differ (fork.16 A" in told


def test_a_panel_takes_the_state_where_nothing_is_registered(bundle):
    forget()
    panel = DesignPanel("fork.16")
    panel.restore((bundle / "state.json").read_text().replace("mine.toml", "xen-2026"))
    assert panel.mode.value == "shy" and "unmap_range" in custom_hooks()
    assert "unmap_range" in panel.matrix.value and panel.matrix.boxes["unmap_range"].value
    assert not panel.messages.line.value
    other = json.loads((bundle / "state.json").read_text().replace("mine.toml", "xen-2026"))
    other["made"]["model"] = "0" * 16
    panel.restore(other | {"trace": "mmap.16"})
    assert "model has changed" in panel.messages.line.value
    for broken in ({"against": [3]}, {"against": []}, {"own": {"hooks": 3}}, {"mode": None}):
        panel.restore(other | broken)
        assert "&#9888;" in panel.messages.line.value and not panel.messages.defects.outputs
    modes.unregister("shy")


def test_another_definition_under_the_same_name_is_refused(bundle, shy):
    shy.queue = 17
    with pytest.raises(PvmmuError, match=r"state\.json: own: mode 'shy' is another one"):
        load_state(bundle)
    shy.queue = 16
    register_hook("unmap_range", [Op.PTE_CLEAR])
    with pytest.raises(PvmmuError, match="hook 'unmap_range' is another one in this session"):
        load_state(bundle)


def test_a_mode_of_code_is_refused_in_one_sentence(shy, tmp_path):
    class Sly(shy):
        name = "sly"

        def relevant_hooks(self, trace):
            return super().relevant_hooks(trace)

    modes.register(Sly)
    try:
        with pytest.raises(PvmmuError, match=r"mode 'sly' has code of its own \(relevant_hooks\)"):
            State.of("fork.16", ["sly=none", "native=none"])
    finally:
        modes.unregister("sly")


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ([], "own: not a table"),
        ({"hooks": []}, "own.hooks: not a table"),
        ({"hooks": {"x": {}}}, "own: x: default is missing"),
        ({"hooks": {"x": {"operations": ["NO"], "level": "low", "meaning": "", "default": [],
                          "members": []}}}, "own: x: no operation 'NO'"),
        ({"modes": {"y": {"queue": 1}}}, "own: y: rules is missing"),
        ({"modes": {"y": {"queue": 0, "rules": {"FAULT": {"hooks": [], "hooked": "nothing",
                          "unhooked": "fault"}}}}}, "mode 'y': queue must be"),
        ({"modes": {"y": {"queue": 1, "rules": {"FAULT": {"hooks": [], "hooked": "fly",
                          "unhooked": "fault"}}}}}, "a rule says 'fly'"),
    ],
)  # fmt: skip
def test_a_broken_definition_names_its_field(own, told, tmp_path):
    document = json.loads(State.of("fork.16", ["direct=linux-6.1", "native=none"]).json())
    path = tmp_path / "state.json"
    path.write_text(json.dumps(document | {"own": own}))
    with pytest.raises(PvmmuError) as e:
        load_state(path)
    assert told in str(e.value) and str(path) in str(e.value)
    assert "y" not in modes.mode_names() and "x" not in custom_hooks()
