"""Parties and their names, from tallies and sessions that a test wrote down, and from a hierarchy of its own."""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import cast

import pytest

from tests.table.test_sums import zeros
from twctl.classes import Class
from twctl.table.counters import Counters
from twctl.table.maps import Table
from twctl.table.records import Batch
from twctl.table.tallies import (
    KEY_BUSY,
    LINE,
    LINES,
    NO_UID,
    OTHER,
    OWNER_OTHER,
    OWNER_UNKNOWN,
    PLACE,
    PLACES,
    PLACES_AT,
    TALLIES_BYTES,
    UNKNOWN,
    By,
    LocalPort,
    Owner,
    Remote,
    Tally,
    main_owners,
    on_the_wire,
    places_of,
    ranking,
)


def owner(cgroup: int, uid: int) -> bytes:
    """Struct party of an owner."""
    return cgroup.to_bytes(8, "little") + bytes(12) + uid.to_bytes(4, "little")


def remote(address: str, port: int, netns: int = 0, scope: int = 0) -> bytes:
    """Struct party of a remote endpoint."""
    packed = ip_address(address).packed
    family = int(len(packed) > 4)
    return packed.ljust(16, b"\0") + port.to_bytes(2, "big") + bytes([family, netns]) + scope.to_bytes(4, "little")


def local_port(port: int, netns: int = 0) -> bytes:
    """Struct party of a local port."""
    return bytes(16) + port.to_bytes(2, "big") + bytes([0, netns]) + bytes(4)


class FakeTable:
    """A table whose tallies and sessions a test fills in."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, TALLIES_BYTES)
        self.found: list[Batch] = []
        self.values = zeros()
        self.meanwhile: Callable[[], None] = lambda: None  # what happens while sessions are counted

    def put(  # noqa: PLR0913 - keywords
        self, by: By, place: int, party: bytes, *, entered: int, error: int = 0, no_port: int = 0, key: int = 7
    ) -> None:
        """Write a party into a place, counted over all lines of the kind."""
        at = (list(By).index(by) * LINES + place // PLACES) * LINE.size
        for row, number in enumerate((key, entered)):
            begin = at + 8 * (row * PLACES + place % PLACES)
            self.memory[begin : begin + 8] = number.to_bytes(8, "little")
        PLACE.pack_into(self.memory, at + PLACES_AT + place % PLACES * PLACE.size, no_port, error, party)

    def map(self, name: str, size: int) -> mmap.mmap:
        """Only the tallies are asked for."""
        assert (name, size) == ("tallies", TALLIES_BYTES)
        return self.memory

    def counters(self) -> Counters:
        """What all CPUs have counted."""
        return Counters({name: tuple(numbers) for name, numbers in self.values.items()})

    def batches(self, family: str) -> Iterator[list[Batch]]:
        """The sessions, in one step."""
        self.meanwhile()
        yield [each for each in self.found if each.family == family]

    def enrolments(self) -> dict[int, tuple[int, str]]:
        """Two namespaces, one of them twctl's own."""
        return {0: (1, ""), 3: (2, "blue")}

    def live(
        self,
        owners: Sequence[int],
        records: Sequence[bytes],
        family: str = "ipv4",
        wires: Mapping[int, bytes] | None = None,
    ) -> None:
        """Sessions with these owners and of these records."""
        slots = list(range(len(owners)))
        self.found.append(Batch(family, Class.LOCAL, slots, list(owners), list(records), wires or {}))


def record(remote: str, port: int, local_port: int, netns: int = 0, scope: int = 0) -> bytes:
    """Struct vestige4 or vestige6, where a party is seen."""
    address = ip_address(remote).packed
    ports = local_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    tail = bytes(18) + bytes([netns, 0])
    ipv6 = scope.to_bytes(4, "little") + bytes(4) if len(address) > 4 else b""
    return bytes(len(address)) + address + ports + tail + ipv6


@pytest.fixture
def table() -> FakeTable:
    """An empty one."""
    return FakeTable()


def ranked(table: FakeTable, by: By, count: int = 10) -> list[Tally]:
    """The ranking of a fake table."""
    return ranking(cast("Table", table), by, count)


