"""What parties are called."""

from ipaddress import ip_address
from typing import Any, cast

import pytest

from tests.table.test_tallies import FakeTable
from twctl.table.maps import Table
from twctl.table.names import Names, user_name
from twctl.table.tallies import OTHER, UNKNOWN, By, LocalPort, Owner, Party, Remote, Tally


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Of a host with one cgroup."""
    monkeypatch.setattr("twctl.table.names.cgroup_paths", lambda: {4711: "/system.slice/nginx.service"})
    return Names(cast("Table", FakeTable()))


PARTIES = [
    (Owner(4711, 33), {"owner": "nginx.service", "cgroup": "/system.slice/nginx.service", "uid": 33}),
    (Owner(4712, None), {"owner": "cgroup 4712", "cgroup": None, "uid": None}),
    (Owner(None, 0), {"owner": "unknown", "cgroup": None, "uid": 0}),
    (UNKNOWN, {"owner": "unknown", "cgroup": None, "uid": None}),
    (OTHER, {"owner": "other", "cgroup": None, "uid": None}),
    (Remote(ip_address("fe80::1%7"), 443, 3), {"remote": "fe80::1%7", "remote_port": 443, "netns": "blue"}),
    (LocalPort(8080, 0), {"local_port": 8080, "netns": ""}),
    (LocalPort(8080, 5), {"local_port": 8080, "netns": "#5"}),
]


@pytest.mark.parametrize(("party", "expected"), PARTIES)
def test_parties_have_names(names: Names, party: Party, expected: dict[str, Any]) -> None:
    """What is gone has a number, what is not known says so."""
    by = By.OWNER if isinstance(party, Owner) else By.REMOTE if isinstance(party, Remote) else By.LOCAL_PORT
    numbers = {"sessions": 5, "entered": 23, "error": 3, "no_port": 1}
    assert {"by": by.value, **expected, **numbers} == names.row(by, Tally(party, 23, 3, 1, 5))


def test_a_user_has_a_name_or_a_number() -> None:
    """And - where it is not known."""
    assert ["root", str(2**32 - 2), "-"] == [user_name(uid) for uid in (0, 2**32 - 2, None)]
