"""What `twctl table` prints, and which sessions the filters let through."""

import dataclasses
import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import cast

import pytest

from tests.table.test_records import IPV4
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.commands.table import Filter, json_lines, lines, sessions
from twctl.config.config import load
from twctl.table.maps import Table
from twctl.table.records import Vestige, decode

NOWHERE = Path("/nowhere/twctl.toml")
ONE = decode("ipv4", IPV4, class_=Class.LOCAL, expires_in=49, age=11, names={})
OTHER = dataclasses.replace(
    ONE,
    family="ipv6",
    class_=Class.REMOTE,
    local=ip_address("2001:db8::7"),
    local_port=40007,
    remote=ip_address("2001:db8::1"),
    expires_in=50.0,
    age=10.0,
)


class FakeTable:
    """Two sessions."""

    def vestiges(self, families: tuple[str, ...]) -> Iterator[Vestige]:
        """Those of these families."""
        return (each for each in (ONE, OTHER) if each.family in families)


TABLE = cast("Table", FakeTable())


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), [ONE, OTHER]),
        (Filter(class_=Class.LOCAL), [ONE]),
        (Filter(class_=Class.LOOPBACK), []),
        (Filter(family="ipv6"), [OTHER]),
        (Filter(remote=ip_network(f"{ONE.remote}/32")), [ONE]),
        (Filter(local_port=OTHER.local_port), [OTHER]),
    ],
)
def test_a_filter_takes_what_it_names(wanted: Filter, expected: list[Vestige]) -> None:
    """And everything where it names nothing."""
    assert expected == list(sessions(TABLE, wanted, None))


def test_in_mode_truncate_a_session_goes_when_its_class_s_time_is_up() -> None:
    """Not when the kernel's timer would fire; a remote one stays as long as that."""
    config = load(None, {"mode": "truncate"}, default_file=NOWHERE).config
    config = dataclasses.replace(config, time_wait=dict(config.time_wait) | {Class.LOCAL: 13.0})
    assert [2.0, 50.0] == [each.expires_in for each in sessions(TABLE, Filter(), config)]


def test_a_session_that_is_overdue_goes_now() -> None:
    """Its next batch is about to come."""
    config = load(None, {"mode": "truncate"}, default_file=NOWHERE).config
    assert 0.0 == next(iter(sessions(TABLE, Filter(family="ipv4"), config))).expires_in


def test_lines_have_a_title_and_fit_80_columns() -> None:
    """IPv6 addresses stand in brackets."""
    told = list(lines(iter([ONE, dataclasses.replace(OTHER, remote=ip_address("2001:db8::1"), remote_port=443)])))
    assert told[0].split() == ["class", "substate", "local", "remote", "expires", "netns"]
    assert "[2001:db8::1]:443" in told[2]
    assert max(map(len, told[:2])) <= 80


def test_json_is_an_object_a_session() -> None:
    """With the keys that scripts know."""
    told = [json.loads(line) for line in json_lines(iter([ONE, OTHER]))]
    assert list(FAMILIES) == [each["family"] for each in told]
    keys = {"family", "class", "substate", "local", "local_port", "remote", "remote_port", "expires_in", "netns"}
    assert keys <= told[0].keys()
