"""What the programs count: the fields of struct counters, summed over all CPUs, and the words for their indexes."""

import dataclasses
import enum
import math
from collections.abc import Callable

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.shared import CONSTANTS, HEADER, STRUCTS

LANES = CONSTANTS["LANES"]
TICK = 2 ** CONSTANTS["TICK_SHIFT"] / 1e9  # s
# Upper edges of the lanes in seconds (they are meant in halves); the last lane has none.
LANE_SECONDS = tuple(math.ceil(2 * edge * TICK) / 2 for edge in HEADER.lists["LANE_EDGES"][:-1])
# The same of ages at which a tuple was taken again: two readings of the tick differ from the time between by up to one.
REUSE_SECONDS = tuple(round((edge + 0.5) * TICK, 1) for edge in HEADER.lists["REUSE_EDGES"][:-1])
CLOSES = HEADER.labels("close", "CLOSE_")
DROPPED = HEADER.labels("dropped", "DROPPED_")
ACTIONS = HEADER.labels("action", "ACTION_")  # what the guard did to a segment
# Name and shape of each field, all of 64 bits.
COUNTERS = {name: field.dimensions or (1,) for name, field in STRUCTS["counters"].fields.items()}
NUMBERS = STRUCTS["counters"].size // 8
WORKERS = CONSTANTS["WORKERS"]  # each counts for itself, on each CPU
TICK_SHIFT, PERIOD_SHIFT, PERIODS = (CONSTANTS[name] for name in ("TICK_SHIFT", "PERIOD_SHIFT", "PERIODS"))


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

    def asked_for(self) -> int:
        """Mini-sockets that the kernel was asked for: of entries, and of orphans whose time was over."""
        return sum(self.values["entered"]) + self.get("closed", CLOSES.index("orphan"))

    def row(self, name: str, first: int) -> tuple[int, ...]:
        """All numbers of one first index."""
        width = COUNTERS[name][1]
        return self.values[name][first * width : (first + 1) * width]


def summed(memory: memoryview, cpus: int) -> Counters:
    """Sum the counters of all CPUs and workers (memory: 64-bit numbers)."""
    sums = [sum(memory[i : NUMBERS * WORKERS * cpus : NUMBERS]) & 2**64 - 1 for i in range(NUMBERS)]
    values, offset = {}, 0
    for name, shape in COUNTERS.items():
        values[name] = tuple(sums[offset : offset + math.prod(shape)])
        offset += math.prod(shape)
    return Counters(values)


def actions(memory: memoryview, cpus: int) -> dict[str, int]:
    """Sum what the guard did to how many segments (memory: 64-bit numbers)."""
    numbers = memory[: len(ACTIONS) * cpus]
    return {name: sum(numbers[i :: len(ACTIONS)]) for i, name in enumerate(ACTIONS)}


def living(
    cells: memoryview, now_ns: int, last_expiry: Callable[[Class, str], int]
) -> dict[tuple[Class, str, int], int]:
    """Count the live sessions of each class, family and lane (cells: 64-bit numbers).

    last_expiry: the latest expiry (ticks) of any session of a class and family.
    """
    first = now_ns >> TICK_SHIFT + PERIOD_SHIFT
    counts = {}
    for class_ in Class:
        for i, family in enumerate(FAMILIES):
            last = min(last_expiry(class_, family) >> PERIOD_SHIFT, first + PERIODS - 1)
            for lane in range(LANES):
                row = ((class_ * len(FAMILIES) + i) * LANES + lane) * PERIODS
                counts[class_, family, lane] = _sum_periods(cells[row : row + PERIODS], first, last)
    return counts


def _sum_periods(cells: memoryview, first: int, last: int) -> int:
    total = 0
    for period in range(first, last + 1):
        cell = cells[period % PERIODS]
        if cell >> 32 == period:
            total += cell & 0xFFFFFFFF
    return total
