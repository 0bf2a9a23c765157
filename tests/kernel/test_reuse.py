"""A tuple that is used again: how old its session was then, and how old it must be."""

import math
import os
import re
import time

import pytest

from tests.kernel.test_ends import close, pairs
from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace
from twctl.table.counters import TICK

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
PORT = 22000
KEPT = "capacity = 1021\n[time_wait]\nloopback = 60\n"


def ages(one: Daemon) -> dict[float, float]:
    """How many loopback sessions were at most so old (s) when their tuple was used again."""
    row = r'twctl_reuse_age_seconds_bucket{class="loopback",le="(.+)"}'
    return {float(found[1]): number for name, number in one.metrics().items() if (found := re.fullmatch(row, name))}


def test_the_age_at_which_a_tuple_is_used_again_is_counted() -> None:
    """23 tuples that are used again after half a second: none was younger, none older, and the sum says so, too."""
    with namespace() as ns, daemon(ns, mode="vestigial", config=KEPT) as one, pairs(ns, PORT) as connect:
        connections = connect()
        began = time.monotonic()
        for client, server in connections:
            close(client, server)
        ended = time.monotonic()
        time.sleep(0.6)  # so old are they, at least
        least = time.monotonic() - ended - TICK
        connect()
        most = time.monotonic() - began + TICK
        assert N == one.metric("twctl_time_wait_ended_total", reason="reused")
        counted = ages(one)
        assert {0} == {count for edge, count in counted.items() if edge < least}
        assert {N} == {count for edge, count in counted.items() if edge > most}
        assert N * least <= one.metric("twctl_reuse_age_seconds_sum") <= N * most


def test_where_nobody_sees_a_tuple_taken_its_age_is_not_guessed(probe: str) -> None:
    """The tracepoint does not tell when connect() takes a tuple of the kernel's: its next close is not that moment."""
    with namespace() as ns, daemon(ns, probe=probe, config=KEPT) as one, pairs(ns, PORT) as connect:
        for _ in range(2):
            for client, server in connect():
                close(client, server)
        assert N == one.metric("twctl_time_wait_ended_total", reason="reused")
        assert (N if probe == "fentry" else 0) == ages(one)[math.inf]
