"""Which destinations can be short of ports, from tallies that a test wrote down."""

import ipaddress
import math
import mmap
from typing import cast

import pytest

from tests.table.test_tallies import FakeTable, local_port, remote
from twctl.modes import destinations
from twctl.modes.destinations import REMEMBER_SECONDS, SESSION_SECONDS, Destinations
from twctl.table.maps import Table
from twctl.table.tallies import KEY_BUSY, By

ADDRESS = ipaddress.ip_address("192.0.2.7")


class Clock:
    """Goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1009.0

    def monotonic(self) -> float:
        """As time.monotonic."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the module goes by."""
    clock = Clock()
    monkeypatch.setattr(destinations, "time", clock)
    return clock


@pytest.fixture
def table() -> FakeTable:
    """Tallies without a party."""
    return FakeTable()


def counted(  # noqa: PLR0913 - keywords
    table: FakeTable, place: int, port: int, entered: int, *, error: int = 0, no_port: int = 0
) -> None:
    """A destination in the place, known by its port."""
    party = remote(str(ADDRESS), port)
    table.put(By.REMOTE, place, party, entered=entered, error=error, no_port=no_port, key=1000 + port)


def test_the_busiest_since_the_last_look_come_by_namespace(table: FakeTable, clock: Clock) -> None:
    """Entries and failed connects count; no more than asked for, and none to which nothing has come."""
    looking = Destinations(cast("Table", table))
    for place, (port, entered, no_port) in enumerate([(80, 5, 0), (81, 23, 0), (82, 0, 101), (83, 0, 0)]):
        counted(table, place, port, entered, no_port=no_port)
    table.put(By.REMOTE, 4095, remote(str(ADDRESS), 84, netns=3), entered=11, key=7)
    table.put(By.REMOTE, 2011, remote(str(ADDRESS), 85), entered=997, key=KEY_BUSY)
    table.put(By.LOCAL_PORT, 0, local_port(86), entered=997)
    assert {0: {82, 81}, 3: {84}} == {netns: {port for _, port in found} for netns, found in looking.look(3).items()}
    clock.now += 1
    assert {} == looking.look(3)
    counted(table, 0, 80, 6)
    assert {0: {(ADDRESS, 80): math.inf}} == looking.look(3)


def test_the_sessions_are_at_most_the_entries_of_two_minutes(table: FakeTable, clock: Clock) -> None:
    """Once so much is known; what came before is over. A place that changed hands counts what its new party has."""
    looking = Destinations(cast("Table", table))
    entered = 0
    for _ in range(60):
        entered += 101
        counted(table, 9, 443, entered)
        sessions = looking.look(5)[0][ADDRESS, 443]
        clock.now += 5.0
        known = clock.now - 1009.0 > SESSION_SECONDS
        assert known or math.isinf(sessions)
    assert SESSION_SECONDS / 5 * 101 <= sessions <= (SESSION_SECONDS + REMEMBER_SECONDS) / 5 * 101
    counted(table, 9, 80, entered + 23, error=entered)
    assert {0: {(ADDRESS, 80): 23.0}} == looking.look(5)


def test_two_places_of_one_party_are_added_up(table: FakeTable, clock: Clock) -> None:
    """Two CPUs may have claimed one each at the same moment."""
    looking = Destinations(cast("Table", table))
    looking.look(5)
    clock.now += SESSION_SECONDS
    counted(table, 8, 443, 20)
    counted(table, 11, 443, 3)
    assert {0: {(ADDRESS, 443): 23.0}} == looking.look(5)


def test_what_is_remembered_does_not_grow(table: FakeTable, clock: Clock) -> None:
    """A count each quarter of a minute, for two minutes."""
    table.memory = mmap.mmap(-1, len(table.memory))
    looking = Destinations(cast("Table", table))
    for _ in range(1009):
        looking.look(5)
        clock.now += 0.5
    assert len(looking._earlier) <= SESSION_SECONDS / REMEMBER_SECONDS + 2  # noqa: SLF001 - there is no other way to see
