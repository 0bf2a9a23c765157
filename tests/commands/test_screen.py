"""How `twctl top` is laid out, without a terminal."""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import pytest

from tests.commands.test_rankings import OWNERS, REMOTES, batch, peers, reading, record6
from tests.table.test_looks import look
from twctl.classes import Class
from twctl.commands.rankings import SUBJECTS, Order, Subject
from twctl.commands.screen import Choice, block, per_second, screen, shortened
from twctl.commands.top import View
from twctl.table.counters import ACTIONS, CLOSES, Reason
from twctl.table.looks import rates


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
    now.tallies[REMOTES.title, Class.LOCAL].undercount = 12
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
