"""What benchmarks share: a C reference compiled on the spot, interleaved timing, result tables."""
