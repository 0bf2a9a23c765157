"""Counters of several CPUs and cells of live sessions, in memory that a test wrote."""

import time
from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.config import load
from twctl.table import counters
from twctl.table.counters import (
    ACTIONS,
    COUNTERS,
    LANE_SECONDS,
    LANES,
    NUMBERS,
    PERIOD_SHIFT,
    PERIODS,
    TICK,
    TICK_SHIFT,
    WORKERS,
    Reason,
)
from twctl.table.shared import HEADER, STRUCTS

CPUS = 3


def numbers(count: int) -> memoryview:
    """As a map of 64-bit numbers."""
    return memoryview(bytearray(8 * count)).cast("Q")


def test_counters_are_summed_over_workers_and_cpus() -> None:
    """A field of two dimensions is read by both indexes, and no number gets into another field."""
    memory = numbers(NUMBERS * WORKERS * CPUS)
    at = STRUCTS["counters"].fields["entered"].offset // 8 + Class.REMOTE * len(FAMILIES) + 1
    for i in range(WORKERS * CPUS):
        memory[i * NUMBERS + at] = i + 1
    memory[5 * NUMBERS + STRUCTS["counters"].fields["no_port"].offset // 8] = 23
    found = counters.summed(memory, CPUS)
    assert found.get("entered", Class.REMOTE, 1) == WORKERS * CPUS * (WORKERS * CPUS + 1) // 2
    assert (found.row("entered", Class.REMOTE)[0], found.row("entered", Class.LOCAL), found.get("no_port", 0)) == (
        0,
        (0, 0),
        23,
    )
    assert sum(sum(values) for values in found.values.values()) == found.get("entered", Class.REMOTE, 1) + 23


def test_sums_wrap_as_the_programs_do() -> None:
    """At 64 bits."""
    memory = numbers(NUMBERS * WORKERS * CPUS)
    memory[0], memory[NUMBERS] = 2**64 - 1, 3
    assert counters.summed(memory, CPUS).get("entered", Class.LOOPBACK, 0) == 2


def test_the_guard_s_actions_are_summed_over_cpus() -> None:
    """By name."""
    memory = numbers(len(ACTIONS) * CPUS + 5)
    for cpu in range(CPUS):
        memory[cpu * len(ACTIONS) + ACTIONS.index("held")] = 7
    assert counters.actions(memory, CPUS) == dict.fromkeys(ACTIONS, 0) | {"held": 21}


def test_cells_of_past_periods_and_of_earlier_laps_hold_nobody() -> None:
    """A cell's upper half says which period it counts; those after the last expiry are not looked at."""
    memory = numbers(len(Class) * len(FAMILIES) * LANES * PERIODS)
    now_ns = time.monotonic_ns() + 10**12
    period = now_ns >> TICK_SHIFT + PERIOD_SHIFT
    row = ((Class.LOCAL * len(FAMILIES) + 1) * LANES + 5) * PERIODS
    for shown, offset, count in ((period, 0, 11), (period + 3, 3, 2), (period - 1, -1, 100), (period + 9, 9, 1000)):
        memory[row + (period + offset) % PERIODS] = shown << 32 | count
    memory[row + (period + 1) % PERIODS] = period + 1 - PERIODS << 32 | 10_000
    last = {(Class.LOCAL, "ipv6"): period + 4 << PERIOD_SHIFT}
    found = counters.living(memory, now_ns, lambda class_, family: last.get((class_, family), 0))
    assert {(Class.LOCAL, "ipv6", 5): 13} == {key: count for key, count in found.items() if count}
    assert len(found) == len(Class) * len(FAMILIES) * LANES


def test_lanes_end_beside_the_classes_times() -> None:
    """What goes in time or a little late has a lane of its own, no wider than half of that."""
    assert len(LANE_SECONDS) == LANES - 1
    for seconds in load(None, {}, default_file=Path("/nowhere")).config.time_wait.values():
        after = next(i for i, edge in enumerate(LANE_SECONDS) if edge > seconds)
        assert 0.75 * seconds <= LANE_SECONDS[after - 1] < 0.95 * seconds
        assert 1.05 * seconds < LANE_SECONDS[after] <= 1.25 * seconds


def test_lanes_end_at_half_seconds() -> None:
    """Ticks of 67 ms, as near as they come."""
    edges = HEADER.lists["LANE_EDGES"][:-1]
    assert all(0 <= seconds - edge * TICK < TICK for seconds, edge in zip(LANE_SECONDS, edges, strict=True))


def test_every_reason_has_its_place() -> None:
    """As many as C has, numbered without a gap."""
    assert COUNTERS["ended"] == (len(Class), len(Reason))
    assert list(range(len(Reason))) == [int(reason) for reason in Reason]
    assert HEADER.labels("reason", "REASON_") == tuple(reason.name.lower() for reason in Reason)
