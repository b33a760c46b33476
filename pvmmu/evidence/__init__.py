"""Against the world: measurements of hypervisors, published results, claims, unmerged hooks."""
