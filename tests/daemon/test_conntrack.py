"""The task that looks at conntrack, and what a scrape tells of it, with namespaces of a test's own."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from twctl.daemon.conntrack import WatchingConntrack
from twctl.daemon.families import Metric
from twctl.daemon.ports import PORTS_SECONDS
from twctl.daemon.work import Work
from twctl.daemon.work_metrics import conntrack_metrics
from twctl.errors import TwctlError
from twctl.linux.conntrack import Fill
from twctl.modes.translation import PORTS, Translation

FILLS = {
    "": Fill(40009, 262144, {"insert_failed": 23, "drop": 0, "early_drop": 7}),
    "blue": Fill(17, 65536, None),
}


def translation(netns: str, remote: str, taken: int) -> Translation:
    """Toward port 443."""
    return Translation(netns, "10.9.0.1", remote, 443, taken, 0)


WORST = {
    "": [translation("", "10.9.0.2", PORTS // 2), translation("", "fd09::2", 4001)],
    "blue": [translation("blue", "10.9.0.3", PORTS // 4)],
}


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> WatchingConntrack:
    """Three namespaces: one has no conntrack, one goes while it is looked at."""

    def look(netns: str, most: int) -> tuple[Fill | None, list[Translation]]:
        if netns == "gone":
            raise TwctlError("cannot enter", "try again")
        return FILLS.get(netns), WORST.get(netns, [])[:most]

    monkeypatch.setattr("twctl.daemon.conntrack.look", look)
    monkeypatch.setattr("twctl.daemon.conntrack.inside", lambda _, make: make())
    names = [SimpleNamespace(name=name, path=name) for name in (None, "gone", "bare", "blue")]
    return WatchingConntrack(cast("Any", names), 2)


def test_the_worst_of_all_namespaces_are_told(watching: WatchingConntrack) -> None:
    """As many as are asked for; each fill by its namespace."""
    assert watching.run() == PORTS_SECONDS
    assert FILLS == watching.fills
    assert [WORST[""][0], WORST["blue"][0]] == watching.translations


def test_a_look_that_takes_long_is_not_repeated_soon(
    watching: WatchingConntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three namespaces with 0.1 s each: 0.75 % of a CPU."""
    clock = iter(range(100))
    monkeypatch.setattr("twctl.daemon.conntrack.time", SimpleNamespace(thread_time=lambda: next(clock) / 10))
    assert watching.run() == pytest.approx(0.3 / 0.0075, rel=0.02)


class Found(Collector):
    """What conntrack_metrics yields."""

    def __init__(self, watching: WatchingConntrack) -> None:
        self._work = cast("Work", SimpleNamespace(conntrack=watching))

    def describe(self) -> list[Metric]:
        """Nothing: registering must not scrape."""
        return []

    def collect(self) -> list[Metric]:
        """All families."""
        return list(conntrack_metrics(self._work))


def test_a_scrape_tells_what_was_found(watching: WatchingConntrack) -> None:
    """Counters only where the kernel shows them."""
    watching.run()
    registry = CollectorRegistry()
    registry.register(Found(watching))
    rows = (line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if line[0] != "#")
    where = 'local="10.9.0.1",netns="{}",remote="{}",remote_port="443"'
    assert {name: float(value) for name, value in rows} == {
        'twctl_conntrack_entries{netns=""}': 40009,
        'twctl_conntrack_entries{netns="blue"}': 17,
        'twctl_conntrack_limit_entries{netns=""}': 262144,
        'twctl_conntrack_limit_entries{netns="blue"}': 65536,
        'twctl_conntrack_refused_total{netns="",reason="insert_failed"}': 23,
        'twctl_conntrack_refused_total{netns="",reason="drop"}': 0,
        'twctl_conntrack_refused_total{netns="",reason="early_drop"}': 7,
        f"twctl_translated_ports_used_ratio{{{where.format('', '10.9.0.2')}}}": 0.5,
        f"twctl_translated_ports_used_ratio{{{where.format('blue', '10.9.0.3')}}}": 0.25,
    }
