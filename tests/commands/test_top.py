"""What `twctl top` tells and how it is laid out, without a kernel and without a terminal."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any, cast

import pytest

from tests.table.test_maps import IPV4
from tests.table.test_tallies import FakeTable as Tallies
from tests.table.test_tallies import owner
from twctl.classes import Class
from twctl.commands.screen import Choice, block, per_second, screen, shortened
from twctl.commands.top import SUBJECTS, HeavyHitters, Look, Order, Reader, Reading, Subject, View, ranking, rates
from twctl.table.counters import ACTIONS, CLOSES, DROPPED, Reason
from twctl.table.maps import Table
from twctl.table.records import Batch
from twctl.table.tallies import By

REMOTES, OWNERS, PORTS = SUBJECTS


def look(at: float, **changed: int) -> Look:
    """A moment in which all counters are 0 but these: name_label=count."""
    counters: dict[tuple[str, ...], int] = {}
    for class_ in Class:
        counters |= dict.fromkeys(((name, class_.label) for name in ("entered", "adopted", "restarted")), 0)
        counters |= dict.fromkeys((("ended", class_.label, reason.name.lower()) for reason in Reason), 0)
    counters |= dict.fromkeys((("closed", how) for how in CLOSES), 0)
    counters |= dict.fromkeys((("dropped", why) for why in (*DROPPED, "nested")), 0)
    known = {tuple(name.split("_")): count for name, count in changed.items()}
    return Look(at, counters | known, dict.fromkeys(Class, 1_234_567), dict.fromkeys(Class, 0.5))


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


def test_rates_are_differences_by_time_and_never_negative() -> None:
    """23 in half a second are 46 a second; a number that goes back, and comes back, is 0; what is new has no rate."""
    before = look(10.0, entered_local=100, ended_local_expired=50)
    after = look(10.5, entered_local=123, ended_local_expired=49, guard_absorbed=7).held(before)
    found = rates(before, after)
    assert (46.0, 0.0, 0.0) == (
        found["entered", "local"],
        found["ended", "local", "expired"],
        found["closed", "passive"],
    )
    assert ("guard", "absorbed") not in found
    assert rates(None, after) == {}
    assert rates(after, after) == {}
    back = look(11.0, entered_local=123, ended_local_expired=51).held(after)
    assert (0.0, 2.0) == (rates(after, back)["entered", "local"], rates(after, back)["ended", "local", "expired"])


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
        klasses: ranking(PORTS, now, None, klasses, Order.SESSIONS, 9).rows for klasses in ((*Class,), (*Class,)[2:])
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
    assert 0 < tally.missed <= len(keys) / 1009
    for key in truth:
        assert 0 <= truth[key] - tally.counts[key] <= tally.missed
    assert {b"often%d" % i for i in range(101)} <= set(tally.counts)


def test_all_ports_have_room_and_are_counted_exactly() -> None:
    """65,536 keys lose nothing."""
    tally = HeavyHitters()
    for _ in range(2):
        tally.add(port.to_bytes(2, "big") for port in range(65536))
    assert (0, 65536, {2}) == (tally.missed, len(tally.counts), set(tally.counts.values()))


class FakeTable(Tallies):
    """Three steps of one session each."""

    def steps(self, family: str) -> int:
        """Only IPv4."""
        return 3 if family == "ipv4" else 0

    def batches(self, family: str) -> Iterator[list[Batch]]:
        """One session a step, of the owners 0, 1 and 2."""
        return iter([[batch(Class.LOCAL, peers({i: 1}), owner=i)] for i in range(self.steps(family))])


def test_a_reading_goes_on_where_it_stopped() -> None:
    """A look without time reads one step; what is shown is the last reading that is whole."""
    reader = Reader(cast("Table", FakeTable()))
    seen = []
    for _ in range(8):
        reader.read(0.0, lambda: False)
        latest = reader.readings[0]
        seen.append((round(reader.progress, 2), latest.sessions.total() if latest else None))
    assert [(0.33, None), (0.67, None), (1.0, None), (0.0, 3), (0.33, 3), (0.67, 3), (1.0, 3), (0.0, 3)] == seen
    assert reader.readings[1] is not None
    reader.read(9.0, lambda: True)
    assert reader.progress == pytest.approx(1 / 3)
    reader.read(9.0, lambda: False)
    assert reader.progress == 0


def test_owners_have_names_when_a_reading_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit and user of those that have a place, and else what `twctl blame` calls them."""
    monkeypatch.setattr("twctl.table.names.cgroup_paths", lambda: {4711: "/system.slice/nginx.service"})
    table = FakeTable()
    table.put(By.OWNER, 0, owner(4711, 0), entered=23)
    reader = Reader(cast("Table", table))
    reader.read(9.0, lambda: False)
    now = reader.readings[0]
    assert now
    found = ranking(OWNERS, now, None, Class, Order.SESSIONS, 9).rows
    assert [("nginx root", 1), ("other", 1), ("unknown", 1)] == [(row.name, row.sessions) for row in found]


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


