"""Fronts, regrets, contributions and smallest sets, against brute force on small lattices."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from conftest import examples, recorded
from hypothesis import assume, given, strategies as st
from hypothesis.extra import numpy as hnp
from numba.core import config as numba_config

from pvmmu.costs import get_costs
from pvmmu.errors import CostError, HookError, SearchError
from pvmmu.hooks import HookSet, catalogue
from pvmmu.hooks.burden import burden
from pvmmu.hooks.callsites import callsites
from pvmmu.modes import get_mode
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space
from pvmmu.modes.soundness import Level, soundness_over
from pvmmu.replay import replay
from pvmmu.search import (
    DesignSpace,
    Draws,
    Intrusiveness,
    Orders,
    Search,
    Weights,
    best_within,
    compare_interfaces,
    contributions,
    front,
    interactions,
    next_hooks,
    removable_hooks,
    search,
    shapley as values,
    smallest_within,
)
from pvmmu.search.answers import nondominated
from pvmmu.search.cheapest_subset import BACKENDS, _reached
from pvmmu.search.design_space import regrets
from pvmmu.search.verdicts import witnesses

MODES = ["direct", "vmi"]
VARY = ["ptep_get_and_clear", "ptep_set_wrprotect", "set_ptes", "lazy_mmu", "exit_mmap",
        "activate_mm+dup_mmap"]  # fmt: skip
TRACES = ("fork.16", "mmap.16")
WEIGHTS = {"fork.16": 3.0, "mmap.16": 1.0}
P4 = np.nan_to_num(get_costs("p4-2006").vector)


# ---------------------------------------------------------------------- values by brute force
def brute_contributions(value, works):
    """Average the marginal effects over all orders in which every set on the way works."""
    n, rows = len(value).bit_length() - 1, []
    for order in permutations(range(n)):
        s, row = 0, np.zeros(n)
        for i in order:
            row[i] = value[s | 1 << i] - value[s] if works[s] and works[s | 1 << i] else np.nan
            s |= 1 << i
        if works[0] and np.isfinite(row).all():
            rows.append(row)
    return np.mean(rows, axis=0) if rows else None


def brute_interaction(value, works, i, j):
    """Average second differences over all working orders in which j comes right after i."""
    n, total = len(value).bit_length() - 1, []
    for order in permutations(range(n)):
        at = order.index(i)
        if at + 1 == n or order[at + 1] != j:
            continue
        prefixes = [sum(1 << k for k in order[:m]) for m in range(n + 1)]
        s = prefixes[at]
        needed = [p for m, p in enumerate(prefixes) if m != at + 1] + [s | 1 << i, s | 1 << j]
        if all(works[p] for p in needed):
            total.append(
                value[s | 1 << i | 1 << j] - value[s | 1 << i] - value[s | 1 << j] + value[s]
            )
    return np.mean(total) if total else np.nan


lattices = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        hnp.arrays(float, 2**n, elements=st.floats(-1e6, 1e6)),
        hnp.arrays(bool, 2**n, elements=st.sampled_from((True, True, True, False))),
    )
)


@examples(150)
@given(lattices)
def test_contributions_and_interactions_are_the_averages_over_orders(lattice):
    value, works = lattice
    want = brute_contributions(value, works)
    if want is None:
        with pytest.raises(SearchError, match="one by one"):
            Orders.of(works)
        return
    orders, scale = Orders.of(works), np.abs(value).max() + 1
    got = values.contributions(np.where(works, value, np.nan), orders)
    np.testing.assert_allclose(got, want, atol=1e-9 * scale)
    assert abs(got.sum() - (value[-1] - value[0])) <= 1e-9 * scale
    pairs = values.interactions(np.where(works, value, np.nan), orders)
    for i in range(len(got)):
        for j in range(i):
            brute = brute_interaction(value, works, i, j)
            np.testing.assert_allclose(pairs[i, j], brute, atol=1e-9 * scale, equal_nan=True)
            assert pairs[i, j] == pairs[j, i] or np.isnan(brute)


@examples(40)
@given(st.integers(2, 16), st.integers(0, 10**6))
def test_contributions_sum_to_the_effect_of_all(n, seed):
    r = np.random.default_rng(seed)
    value, works = r.normal(size=2**n) * 1e6, r.random(2**n) < 0.9
    works[[0, -1]] = True
    try:
        orders = Orders.of(works)
    except SearchError:
        assume(False)
    total = value[-1] - value[0]
    assert abs(values.contributions(value, orders).sum() - total) <= 1e-9 * np.abs(value).max()


def test_known_games():
    """Unanimity: the players of a carrier share alike; a null player gets nothing."""
    sets = np.arange(2**5)
    value = ((sets & 0b10110) == 0b10110).astype(float)
    orders = Orders.of(np.ones(2**5, bool))
    assert orders.share == pytest.approx(1)
    np.testing.assert_allclose(values.contributions(value, orders), [0, 1 / 3, 1 / 3, 0, 1 / 3])
    both = ((sets & 0b11) == 0b11).astype(float)  # worthless alone, precious together
    assert values.interactions(both, orders)[0, 1] == pytest.approx(1)
    assert values.interactions(both, orders)[0, 2] == pytest.approx(0)


# ---------------------------------------------------------------------- the front
points = hnp.arrays(
    float, st.tuples(st.integers(1, 25), st.just(3)),
    elements=st.sampled_from((0.0, 1.0, 2.0, 3.0, np.nan, np.inf)),
)  # fmt: skip


@examples(200)
@given(points)
def test_the_front_is_what_nothing_beats(p):
    fine = np.isfinite(p).all(axis=1)
    want = [
        fine[i] and not any(fine[j] and (q <= p[i]).all() and (q < p[i]).any()
                            for j, q in enumerate(p))
        for i in range(len(p))
    ]  # fmt: skip
    assert nondominated(p).tolist() == want


def test_a_nan_never_wins():
    assert not nondominated(np.full((3, 3), np.nan)).any()
    assert nondominated(np.array([[np.nan, 0, 0], [5, 5, 5]])).tolist() == [False, True]


# ---------------------------------------------------------------------- a board by brute force
@pytest.fixture(scope="module")
def found():
    if numba_config.DISABLE_JIT:
        pytest.skip("a search over recordings is too long for kernels in plain Python")
    return search([recorded(t) for t in TRACES], [*MODES, "native"], progress=False)


@pytest.fixture(scope="module", params=BACKENDS)
def board(found, request):
    return DesignSpace(
        found, MODES, WEIGHTS, vary=VARY, always="set_pte+ptep_test_and_clear_young",
        draws=Draws(8), backend=request.param, admit="warns",
    )  # fmt: skip


@pytest.fixture(scope="module")
def brute(board):
    """Cycles per operation of every set of the board, by replaying each: float64[mode, set]."""
    out = np.zeros((len(MODES), 2 ** len(board.players)))
    for m, mode in enumerate(MODES):
        for s in range(out.shape[1]):
            for t in TRACES:
                counts = replay(recorded(t), board.hooks(s), mode)
                out[m, s] += WEIGHTS[t] / 4 * counts.cycles("p4-2006") / len(recorded(t))
    return out


def test_cycles_of_every_set(board, brute):
    for mode, want in zip(MODES, brute, strict=True):
        np.testing.assert_allclose(board.cycles(mode), want, rtol=1e-12)
    for s in (0, 5, len(brute[0]) - 1):
        np.testing.assert_allclose(board.cycles_of(board.hooks(s)), brute[:, s], rtol=1e-12)
        assert board.number(board.hooks(s)) == s


# ---------------------------------------------------------------------- backends
@pytest.mark.compiled
def test_a_free_backend_uses_the_best_subset():
    """Ten hooks, all their sets replayed one by one, and the least taken over subsets."""
    free = HookSet.of(
        "set_pte", "pte_update", "release_pmd", "set_ptes", "lazy_mmu", "exit_mmap", "activate_mm",
        "ptep_get_and_clear", "flush_tlb_user", "flush_tlb_one_user",
    )  # fmt: skip
    space, names = Space(free, HookSet.every() - free), list(free)
    modes = [*MODES, "shadow:code=xen-2006"]
    found = search([recorded(t) for t in TRACES], modes, space, progress=False)
    boards = {
        k: DesignSpace(found, modes, WEIGHTS, draws=Draws(2), backend=k, admit="corrupts")
        for k in BACKENDS
    }
    used = np.full((len(modes), 2 ** len(names)), np.nan)
    for m, mode in enumerate(modes):
        for s in range(2 ** len(names)):
            hooks = space.always | HookSet.of(*(n for i, n in enumerate(names) if s >> i & 1))
            outcomes = [get_mode(mode).run(recorded(t), hooks) for t in TRACES]
            dies = found.verdicts(mode).level_of(hooks) == Level.DIES  # on any shipped stream
            if not dies and not any(isinstance(o, Infeasible) for o in outcomes):
                used[m, s] = sum(
                    WEIGHTS[t] / 4 * float(o.low @ P4) / len(recorded(t))
                    for t, o in zip(TRACES, outcomes, strict=True)
                )
    least = np.where(np.isnan(used), np.inf, used)
    for i in range(len(names)):
        with_it = np.flatnonzero(np.arange(least.shape[1]) >> i & 1)
        least[:, with_it] = np.minimum(least[:, with_it], least[:, with_it ^ (1 << i)])
    want = {"all": used, "free": np.where(np.isinf(least), np.nan, least)}
    for kind, b in boards.items():
        for s in range(2 ** len(names)):
            hooks = space.always | HookSet.of(*(n for i, n in enumerate(names) if s >> i & 1))
            np.testing.assert_allclose(b.cycles_of(hooks), want[kind][:, s], rtol=1e-12)
    assert (least < used * 0.99).any(), "some hook is better left native"
    assert np.nanmin(boards["free"].regret) == pytest.approx(0, abs=1e-12), "all hooks serve all"


@examples(100)
@given(hnp.arrays(np.int16, st.sampled_from((1, 2, 8, 16)), elements=st.integers(-1, 9)))
def test_a_set_reaches_what_any_of_its_subsets_makes(number_of):
    for s, bits in enumerate(_reached(number_of)):
        made = {int(number_of[t]) for t in range(s + 1) if t & s == t} - {-1}
        assert bits == sum(1 << n for n in made)


def test_native_is_the_bare_machine(board, found):
    for mode, cycles in board.native.items():
        want = sum(
            WEIGHTS[t] / 4 * replay(recorded(t), "none", "native").cycles("p4-2006")
            / len(recorded(t)) for t in TRACES
        )  # fmt: skip
        assert cycles == pytest.approx(want), mode
    hooks = board.base | HookSet.of("lazy_mmu")
    got = compare_interfaces(board, {"mine": hooks})
    assert got.loc["mine", "native"] == pytest.approx((board.cycles_of(hooks) / want).mean())
    lone = DesignSpace(search([recorded("fork.16")], ["vmi"], progress=False), ["vmi"])
    assert lone.native.isna().all() and lone.backend == "free"
    assert lone.best.shape == (1,)


def test_ranges_of_standing(board):
    """The worst regret over the draws, by brute force."""
    table = compare_interfaces(board, {"mine": board.base | HookSet.of("lazy_mmu")})
    worst = []
    for d in range(8):
        every = np.array([board.cycles(m, d) for m in MODES])
        mine = board.cycles_of(board.base | HookSet.of("lazy_mmu"), d).to_numpy()
        worst.append((mine / np.nanmin(every, axis=1) - 1).max())
    assert min(worst) <= table.loc["mine", "p5"] <= table.loc["mine", "p95"] <= max(worst)
    assert table.loc["mine", "p95"] == pytest.approx(max(worst))


def test_what_is_required_is_there_and_apart(board):
    assert board.required <= board.base
    assert "pte_val" in board.required
    for name in board.required:
        less = board.cycles_of(HookSet.every() - HookSet.of(name))
        assert less.isna().any(), name
    assert board.completion
    for name in board.completion:  # one of several hooks that would do
        assert board.cycles_of(HookSet.every() - HookSet.of(name)).notna().all()


def test_regret_and_best(board, brute):
    best = np.nanmin(brute, axis=1)
    np.testing.assert_allclose(board.best, best)
    regret = np.where(np.isnan(brute), np.inf, brute / best[:, None] - 1)
    np.testing.assert_allclose(board.regret, regret.max(axis=0), atol=1e-12)
    np.testing.assert_array_equal(board.served(0.1), (regret <= 0.1).sum(axis=0))


def test_regret_where_the_best_is_free():
    got = regrets(np.array([[0.0, 0.0, 1.0, np.nan], [2.0, 3.0, 4.0, np.nan]]))
    assert got.tolist() == [[0, 0, np.inf, np.inf], [0, 0.5, 1, np.inf]]


def test_the_front_of_the_board(board, brute):
    best = np.nanmin(brute, axis=1, keepdims=True)
    p = np.column_stack(
        [brute.mean(0), (brute / best - 1).max(0),
         [board.intrusiveness.of(board.hooks(s)) for s in range(brute.shape[1])]]
    )  # fmt: skip
    p = np.round(p, 9)
    want = {tuple(p[i]) for i in np.flatnonzero(nondominated(p))}
    table = front(board)
    got = {tuple(np.round(r, 9)) for r in table[["cycles", "regret", "intrusiveness"]].to_numpy()}
    assert got == want
    named = sum(1 + len(t) for t in table["tied_with"])
    assert named == nondominated(p).sum(), "every set on the front is named"
    assert table["stability"].between(0, 1).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 2.0])
def test_the_smallest_set_within_a_share(board, brute, share):
    regret = (brute / np.nanmin(brute, axis=1, keepdims=True) - 1).max(axis=0)
    size = np.array([board.intrusiveness.of(board.hooks(s)) for s in range(len(regret))])
    if not (regret <= share + 1e-12).any():
        with pytest.raises(SearchError, match="does what was asked"):
            smallest_within(board, share)
        return
    got = smallest_within(board, share)
    assert got["intrusiveness"] == size[regret <= share + 1e-12].min()
    assert got["regret"] <= share + 1e-12
    assert 0 <= got["stability"] <= 1


def test_the_best_set_within_a_budget(board, brute):
    regret = (brute / np.nanmin(brute, axis=1, keepdims=True) - 1).max(axis=0)
    size = np.array([board.intrusiveness.of(board.hooks(s)) for s in range(len(regret))])
    for budget in range(int(size.min()), int(size.max()) + 1):
        got = best_within(board, budget)
        assert got["regret"] == pytest.approx(regret[size <= budget].min(), abs=1e-12)
        assert got["intrusiveness"] <= budget
    with pytest.raises(SearchError):
        best_within(board, 1)


@pytest.mark.parametrize("mode", MODES)
def test_contributions_on_the_board(board, brute, mode):
    cycles = brute[MODES.index(mode)]
    table = contributions(board, mode)
    want = brute_contributions(-cycles, np.isfinite(cycles))
    np.testing.assert_allclose(table.loc[board.names, "value"], want, atol=1e-9)
    assert table["value"].sum() == pytest.approx(cycles[0] - cycles[-1], rel=1e-9)
    for i, name in enumerate(board.names):
        assert table.loc[name, "first"] == pytest.approx(cycles[0] - cycles[1 << i])
        last = cycles[(len(cycles) - 1) ^ (1 << i)] - cycles[-1]
        assert table.loc[name, "last"] == pytest.approx(last)
    assert (table["p5"] <= table["p95"]).all()
    pairs = interactions(board, mode)
    assert pairs.loc["set_ptes", "lazy_mmu"] == pairs.loc["lazy_mmu", "set_ptes"]
    same = pairs.attrs["stability"].to_numpy()[~np.eye(len(pairs), dtype=bool)]
    assert ((same >= 0) & (same <= 1)).all()


def test_next_and_superfluous_hooks(board):
    hooks = HookSet.parse("linux-6.1 +pte_update")
    more = next_hooks(board, hooks)
    old = board.cycles_of(hooks)
    for name in ("ptep_get_and_clear", "set_ptes"):
        new = board.cycles_of(hooks | HookSet.of(name))
        assert more.loc[name, "saves"] == pytest.approx((1 - new / old).mean())
    assert more["saving_per_hook"].is_monotonic_decreasing
    less = removable_hooks(board, hooks)
    assert less.loc["alloc_pte", "breaks"] == "direct vmi"
    assert np.isnan(less.loc["alloc_pte", "loses"])
    worst = less["loses"].dropna()
    assert worst.is_monotonic_increasing
    new = board.cycles_of(hooks - HookSet.of("lazy_mmu"))
    assert less.loc["lazy_mmu", "loses"] == pytest.approx((new / old - 1).mean())


def test_interfaces_of_the_past(board):
    table = compare_interfaces(board)
    assert np.isinf(table.loc["none", "worst"])
    assert table.loc["vmi", "served"] == 1
    assert np.isinf(table.loc["vmi", "direct"])
    assert table.loc["linux-2.6.27", "served"] == 2
    cycles = board.cycles_of("linux-2.6.27")
    assert table.loc["linux-2.6.27", "direct"] == pytest.approx(
        cycles["direct"] / board.best["direct"] - 1
    )


def test_draws_are_a_function_of_the_seed(found):
    def drawn(seed):
        b = DesignSpace(found, ["vmi"], vary=VARY, draws=Draws(4, seed))
        return [b.cycles_of_classes(d)[0].tolist() for d in range(4)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


# ---------------------------------------------------------------------- intrusiveness
def test_intrusiveness_of_every_set_of_a_cube():
    names = ("dup_mmap", "exit_mmap", "set_ptes", "lazy_mmu")
    players = [HookSet.of(n) for n in names]
    base = HookSet.parse("set_pmd+ptep_modify_prot")
    for weights in (
        Weights(),
        Weights(hooks=0, files=1),
        Weights(members=2, call_sites=0.1, files=3),
        Weights.of("hooks"),
        Weights.of("maintainers"),
        Weights(hooks=0, outside=1, files=2),
    ):
        i = Intrusiveness("6.18.35", weights)
        cube = i.cube(players, base)
        for s in range(16):
            hooks = base | HookSet(sum(p.mask for b, p in enumerate(players) if s >> b & 1))
            assert cube[s] == pytest.approx(i.of(hooks))


def test_a_file_counts_once():
    i = Intrusiveness(weights=Weights(hooks=0, files=1))
    both = i.of(HookSet.of("set_ptes", "wrprotect_ptes"))  # both are called in memory.c
    assert both < i.of(HookSet.of("set_ptes")) + i.of(HookSet.of("wrprotect_ptes"))
    assert i.describe(HookSet.of("set_ptes", "wrprotect_ptes"))["files"] == both


def test_what_a_hook_asks_of_a_kernel():
    """By hand, from the commits that brought them."""
    i = Intrusiveness()
    late = HookSet.of("activate_mm", "dup_mmap", "exit_mmap")
    assert i.describe(late)["outside"] == i.describe(HookSet.of("exit_mmap"))["outside"] == 26
    asked = i.describe(HookSet.of("lazy_mmu"))
    assert (asked["outside"], asked["promises"], asked["single_user"]) == (4 + 2, 4, 1)
    assert i.describe(HookSet.of("flush_tlb_multi"))["single_user"] == 0
    sites = callsites("set_pte").loc["set_pte", ["generic", "x86"]].sum()
    assert i.describe(HookSet.of("set_pte"))["native_bytes"] == 6 * sites
    assert {burden(h).native for h in catalogue()} == {"nothing", "instruction", "call"}
    # a hook is not a hook to a maintainer
    a, b = (Intrusiveness(weights=Weights.of("maintainers")).of(HookSet.of(h))
            for h in ("ptep_set_wrprotect", "read_cr3"))  # fmt: skip
    assert a > 2 * b


def test_two_weightings_are_two_answers():
    space = Space(HookSet.parse("linux-6.1"))
    found = search(["fork.16"], ["direct"], space, progress=False)
    board = DesignSpace(found, ["direct"], draws=Draws(0))
    other = board.revised(intrusiveness=Intrusiveness(weights=Weights.of("maintainers")))
    a, b = front(board), front(other)
    assert a.iloc[0]["cycles"] == b.iloc[0]["cycles"]  # the fastest set is the fastest
    assert a.iloc[0]["intrusiveness"] != pytest.approx(b.iloc[0]["intrusiveness"])
    with pytest.raises(HookError, match=r"no weighting is named 'x' \(there are hooks, main"):
        Weights.of("x")


# ---------------------------------------------------------------------- wrong input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modes": []}, "no mode is named"),
        ({"modes": ["direct:stores=batched"]}, "was not searched"),
        ({"workloads": {"make": 1}}, "was not searched"),
        ({"workloads": {"fork.16": -1}}, "the weight of 'fork.16' is -1"),
        ({"workloads": {"fork.16": float("nan")}}, "the weight of 'fork.16' is nan"),
        ({"workloads": {"fork.16": 0}}, "no workload has a weight"),
        ({"vary": ["lazy_mmu", "lazy_mmu"]}, "'lazy_mmu' varies twice"),
        ({"vary": ["lazy_mu"]}, "did you mean 'lazy_mmu'"),
        ({"vary": ["lazy_mmu"], "modes": ["vmi"]}, "no hook set works in all of vmi"),
        ({"costs": {"vmi": "p4-2006"}}, "no cost table for mode 'direct'"),
        ({"costs": {}}, "no cost table for mode 'direct'"),  # the first of both
        ({"costs": "p5"}, "no cost table is named 'p5'"),
        ({"backend": "lazy"}, "no 'lazy' \\(there are free, all\\)"),
    ],
)
def test_wrong_input_is_one_clear_error(found, change, message):
    given_ = {"modes": MODES, "workloads": None, "costs": "p4-2006"} | change
    with pytest.raises((SearchError, HookError, CostError), match=message):
        DesignSpace(found, **given_)


def test_too_much_varies(found, monkeypatch):
    monkeypatch.setattr("pvmmu.search.candidates.MAX_PLAYERS", 3)
    with pytest.raises(SearchError, match=r"hooks vary, the most is 3; name those that matter"):
        DesignSpace(found, MODES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: values.contributions(np.zeros(4), Orders.of(np.ones(8, bool))), "4 values for 8"),
        (lambda: Orders.of(np.ones(6, bool)), "a power of two"),
        (lambda: values.contributions(np.full(4, np.nan), Orders.of(np.ones(4, bool))), "no value"),
        (lambda: Draws(-1), "must not be negative"),
        (lambda: Draws(8, method="dice"), "no method 'dice'"),
        (lambda: Weights(files=-1), "greater than or equal to 0"),
        (lambda: Intrusiveness("2.4").of(HookSet.of("set_pte")), "call sites of Linux 2.4"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------- soundness
@pytest.mark.compiled
def test_only_sound_sets_compete(found):
    """Each set of a board against the replay of all streams by which it is judged."""
    vary = ["ptep_get_and_clear", "ptep_set_wrprotect", "set_pte+set_pte_at", "lazy_mmu",
            "ptep_test_and_clear_young", "ptep_modify_prot"]  # fmt: skip
    streams = witnesses(found.streams)
    levels = {}
    for admit in ("sound", "sound on one CPU", "warns", "corrupts"):
        b = DesignSpace(found, ["direct"], WEIGHTS, vary=vary, draws=Draws(0), backend="all",
                    admit=admit)  # fmt: skip
        for s in range(2 ** len(b.players)):
            hooks = b.hooks(s)
            if hooks not in levels:
                levels[hooks] = soundness_over(streams, hooks, "direct").level
            assert np.isfinite(b.cycles("direct")[s]) == (levels[hooks] <= Level.parse(admit))
            assert b.verdict_of(hooks) == levels[hooks].words
    assert set(levels.values()) >= {Level.SOUND, Level.SOUND_ON_ONE_CPU, Level.WARNS,
                                    Level.CORRUPTS}  # fmt: skip


@pytest.mark.compiled
def test_a_table_cannot_be_freed_untold_because_two_streams_free_none(found):
    """linux-6.1 -release_pte runs fork.16 and mmap.16's likes, and dies where a table is freed."""
    alone = Search(found.space, found.cells, found.provenance, found.streams)
    less = HookSet.parse("linux-6.1 -release_pte")
    assert alone.verdicts("direct").level_of(less) == Level.DIES
    assert alone.verdicts("direct").of(less) is None
    assert alone.verdicts("direct").of(HookSet.parse("linux-6.1")).sound
    b = DesignSpace(found, ["direct"], WEIGHTS, draws=Draws(0))
    assert "release_pte" in b.required
    assert removable_hooks(b, "linux-6.1").loc["release_pte", "breaks"] == "direct"
    table = front(b)
    assert (table["verdict"] == "sound").all()
    assert not any("get_and_clear" in h for h in table["hooks"])


def test_verdicts_need_streams(found):
    nothing = Search(found.space, found.cells)
    with pytest.raises(SearchError, match="no stream to judge by"):
        nothing.verdicts("direct")
