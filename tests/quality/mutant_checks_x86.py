"""The checks that every mutant of mutants_x86.py has to pass; the first that fails is named."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import test_x86_mmu as mmu
import test_x86_reach as reach
import test_x86_stale as stale
import test_x86_tlb as tlb
import test_x86_twins as twins
import test_x86_walk as walks
from forests_x86 import Forest

from pvmmu.x86 import load_geometry, walk_many
from pvmmu.x86.errors import WalkError


def corpora():
    """A sample of each forest, in an order that also makes blocks for the lockstep walker."""
    for name in walks.CORPORA:
        z = walks.corpus(name)
        first = np.concatenate([[0], np.cumsum(z["ad_count"], dtype=np.int64)])
        for i, (words, r, k) in enumerate(walks.forests(z)):
            k = k[i % 9 :: 9]
            got = walk_many(words, r, z["va"][k], z["kind"][k], z["user"][k], z["ac"][k])
            rows = np.concatenate([np.arange(first[j], first[j + 1]) for j in k])
            for a, b in (
                (got.vector, z["expected_vector"][k]),
                (got.error_code, z["expected_fault"][k]),
                (got.pa, z["expected_pa"][k]),
                (got.page_shift, z["expected_page_shift"][k]),
                (got.level, z["expected_level"][k]),
                (got.update_pa, z["ad_pa"][rows]),
                (got.update_value, z["ad_value"][rows]),
            ):
                assert np.array_equal(a, b), (name, i)


def lockstep():
    for mode in twins.MODES:
        for seed in (1, 2):
            forest = Forest(seed, mode, None, 0.004 * (seed - 1))
            twins.settle(forest)
            twins.compare(forest, 192)
    twins.test_a_block_of_mixed_page_sizes()
    twins.test_blocks_of_odd_accesses_only(False)
    twins.test_blocks_with_odd_accesses_among_plain_ones(False)


def nested():
    for guest, host, references in walks.GOLDEN:
        walks.test_references_of_a_nested_walk(guest, host, references)
    for seed in range(3):
        for mode in twins.MODES:
            for second in twins.SECONDS:
                try:
                    forest = Forest(seed, mode, second)
                    twins.twin_guest(forest)
                except WalkError:
                    continue
                twins.compare(forest, 25)


def tlbs():
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "odd.toml"
        path.write_text(tlb.ODD)
        for seed in range(3):
            tlb.test_every_kind_of_page_and_every_flush.hypothesis.inner_test(
                seed, load_geometry(path)
            )
    tlb.test_pcids_share_global_pages_and_nothing_else()
    for name in ("zipf", "loops"):
        tlb.test_misses_are_those_of_dictionaries(name, (16, 4))
    for seed in range(3):
        reach.test_every_size_as_dictionaries.hypothesis.inner_test(seed)


def mmus():
    with tempfile.TemporaryDirectory() as place:
        small, caches = Path(place) / "small.toml", Path(place) / "caches.toml"
        small.write_text(tlb.ODD + mmu.CACHES)
        caches.write_text(mmu.ALL_CACHES)
        for seed, second in enumerate((None, "EPT4", "EPT4-AD", "EPT5-AD") * 3):
            pair = mmu.Pair(seed, "4-level", second, load_geometry(small), 0.08)
            while len(pair.events) < 300 and pair.step():
                pair.compare()
        validator(load_geometry(caches))


def validator(caches):
    mmu.test_invlpg_takes_a_global_page_in_all_contexts(caches)
    mmu.test_a_fault_drops_what_was_cached_for_its_address(caches)
    mmu.test_guest_tables_without_write_access_stay_so_in_walk_caches(caches)

    def space():
        return mmu.Space(stale.WHERE, caches, validate=True)

    for why, change in stale.CHANGES.items():
        stale.test_use_after_the_promised_flush_is_harmful(space(), why, change)
        stale.test_a_flush_in_time_is_enough(space(), change, (mmu.Event.INVLPG, mmu.BASE))
    for test in (
        stale.test_a_frame_that_was_given_back_is_the_worst,
        stale.test_more_rights_need_no_flush,
        stale.test_a_cleared_accessed_flag_needs_no_flush_and_a_dirty_one_does,
        stale.test_a_promise_is_for_a_range_and_a_root,
        stale.test_ranges_that_are_flushed_late_on_purpose,
    ):
        test(space())
    stale.test_a_walk_cache_that_leads_to_a_table_given_back(caches)


def main():
    checks = [corpora, lockstep, nested, tlbs, mmus]
    for check in checks[::-1] if "mmu" in sys.argv[1:] else checks:
        try:
            check()
        except Exception as e:
            print(f"caught by {check.__name__} ({type(e).__name__})")
            sys.exit(1)


if __name__ == "__main__":
    main()
