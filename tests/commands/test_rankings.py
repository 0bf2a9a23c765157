"""Who has the most sessions, of records that a test wrote down."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

from tests.table.test_records import IPV4
from twctl.classes import Class
from twctl.commands.rankings import SUBJECTS, HeavyHitters, Order, Reading, ranking
from twctl.table.records import Batch

REMOTES, OWNERS, PORTS = SUBJECTS


def record(remote: int, port: int, local_port: int) -> bytes:
    """An IPv4 vestige with the peer 192.0.2.N."""
    return IPV4[:4] + bytes([192, 0, 2, remote]) + local_port.to_bytes(2, "big") + port.to_bytes(2, "big") + IPV4[12:]


def record6(address: bytes, port: int, local_port: int) -> bytes:
    """An IPv6 vestige."""
    return bytes(16) + address + local_port.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(28)


def batch(class_: Class, records: Iterable[bytes], family: str = "ipv4", owner: int = 0) -> Batch:
    """Sessions of a class, all of one owner."""
    found = list(records)
    return Batch(family, class_, list(range(len(found))), [owner] * len(found), found)


OWNER_NAMES = {0: "unknown", 1: "nginx root", 2: "app alice", 3: "nginx root"}


def reading(ended: float, *batches: Batch) -> Reading:
    """A walk that met these."""
    made = Reading(ended - 0.25, ended)
    for each in batches:
        made.add(each)
    made.name_owners(OWNER_NAMES)
    return made


def peers(counts: Mapping[int, int]) -> list[bytes]:
    """As many sessions with each 192.0.2.N:443, each on a port of its own."""
    ports = itertools.count(40000)
    return [record(remote, 443, next(ports)) for remote, count in counts.items() for _ in range(count)]


def names(order: Order, now: Reading, before: Reading | None, rows: int = 9) -> list[tuple[str, int, float | None]]:
    """The rows of remote endpoints."""
    found = ranking(REMOTES, now, before, Class, order, rows).rows
    return [(row.name.removesuffix(":443"), row.sessions, row.growth) for row in found]


def test_a_list_has_the_most_first_and_equal_ones_by_name() -> None:
    """Whatever order the table has."""
    now = reading(5.0, batch(Class.LOCAL, peers({9: 7, 200: 7, 3: 23, 4: 1})))
    expected = [("192.0.2.3", 23, None), ("192.0.2.9", 7, None), ("192.0.2.200", 7, None), ("192.0.2.4", 1, None)]
    assert expected == names(Order.SESSIONS, now, None)
    assert expected[:2] == names(Order.SESSIONS, now, None, rows=2)
    assert names(Order.SESSIONS, now, None, rows=0) == []
    assert names(Order.SESSIONS, reading(5.0), None) == []


def test_growth_is_what_came_since_the_reading_before() -> None:
    """By growth a small one that grows stands above a large one that shrinks."""
    before = reading(3.0, batch(Class.LOCAL, peers({1: 23, 2: 2})))
    now = reading(5.0, batch(Class.LOCAL, peers({1: 13, 2: 7, 3: 3})))
    assert [("192.0.2.2", 7, 2.5), ("192.0.2.3", 3, 1.5), ("192.0.2.1", 13, -5.0)] == names(Order.GROWTH, now, before)
    assert [13, 7, 3] == [count for _, count, _ in names(Order.SESSIONS, now, before)]
    assert [13, 7, 3] == [count for _, count, _ in names(Order.GROWTH, now, None)]


def test_by_name_are_those_with_the_most_in_the_order_of_their_names() -> None:
    """Addresses as numbers, IPv4 first."""
    six = [record6(bytes([0xFD] + [0] * 15), 443, port) for port in range(11)]
    now = reading(5.0, batch(Class.LOCAL, peers({200: 7, 9: 13, 4: 1})), batch(Class.LOCAL, six, "ipv6"))
    assert [("192.0.2.9", 13), ("192.0.2.200", 7), ("[fd00::]", 11)] == [
        row[:2] for row in names(Order.NAME, now, None, rows=3)
    ]


def test_lists_count_the_classes_that_are_asked_for() -> None:
    """A local port that serves two classes has both, or one."""
    now = reading(
        5.0,
        batch(Class.LOCAL, [record(1, port, 443) for port in range(7)]),
        batch(Class.REMOTE, [record(2, port, 443) for port in range(13)]),
        batch(Class.REMOTE, [record(2, 1, 80)]),
    )
    found = {
        classes: ranking(PORTS, now, None, classes, Order.SESSIONS, 9).rows for classes in ((*Class,), (*Class,)[2:])
    }
    assert [[("443", 20), ("80", 1)], [("443", 13), ("80", 1)]] == [
        [(row.name, row.sessions) for row in rows] for rows in found.values()
    ]
    assert {Class.LOCAL: 7, Class.REMOTE: 14} == now.sessions


def test_a_tally_in_bounded_memory_is_too_low_by_no_more_than_it_says() -> None:
    """Of 100,003 keys, 101 of which come often, it keeps the 101."""
    tally, truth = HeavyHitters(kept=1009), Counter[bytes]()
    often = [b"often%d" % (i % 101) for i in range(30_011)]
    keys = [each for i in range(100_003) for each in (b"once%d" % i, *often[i : i + 1])]
    for i in range(0, len(keys), 503):
        tally.add(keys[i : i + 503])
        truth.update(keys[i : i + 503])
        assert len(tally.counts) <= 2 * 1009
    assert 0 < tally.undercount <= len(keys) / 1009
    for key in truth:
        assert 0 <= truth[key] - tally.counts[key] <= tally.undercount
    assert {b"often%d" % i for i in range(101)} <= set(tally.counts)


def test_all_ports_have_room_and_are_counted_exactly() -> None:
    """65,536 keys lose nothing."""
    tally = HeavyHitters()
    for _ in range(2):
        tally.add(port.to_bytes(2, "big") for port in range(65536))
    assert (0, 65536, {2}) == (tally.undercount, len(tally.counts), set(tally.counts.values()))


def test_two_places_of_one_owner_are_one_row_and_names_are_sorted_as_text() -> None:
    """By name app stands before nginx, however long they are."""
    now = reading(
        5.0,
        batch(Class.LOCAL, peers({1: 7}), owner=1),
        batch(Class.REMOTE, peers({2: 5}), owner=3),
        batch(Class.LOCAL, peers({3: 11}), owner=2),
        batch(Class.LOCAL, peers({3: 1})),
    )
    app, nginx, unknown = ("app alice", 11), ("nginx root", 12), ("unknown", 1)
    for order, expected in ((Order.SESSIONS, [nginx, app, unknown]), (Order.NAME, [app, nginx, unknown])):
        found = ranking(OWNERS, now, None, Class, order, 9).rows
        assert expected == [(row.name, row.sessions) for row in found]
    alone = ranking(OWNERS, now, None, [Class.REMOTE], Order.SESSIONS, 9).rows
    assert [("nginx root", 5)] == [(row.name, row.sessions) for row in alone]
