"""A line for each event: columns, or JSON with the keys of `twctl table --json` and a few more."""

import json
import time
from typing import cast

import pytest

from twctl.classes import Class
from twctl.commands.events import TITLE, People, Wanted, as_json, as_line
from twctl.commands.options import network_of
from twctl.commands.table import Filter
from twctl.table.events import Event, Peers

SOCKET = Peers("192.0.2.1", 4321, "2001:db8::2", 80, 3)
ENTRY = Event(
    time=1.5,
    ended=None,
    adopted=False,
    family="ipv4",
    class_="remote",
    fin_wait2=False,
    lifetime=60.03,
    owner=5,
    socket=SOCKET,
    wire=None,
)
END = ENTRY._replace(ended="reused", lifetime=1.25, fin_wait2=True, wire=SOCKET._replace(remote_port=81))


class Named:
    """Everybody's name needs quoting."""

    def owner(self, number: int) -> str:
        """Of an owner."""
        return f'unit "{number}"'

    def netns(self, index: int) -> str:
        """Of a namespace."""
        return f"ns{index}"


PEOPLE = cast("People", Named())


def test_json_has_the_keys_of_the_table_and_more() -> None:
    """Of an entry the time it is to last, of an end the time it did, and why."""
    entry, end = (json.loads(as_json(each, PEOPLE, 1000.0)) for each in (ENTRY, END))
    assert entry == {
        "event": "entry",
        "time": 1001.5,
        "class": "remote",
        "family": "ipv4",
        "substate": "TIME_WAIT",
        "local": "192.0.2.1",
        "local_port": 4321,
        "remote": "2001:db8::2",
        "remote_port": 80,
        "expires_in": 60.03,
        "lifetime": None,
        "reason": None,
        "owner": 'unit "5"',
        "netns": "ns3",
        "wire": None,
    }
    assert [end[key] for key in ("event", "substate", "lifetime", "expires_in", "reason")] == [
        *("end", "FIN_WAIT2", 1.25),
        *(None, "reused"),
    ]
    assert end["wire"] == {"local": "192.0.2.1", "local_port": 4321, "remote": "2001:db8::2", "remote_port": 81}
    assert json.loads(as_json(ENTRY._replace(adopted=True), PEOPLE, 0.0))["reason"] == "adopted"


def test_a_line_has_the_columns_of_the_title(monkeypatch: pytest.MonkeyPatch) -> None:
    """And behind them what packets have, where that is something else."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    entry, end = (as_line(each, PEOPLE, 3600.0) for each in (ENTRY, END))
    assert entry.startswith("01:00:01.500 entry remote   TIME_WAIT 192.0.2.1:4321        [2001:db8::2]:80 ")
    assert entry.split()[6:8] == ["-", "-"]
    assert end.split()[6:8] == ["1.2s", "reused"]
    assert end.endswith(" ns3  on the wire 192.0.2.1:4321 -> [2001:db8::2]:81\n")
    assert TITLE.index("owner") == entry.index("unit")


def test_the_filters_take_what_they_name() -> None:
    """Each alone."""
    for wanted, takes in (
        (Wanted(Filter()), True),
        (Wanted(Filter(class_=Class.REMOTE, family="ipv4", local_port=4321)), True),
        (Wanted(Filter(remote=network_of("2001:db8::/32"))), True),
        (Wanted(Filter(), 'unit "5"'), True),
        (Wanted(Filter(class_=Class.LOCAL)), False),
        (Wanted(Filter(family="ipv6")), False),
        (Wanted(Filter(local_port=1)), False),
        (Wanted(Filter(remote=network_of("192.0.2.0/24"))), False),
        (Wanted(Filter(), "nobody"), False),
    ):
        assert takes == wanted.takes(PEOPLE)(ENTRY)
