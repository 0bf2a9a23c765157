"""When ports are used up, from sessions that a test made up."""

import ipaddress
import random

import pytest

from twctl.modes.exhaustion import blocked_for, entry_rate, seconds_left


def sessions(rate: float, seconds: float, life: float = 60.0) -> list[float]:
    """What is left of the lives of sessions that have come evenly for so long, sorted."""
    return sorted(life - i / rate for i in range(int(rate * min(seconds, life))))


@pytest.mark.parametrize(("rate", "after"), [(23.0, 5.0), (101.0, 10.0), (1009.0, 20.0)])
def test_before_the_first_goes_the_forecast_is_a_straight_line(rate: float, after: float) -> None:
    """Half of what there is for twice the time: as long again is left, within a quarter of a second."""
    left = sessions(rate, after)
    assert entry_rate(left, 60.0) == pytest.approx(rate, rel=0.02)
    assert seconds_left(2 * len(left), left, rate, 60.0) == pytest.approx(after, abs=0.3)


def test_where_as_many_go_as_come_there_is_no_end() -> None:
    """100 a second for 60 s are 6,000 ports: with more there is no end, with fewer there is one."""
    left = sessions(100.0, 1000.0)
    assert seconds_left(6023, left, 100.0, 60.0) is None
    assert seconds_left(5900, left, 100.0, 60.0) == 0
    early = sessions(100.0, 30.0)
    assert seconds_left(6023, early, 100.0, 60.0) is None
    assert seconds_left(5900, early, 100.0, 60.0) == pytest.approx(29, abs=0.5)


def test_a_burst_that_is_over_lets_go() -> None:
    """Nothing has come for 20 s: the rate is 0, and nothing is left to fear."""
    left = [second - 20.0 for second in sessions(1009.0, 5.0)]
    assert entry_rate(left, 60.0) == 0
    assert seconds_left(len(left) + 1, left, 0.0, 60.0) is None


def test_the_forecast_holds_for_a_jittered_trace() -> None:
    """Sessions at random moments, 101 a second on average: within 20 % of the moment when the ports are used up."""
    rng = random.Random(2011)  # noqa: S311 - the same trace each time
    entries = [0.0]
    while len(entries) <= 2003:
        entries.append(entries[-1] + rng.expovariate(101.0))
    for seen in (601, 1009, 1501):
        now = entries[seen]
        left = sorted(60.0 - (now - entry) for entry in entries[:seen])
        found = seconds_left(2003, left, entry_rate(left, 60.0), 60.0)
        assert found == pytest.approx(entries[2003] - now, rel=0.2)


@pytest.mark.parametrize(
    ("reuse", "remote", "seconds"),
    [(0, "127.0.0.1", 60.0), (1, "192.0.2.7", 1.0), (2, "192.0.2.7", 60.0), (2, "127.0.0.1", 1.0), (2, "::1", 1.0)],
)
def test_a_socket_that_may_be_reused_holds_its_port_for_a_second(reuse: int, remote: str, seconds: float) -> None:
    """tcp_tw_reuse 1, or 2 toward loopback."""
    assert seconds == blocked_for(reuse, 1.0, ipaddress.ip_address(remote), 60.0)
