"""Shorter TIME_WAIT where few ports are left, as a task, with what decides of a test's own."""

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

from twctl.daemon.ports import BATCH_SECONDS, PRESSURE_SECONDS, RelievingPorts
from twctl.modes.port_pressure import Destination


class FakeTable:
    """Nobody else wants it."""

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """At once."""
        yield


class FakePressure:
    """Condemns what a test says at its next look."""

    def __init__(self) -> None:
        self.condemned: list[int] = []
        self.next: list[int] = []
        self.cost = 0.0

    def look(self, _namespaces: object) -> float:
        """Decide."""
        self.condemned, self.next = self.next, []
        return self.cost

    def execute(self) -> None:
        """Destroy one."""
        self.condemned.pop()

    def seconds(self) -> dict[Destination, float]:
        """One destination of a namespace that is there, one of a namespace that has left."""
        near, far = ip_address("10.0.0.1"), ip_address("10.0.0.2")
        return {Destination(3, near, far, 443): 5.0, Destination(7, near, far, 80): 1.0}


def relieving(pressure: FakePressure) -> RelievingPorts:
    """The task, in one namespace."""
    table, namespaces = cast("Any", FakeTable()), cast("Any", [SimpleNamespace(index=3, name="blue")])
    return RelievingPorts(table, namespaces, cast("Any", pressure))


def test_what_is_condemned_goes_a_batch_at_a_time() -> None:
    """And then it waits for the next look."""
    pressure = FakePressure()
    task = relieving(pressure)
    assert PRESSURE_SECONDS == task.run()
    pressure.next = [1, 2]
    assert [BATCH_SECONDS, BATCH_SECONDS, PRESSURE_SECONDS] == [task.run() for _ in range(3)]


def test_a_look_that_took_long_makes_the_next_come_later() -> None:
    """Less than one percent of a CPU goes into looking."""
    pressure = FakePressure()
    pressure.cost = 1.0
    assert relieving(pressure).run() > 99


def test_a_namespace_that_has_left_has_no_series() -> None:
    """The others are told by name."""
    assert {("blue", "10.0.0.1", "10.0.0.2", "443"): 5.0} == relieving(FakePressure()).seconds()