def view(**changed: object) -> View:
    """A busy moment: large numbers everywhere."""
    six = [record6(bytes([0x20, 1, 0xD, 0xB8, *range(0xA0, 0xAC)]), 65535, 1) for _ in range(11)]
    now = reading(9.0, batch(Class.LOOPBACK, peers(dict.fromkeys(range(100), 3))), batch(Class.LOCAL, six, "ipv6", 1))
    counters: dict[str, int] = {f"guard_{action}": 10**7 for action in ACTIONS} | {"dropped_contention": 3}
    before, after = look(9.0), look(10.0, **counters, entered_local=98_765, ended_local_truncated=98_765)
    given: dict[str, Any] = {
        "clock": 0.0,
        "state": "vestigial, tracepoint probe, daemon running",
        "look": after,
        "rates": {**rates(before, after)} | dict.fromkeys(after.counters, 98_765.4),
        "readings": (now, reading(8.0)),
    }
    return View(**(given | changed))


def texts(found: Iterable[list[tuple[str, str]]]) -> list[str]:
    """Lines without styles."""
    return ["".join(text for text, _ in line) for line in found]


SIZES = [(80, 24), (60, 20), (200, 50), (40, 10), (10, 3), (1, 1), (80, 5)]
CHOICES = [Choice(), Choice(help=True), Choice(Class.LOCAL, Order.GROWTH, 0, paused=True), Choice(alone=1)]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_screen_has_its_size_whatever_it_shows(width: int, height: int, choice: Choice) -> None:
    """Exactly so many lines, none too wide, keys on the last; also before the first reading, and without a table."""
    early = view(readings=(None, None), rates={})
    for each in (view(), early, view(look=None, state="no table is pinned at /sys/fs/bpf/twctl " * 5)):
        lines = texts(screen(each, choice, width, height))
        assert height == len(lines)
        assert max(map(len, lines)) <= width
        assert lines[-1].startswith(("any key: back" if choice.help else "q quit")[:width])


def test_80_columns_and_24_lines_have_room_for_all_of_it() -> None:
    """Every word of the titles, five rows of both lists beside guard and losses, and every key."""
    lines = texts(screen(view(), Choice(), 80, 24))
    text = "\n".join(lines)
    for word in ("restarted/s", *(reason.name.lower() for reason in Reason), *CLOSES, "LOST: contention 3", "? help"):
        assert word in text
    top = lines.index(next(line for line in lines if line.startswith("remote endpoint")))
    assert len(lines[top + 1 : -1]) >= 5
    assert "of 311 sessions, read 1 s ago" in lines
    ipv6 = next(line for line in lines if line.startswith("["))
    assert "]:65535 " in ipv6
    assert ".." in ipv6
    assert "nginx root " in text
    alone = "\n".join(texts(screen(view(), Choice(alone=0), 80, 24)))
    assert "[2001:db8:a0a1:a2a3:a4a5:a6a7:a8a9:aaab]:65535 " in alone


