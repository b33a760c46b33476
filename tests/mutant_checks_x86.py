"""The checks that every mutant of mutants_x86.py has to pass; the first that fails is named."""

import sys

import numpy as np
import test_x86_twins as twins
import test_x86_walk as walks
from forests_x86 import Forest

from pvmmu.x86 import walk_many
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


def main():
    for check in (corpora, lockstep, nested):
        try:
            check()
        except Exception as e:
            print(f"caught by {check.__name__} ({type(e).__name__})")
            sys.exit(1)


if __name__ == "__main__":
    main()
