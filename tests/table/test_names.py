"""What parties are called."""

from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.table.test_tallies import FakeTable
from twctl.linux.pods import PodNames
from twctl.table.maps import Table
from twctl.table.names import CGROUPS_SECONDS, WALKS, Names, user_name
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


UID, ID = "2f4b7c1e-93d0-4a6b-8a57-0c9e5d1f7b23", "a7" * 32
PATH = f"/kubepods/burstable/pod{UID}/{ID}"


class Node:
    """A node whose cgroups and logs come and go, and a clock that a test moves on."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.cgroups, self.walks, self.now = logs, {4711: "/system.slice/nginx.service"}, 0, 0.0
        for folder in ("pods", "containers"):
            (logs / folder).mkdir()

    def walk(self) -> dict[int, str]:
        """What there is."""
        self.walks += 1
        return dict(self.cgroups)

    def names_of(self, *cgroups: int) -> list[str]:
        """What they are called ten seconds later."""
        self.now += CGROUPS_SECONDS
        parties = [Owner(cgroup, 0) for cgroup in cgroups]
        self.names.update(parties)
        return [self.names.owner(party) for party in parties]

    def start(self) -> None:
        """The daemon asks for the first time."""
        self.names = Names(cast("Table", FakeTable()))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    """A node without pods."""
    made = Node(tmp_path)
    monkeypatch.setattr("twctl.table.names.cgroup_paths", made.walk)
    monkeypatch.setattr("twctl.table.names.PodNames", lambda: PodNames(tmp_path))
    monkeypatch.setattr("twctl.table.names.time", SimpleNamespace(monotonic=lambda: made.now, thread_time=lambda: 0.0))
    made.start()
    return made


def test_names_follow_pods_that_come_and_go(node: Node) -> None:
    """A container has its name once the kubelet has written it, and keeps it as long as it has sessions."""
    (node.logs / f"pods/shop_cart_{UID}").mkdir()
    node.cgroups[13] = PATH
    assert ["shop/cart"] == node.names_of(13)
    link = node.logs / f"containers/cart_shop_web-{ID}.log"
    link.touch()
    assert ["shop/cart/web"] == node.names_of(13)
    link.unlink()
    (node.logs / f"pods/shop_cart_{UID}").rmdir()
    del node.cgroups[13]
    node.cgroups[17] = "/system.slice/cron.service"
    assert ["shop/cart/web", "cron.service"] == node.names_of(13, 17)
    assert ["cron.service", "cgroup 19"] == node.names_of(17, 19)
    assert ["cgroup 13"] == node.names_of(13)


def test_what_has_gone_is_not_looked_for_all_the_time(node: Node) -> None:
    """Twice, and again only for what is new; what has a name costs no walk."""
    for _ in range(7):
        assert ["cgroup 23", "nginx.service"] == node.names_of(23, 4711)
    assert 1 + WALKS == node.walks
    node.cgroups[29] = "/system.slice/cron.service"
    for _ in range(7):
        assert ["cgroup 23", "cron.service"] == node.names_of(23, 29)
    assert 1 + WALKS + 1 == node.walks


def test_walks_take_a_share_of_a_cpu_at_most(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took 0.5 s is not repeated for 100 s."""
    taken = iter([0.0, 0.5])
    clock = SimpleNamespace(monotonic=lambda: node.now, thread_time=lambda: next(taken))
    monkeypatch.setattr("twctl.table.names.time", clock)
    node.start()
    node.cgroups[13] = "/system.slice/cron.service"
    for _ in range(9):
        assert ["cgroup 13"] == node.names_of(13)
    taken = iter([0.0, 0.0])
    assert ["cron.service"] == node.names_of(13)
