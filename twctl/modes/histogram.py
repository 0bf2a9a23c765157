"""Durations, counted by how long they are."""

from collections.abc import Sequence


class Histogram:
    """buckets: how many are at most as long as each edge (s) and longer than the one before; the last, longer than all.

    seconds: their sum.
    """

    def __init__(self, edges: Sequence[float], buckets: Sequence[int] = (), seconds: float = 0.0) -> None:
        self.edges = edges
        self.buckets = list(buckets) or [0] * (len(edges) + 1)
        self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[sum(seconds > edge for edge in self.edges)] += 1
        self.seconds += seconds
