"""Rules about ports, at their edges: recorded snapshots with other numbers."""

import dataclasses
from typing import Any

import pytest

from tests.advise.test_rules import recorded
from twctl.advise.ports import (
    connections_leak,
    keep_alive,
    loopback,
    ports_bound,
    ports_used_up,
    reuse_helps,
    reuse_needs_timestamps,
    search_is_long,
)
from twctl.advise.snapshot import Search, Snapshot


def toward(name: str, **numbers: Any) -> Snapshot:  # noqa: ANN401 - of several types
    """A recorded snapshot with other numbers of its destination."""
    snapshot = recorded(name)
    [one] = snapshot.destinations
    return dataclasses.replace(snapshot, destinations=(dataclasses.replace(one, **numbers),))


@pytest.mark.parametrize(
    ("calls", "mean", "said"), [(101, 1e-3, True), (101, 1e-4, True), (101, 9e-5, False), (5, 1e-3, False)]
)
def test_a_search_is_long_from_100_us_on_if_it_costs_a_hundredth_of_a_cpu(
    calls: float, mean: float, *, said: bool
) -> None:
    """Where it is not measured nothing is said."""
    snapshot = dataclasses.replace(recorded("searching"), search=Search(calls, mean))
    assert said == (search_is_long(snapshot) is not None)
    assert search_is_long(dataclasses.replace(snapshot, search=None)) is None


def test_a_step_width_is_advised_where_the_kernel_has_it_and_it_is_off() -> None:
    """Linux 7.1: before there is no such sysctl."""
    snapshot = recorded("searching")
    [here] = snapshot.namespaces
    for width, said in ((None, False), (0, True), (128, False)):
        other = dataclasses.replace(here, limits=dataclasses.replace(here.limits, port_step=width))
        advice = search_is_long(dataclasses.replace(snapshot, namespaces=(other,)))
        assert advice
        assert said == ("ip_local_port_step_width" in advice.remedy)


CALM: dict[str, Any] = {"no_port": 0.0, "failed_last": None, "failing_since": None, "failed": 0}


@pytest.mark.parametrize(
    ("held", "seconds", "weight"),
    [(100, None, None), (100, 601.0, None), (100, 599.0, 80), (100, 60.0, 90), (959, None, 98), (958, None, None)],
)
def test_ports_are_used_up_or_will_be(held: int, seconds: float | None, weight: int | None) -> None:
    """From 95 % on, or within ten minutes; sooner is heavier."""
    said = ports_used_up(toward("used_up", time_wait=held, seconds_left=seconds, **CALM))
    assert weight == (said and said.weight)


def test_a_failing_connect_is_the_heaviest() -> None:
    """And is said as what it is, with the unit that has to change."""
    said = ports_used_up(toward("used_up", owner="checkout.service"))
    assert said
    assert 100 == said.weight
    assert "fails" in said.what
    assert "Have checkout.service keep" in said.remedy


def test_nothing_is_to_be_drained_in_mode_vestigial() -> None:
    """Its sessions have no sockets."""
    said = ports_used_up(dataclasses.replace(recorded("used_up"), mode="vestigial"))
    assert said
    assert "drain" not in said.remedy


@pytest.mark.parametrize(
    ("numbers", "weight"),
    [
        ({"live": 400, "seconds_left": None}, None),
        ({"live": 505, "seconds_left": None}, 50),
        ({"live": 400, "seconds_left": 100.0, "rate": 5.0}, 80),
        ({"live": 1009}, 98),
        ({"ports": 28232, "live": 100, "time_wait": 20, "rate": 80, "seconds_left": 351}, None),
        ({"live": 400, "time_wait": 500, "seconds_left": None}, None),
        ({"live": 100, "close_wait": 100, "seconds_left": None}, 50),
    ],
)
def test_connections_leak(numbers: dict[str, Any], weight: int | None) -> None:
    """They hold half of the ports and more than sessions do, or all of them soon; or the peer has closed many.

    A pool that warms up becomes more as fast, and holds few ports.
    """
    said = connections_leak(toward("leak", close_wait=numbers.pop("close_wait", 0), **numbers))
    assert weight == (said and said.weight)


def test_connect_fails_for_bind_only_where_ports_are_free() -> None:
    """Else it is the sessions; and where no call fails, nothing is wrong."""
    assert ports_bound(toward("bound"))
    assert ports_bound(toward("bound", time_wait=900)) is None
    assert ports_bound(toward("bound", **CALM)) is None


@pytest.mark.parametrize(
    ("entered", "remote", "fires"), [(9.9, "10.0.0.9", False), (10.0, "10.0.0.9", True), (99.0, "127.0.0.1", False)]
)
def test_keep_alive_is_worth_a_change_from_ten_a_second_on(entered: float, remote: str, *, fires: bool) -> None:
    """Over loopback it is another rule's."""
    said = keep_alive(toward("well", entered=entered, sessions=0, remote=remote))
    assert fires == (said is not None)
    assert not said or said.gain.startswith("10 entries a second")


def test_reuse_helps_who_connects_with_timestamps() -> None:
    """Not where it is on, and not where sessions have no timestamps: then that is said."""
    short = recorded("used_up")
    [here] = short.namespaces
    on = dataclasses.replace(here, limits=dataclasses.replace(here.limits, tw_reuse=1))
    assert reuse_helps(short)
    assert reuse_needs_timestamps(short) is None
    assert reuse_helps(dataclasses.replace(short, namespaces=(on,))) is None
    plain = toward("used_up", stamped=0, plain=1009)
    assert reuse_helps(plain) is None
    assert (said := reuse_needs_timestamps(plain))
    assert "at the other end" in said.remedy


def test_loopback_needs_nothing_while_reuse_works_there() -> None:
    """Its other addresses, and a host without reuse, are like others."""
    assert loopback(recorded("loopback"))
    assert loopback(toward("loopback", remote="10.0.0.5")) is None
    snapshot = recorded("loopback")
    [here] = snapshot.namespaces
    off = dataclasses.replace(here, limits=dataclasses.replace(here.limits, tw_reuse=0))
    assert loopback(dataclasses.replace(snapshot, namespaces=(off,))) is None