@pytest.mark.parametrize(("width", "titles"), [(80, (REMOTES, OWNERS)), (111, (REMOTES, OWNERS)), (112, SUBJECTS)])
def test_wide_terminals_show_all_lists(width: int, titles: Iterable[Subject]) -> None:
    """Below 112 columns local ports are for the key l; names of usual length are whole in either case."""
    lines = texts(screen(view(), Choice(), width, 30))
    title = next(line for line in lines if line.startswith("remote endpoint"))
    assert [each.title for each in titles] == [each.title for each in SUBJECTS if each.title in title]
    assert "255.255.255.255:65535" == shortened("255.255.255.255:65535", title.index("sessions") - 2)
    for i, each in enumerate(SUBJECTS):
        alone = texts(screen(view(), Choice(alone=i), width, 30))
        assert any(line.startswith(each.title) for line in alone)


def test_where_not_all_reasons_have_room_those_that_were_stay() -> None:
    """In 60 columns `truncated`, of which there were some, comes first."""
    assert next(line for line in texts(screen(view(), Choice(), 60, 20)) if line.startswith("ended/s")).split()[:2] == [
        "ended/s",
        "truncated",
    ]


def test_plain_text_is_the_same_without_styles_and_keys() -> None:
    """No escape codes, no trailing blanks, 80 columns."""
    text = block(view(), Choice(), 80)
    assert "\x1b" not in text
    assert "q quit" not in text
    assert all(line == line.rstrip() and len(line) <= 80 for line in text.splitlines())
    assert "of 311 sessions, read 1 s ago" in text.splitlines()
    first = [line.split("  ")[0] for line in text.splitlines()]
    assert first.index("remote endpoint") < first.index("local port")  # no key could show them


def test_what_a_count_may_be_too_low_by_is_said() -> None:
    """Of the list that it is true of."""
    now = view().readings[0]
    assert now
    now.tallies[REMOTES.title, Class.LOCAL].missed = 12
    assert "of 311 sessions, read 1 s ago; remote endpoint: up to 12 more" in texts(
        screen(view(readings=(now, None)), Choice(), 80, 24)
    )


def test_keys_change_what_is_shown() -> None:
    """Sorts, classes and lists in turn, a stop; anything leaves the help, and nothing else changes anything."""
    start = Choice()
    assert [Order.GROWTH, Order.NAME, Order.SESSIONS] == [start.after(key).order for key in "gns"]
    found, classes = start, []
    for _ in range(4):
        found = found.after("c")
        classes.append(found.class_)
    assert [*Class, None] == classes
    assert [0, 1, 2, None] == [reduce(Choice.after, "l" * n, start).alone for n in range(1, 5)]
    assert (True, False) == (start.after(" ").paused, start.after(" ").after(" ").paused)
    assert start.after("?").help
    assert start.after("h").after("g") == start
    assert start.after("x") == start


@pytest.mark.parametrize("width", range(7, 50))
def test_a_name_that_is_cut_keeps_its_port(width: int) -> None:
    """Never longer than it may be."""
    name = "[2001:db8:a0a1:a2a3:a4a5:a6a7:a8a9:aaab]:65535"
    found = shortened(name, width)
    assert len(found) <= width
    assert found.endswith("]:65535")
    assert (found == name) == (width >= len(name))
    assert shortened("192.0.2.1:443", 21) == "192.0.2.1:443"


def test_rates_take_few_characters() -> None:
    """One decimal below 10, none above, and a sign where it is growth."""
    rows = (None, 0.0, 0.25, 9.96, 12345.6)
    assert ["-", "0", "0.2", "10.0", "12,346"] == [per_second(each) for each in rows]
    assert ["+0.5", "-1,235"] == [per_second(each, "+") for each in (0.5, -1234.5678)]


@pytest.mark.parametrize("module", ["commands.cli", "daemon.main", "commands.status"])
def test_nothing_else_loads_what_it_draws_with(module: str) -> None:
    """Neither the daemon nor another noun has rich in its memory."""
    program = f"import sys, twctl.{module}; print([each for each in sys.modules if each.split('.')[0] == 'rich'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