def test_places_tell_number_entries_error_and_failures(table: FakeTable) -> None:
    """Of each kind its own; the number is the place + 1; free places, and those just being taken, are no parties."""
    table.put(By.OWNER, 0, owner(4711, 0), entered=23, error=999, no_port=3)
    table.put(By.OWNER, 1, owner(4712, 0), entered=5, key=0)
    table.put(By.OWNER, 2, owner(4713, 0), entered=5, key=KEY_BUSY)
    table.put(By.OWNER, LINES * PLACES - 1, owner(4714, 1), entered=101)
    table.put(By.REMOTE, 9, remote("192.0.2.1", 443), entered=11, error=2)
    found = [row[:1] + row[2:] for row in places_of(table.memory, By.OWNER)]
    assert [(1, 23, 0, 3), (LINES * PLACES, 101, 0, 0)] == found  # of an owner the error is a tick, and none
    assert [(10, 11, 2, 0)] == [row[:1] + row[2:] for row in places_of(table.memory, By.REMOTE)]
    assert [] == list(places_of(table.memory, By.LOCAL_PORT))


def test_two_places_of_one_party_are_added_up(table: FakeTable) -> None:
    """Two CPUs may have claimed a place each at the same moment."""
    for place, entries, error in ((8, 20, 1), (11, 3, 2)):
        table.put(By.REMOTE, place, remote("192.0.2.1", 443), entered=entries, error=error, no_port=1)
    one = ip_address("192.0.2.1")
    assert [Tally(Remote(one, 443, 0), 23, 3, 2, 0)] == ranked(table, By.REMOTE)


def test_two_places_of_one_owner_have_the_sessions_of_both(table: FakeTable) -> None:
    """Vestiges refer to either place."""
    for place, entries in ((0, 20), (3, 3)):
        table.put(By.OWNER, place, owner(4711, 1000), entered=entries)
    table.live([1, 4, 4], [record("192.0.2.1", 443, 40000 + i) for i in range(3)])
    table.values["entered"][0] = 23
    assert [Tally(Owner(4711, 1000), 23, 0, 0, 3)] == ranked(table, By.OWNER)


def test_parties_are_what_the_bytes_say(table: FakeTable) -> None:
    """Numbers of 64 bits, users that are not known, IPv4 and IPv6, link-local addresses with their device."""
    table.put(By.OWNER, 0, owner(2**33 + 1, 65534), entered=3)
    table.put(By.OWNER, 1, owner(0, NO_UID), entered=2)
    table.put(By.OWNER, 2, owner(0, 0), entered=1)
    table.values["entered"][0] = 6
    expected = [Owner(2**33 + 1, 65534), Owner(None, None), Owner(None, 0)]
    assert expected == [row.party for row in ranked(table, By.OWNER)]
    table.put(By.REMOTE, 0, remote("192.0.2.1", 443, 3), entered=3)
    table.put(By.REMOTE, 1, remote("2001:db8::1", 8443), entered=2)
    table.put(By.REMOTE, 2, remote("fe80::1", 80, 3, 7), entered=1)
    found = [row.party for row in ranked(table, By.REMOTE)]
    assert [("192.0.2.1", 443, 3), ("2001:db8::1", 8443, 0), ("fe80::1%7", 80, 3)] == [
        (str(each.address), each.port, each.netns) for each in found if isinstance(each, Remote)
    ]
    table.put(By.LOCAL_PORT, 0, local_port(8080, 3), entered=1)
    assert [LocalPort(8080, 3)] == [row.party for row in ranked(table, By.LOCAL_PORT)]


def test_the_most_sessions_stand_first_then_the_most_entries(table: FakeTable) -> None:
    """Parties without a place have sessions and no entries; those with nothing are left out; and so many, no more."""
    table.put(By.REMOTE, 0, remote("192.0.2.1", 443), entered=1009)
    table.put(By.REMOTE, 1, remote("192.0.2.2", 443), entered=23)
    table.put(By.REMOTE, 2, remote("192.0.2.3", 443), entered=0)
    table.put(By.REMOTE, 3, remote("192.0.2.4", 443), entered=0, no_port=7)
    table.put(By.REMOTE, 4, remote("fe80::1", 443, scope=2), entered=2)
    table.live([0] * 3, [record("192.0.2.2", 443, port) for port in range(3)])
    table.live([0] * 5, [record("192.0.2.9", 443, port) for port in range(5)])
    table.live([0] * 2, [record("fe80::1", 443, port, scope=2) for port in range(2)], "ipv6")
    expected = [
        ("192.0.2.9", 5, None, 0),
        ("192.0.2.2", 3, 23, 0),
        ("fe80::1%2", 2, 2, 0),
        ("192.0.2.1", 0, 1009, 0),
        ("192.0.2.4", 0, 0, 7),
    ]
    found = ranked(table, By.REMOTE)
    assert expected == [
        (str(row.party.address), row.sessions, row.entered, row.no_port)
        for row in found
        if isinstance(row.party, Remote)
    ]
    assert found[:2] == ranked(table, By.REMOTE, 2)


