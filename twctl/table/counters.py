"""What the programs count: the fields of struct counters, summed over all CPUs, and the words for their indexes."""

import dataclasses
import enum
import math

from twctl.table.shared import CONSTANTS, HEADER, STRUCTS

LANES = CONSTANTS["LANES"]
TICK = 2 ** CONSTANTS["TICK_SHIFT"] / 1e9  # s
# Upper edges of the lanes in seconds (int); the last lane has none.
LANE_SECONDS = tuple(math.ceil(edge * TICK) for edge in HEADER.lists["LANE_EDGES"][:-1])
CLOSES = HEADER.labels("close", "CLOSE_")
DROPPED = HEADER.labels("dropped", "DROPPED_")
ACTIONS = HEADER.labels("action", "ACTION_")  # what the guard did to a segment
# Name and shape of each field, all of 64 bits.
COUNTERS = {name: field.dimensions or (1,) for name, field in STRUCTS["counters"].fields.items()}


class Reason(enum.IntEnum):
    """Why a session ended, by the numbers of enum reason (vestige.h)."""

    EXPIRED = CONSTANTS["REASON_EXPIRED"]
    TRUNCATED = CONSTANTS["REASON_TRUNCATED"]
    DRAINED = CONSTANTS["REASON_DRAINED"]
    REUSED = CONSTANTS["REASON_REUSED"]
    RESET = CONSTANTS["REASON_RESET"]
    DESTROYED = CONSTANTS["REASON_DESTROYED"]
    EVICTED = CONSTANTS["REASON_EVICTED"]
    UNKNOWN = CONSTANTS["REASON_UNKNOWN"]


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """Sums over all CPUs; each field by the indexes that COUNTERS names."""

    values: dict[str, tuple[int, ...]]

    def get(self, name: str, *index: int) -> int:
        """One number, by its indexes."""
        offset = 0
        for size, i in zip(COUNTERS[name], index, strict=True):
            offset = offset * size + i
        return self.values[name][offset]

    def row(self, name: str, first: int) -> tuple[int, ...]:
        """All numbers of one first index."""
        width = COUNTERS[name][1]
        return self.values[name][first * width : (first + 1) * width]
