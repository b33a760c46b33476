"""Against the world: measurements of hypervisors, published results, claims, unmerged hooks.

Nothing here changes a count: it compares. A measurement is a file in ``data/truth`` or
``data/history`` with its source, a claim a function with `claims.claim`, a change of the kernel a
row of `unmerged.WHAT_IFS`.
"""