def test_local_ports_are_told_apart_by_namespace_not_by_family(table: FakeTable) -> None:
    """A port that serves IPv4 and IPv6 is one; in another namespace it is another."""
    table.put(By.LOCAL_PORT, 0, local_port(443), entered=5)
    table.live([0] * 2, [record("192.0.2.1", port, 443) for port in range(2)])
    table.live([0], [record("2001:db8::1", 1, 443)], "ipv6")
    table.live([0], [record("192.0.2.1", 9, 443, 3)])
    assert [Tally(LocalPort(443, 0), 5, 0, 0, 3), Tally(LocalPort(443, 3), None, 0, 0, 1)] == ranked(
        table, By.LOCAL_PORT
    )


def test_what_no_owner_counts_is_others_or_unknown(table: FakeTable) -> None:
    """`other` has what the counters know beyond the places, and places that were given up; `unknown`: taken over."""
    table.put(By.OWNER, 0, owner(4711, 0), entered=20, no_port=1)
    table.values["entered"][0] = 23
    table.values["no_port"][0] = 12
    table.live([1, OWNER_UNKNOWN, OWNER_OTHER, 77, 1, 1], [record("192.0.2.1", 443, port) for port in range(6)])
    expected = [Tally(Owner(4711, 0), 20, 0, 1, 3), Tally(OTHER, 3, 0, 11, 2), Tally(UNKNOWN, 0, 0, 0, 1)]
    assert expected == ranked(table, By.OWNER)


def test_what_comes_while_it_is_read_is_nobody_elses(table: FakeTable) -> None:
    """An entry between the counters and the places, or while sessions are counted, is no entry of `other`."""
    table.put(By.OWNER, 0, owner(4711, 0), entered=23)
    table.values["entered"][0] = 22
    table.meanwhile = lambda: table.values["entered"].__setitem__(0, 40)
    assert [Tally(Owner(4711, 0), 23, 0, 0, 0)] == ranked(table, By.OWNER)


def test_the_main_owner_of_each_endpoint_and_port(table: FakeTable) -> None:
    """By the sessions that are alive; whoever has none has no owner."""
    table.put(By.OWNER, 0, owner(4711, 0), entered=2)
    table.put(By.OWNER, 1, owner(4712, 0), entered=1)
    web, other = Remote(ip_address("192.0.2.1"), 443, 0), Remote(ip_address("192.0.2.2"), 443, 0)
    table.live([1, 2, 1], [record("192.0.2.1", 443, port) for port in (40000, 40001, 40002)])
    table.live([2], [record("2001:db8::1", 443, 80)], "ipv6")
    found = cast(Table, table)
    assert {web: Owner(4711, 0)} == main_owners(found, By.REMOTE, [web, other])
    six = Remote(ip_address("2001:db8::1"), 443, 0)
    assert {six: Owner(4712, 0)} == main_owners(found, By.REMOTE, [six])
    assert {LocalPort(80, 0): Owner(4712, 0)} == main_owners(found, By.LOCAL_PORT, [LocalPort(80, 0)])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_where_a_service_s_sessions_go_is_counted_by_endpoints_on_the_wire(table: FakeTable, family: str) -> None:
    """Only of those that were asked for, and where it is another endpoint: SNAT alone changes none."""
    service, one, other = (
        ("192.0.2.1", "10.0.1.5", "10.0.1.6") if family == "ipv4" else ("fd00::1", "fd01::5", "fd01::6")
    )
    seen = [record(service, 80, 40000 + i) for i in range(5)] + [record(one, 8080, 41000)]
    wires = {i: record(one if i else other, 8080, 50000 + i) for i in range(4)} | {5: record(one, 8080, 50005)}
    table.live([1] * 6, seen, family, wires)
    asked = [Remote(ip_address(service), 80, 0), Remote(ip_address(one), 8080, 0)]
    expected = {Remote(ip_address(one), 8080, 0): 3, Remote(ip_address(other), 8080, 0): 1}
    assert {asked[0]: expected, asked[1]: {}} == on_the_wire(cast("Table", table), asked)
