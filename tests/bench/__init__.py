"""Benchmarks: speed and memory as ratios against the stock kernel or the obvious alternative, in the same run."""
