"""The collector over a table of plain numbers: every series, and what becomes of a part that fails."""

import dataclasses
import mmap
from collections import Counter as TallyOf
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from tests.table.test_sums import zeros
from tests.table.test_tallies import FakeTable as Tallies
from twctl import __version__
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.config import load
from twctl.daemon.discovery import Discovery
from twctl.daemon.metrics import collector_of
from twctl.daemon.searches import MeasuringSearches
from twctl.daemon.upkeep import Reconciling
from twctl.daemon.work import Work
from twctl.daemon.work_metrics import STATES
from twctl.linux.ports import parse_ports
from twctl.linux.procfs import MaxOrphans, SocketBytes
from twctl.modes.guard import DELAY_EDGES
from twctl.modes.histogram import Histogram
from twctl.modes.truncate import LATENESS_EDGES, Reaper
from twctl.table.connects import CONNECTS
from twctl.table.counters import ACTIONS, LANES, Counters, Reason
from twctl.table.layout import Layout
from twctl.table.maps import Table
from twctl.table.tallies import TALLIES_BYTES

LOCAL, IPV4, LANE = Class.LOCAL, 0, 6


class FakeTable:
    """A table whose counters and cells stand in lists."""

    probe = "tracepoint"

    def __init__(self) -> None:
        self.layout = Layout({family: dict.fromkeys(Class, 256) for family in FAMILIES})
        self.values = zeros()
        self.alive = {(class_, family, lane): 0 for class_ in Class for family in FAMILIES for lane in range(LANES)}
        self.meanwhile: Callable[[], None] = lambda: None  # what happens between one look and the next

    def counters(self) -> Counters:
        """What all CPUs have counted."""
        return Counters({name: tuple(numbers) for name, numbers in self.values.items()})

    def living(self, _now_ns: int) -> dict[tuple[Class, str, int], int]:
        """The cells."""
        self.meanwhile()
        alive = dict(self.alive)
        self.meanwhile()
        return alive

    def has(self, _name: str) -> bool:
        """None of the maps that are there only if they are wanted."""
        return False

    def nested(self) -> int:
        """No event came inside of another."""
        return 0

    def actions(self) -> dict[str, int]:
        """No guard was ever loaded."""
        return dict.fromkeys(ACTIONS, 0)

    def entry(self) -> None:
        """One local IPv4 session of 60 s."""
        self.values["entered"][LOCAL * len(FAMILIES) + IPV4] += 1
        self.values["planned"][LOCAL * LANES + LANE] += 1
        self.values["planned_ticks"][LOCAL * LANES + LANE] += 900
        self.alive[LOCAL, "ipv4", LANE] += 1

    def reset(self) -> None:
        """One of them is over, at once."""
        self.values["withdrawn"][LOCAL * LANES + LANE] += 1
        self.alive[LOCAL, "ipv4", LANE] -= 1
        self.values["ended"][LOCAL * len(Reason) + Reason.RESET] += 1
        self.values["lifetime"][LOCAL * LANES] += 1


class BlamedTable(Tallies, FakeTable):
    """One whose tallies can be written, too."""

    def __init__(self) -> None:
        FakeTable.__init__(self)
        Tallies.__init__(self)

    def has(self, _name: str) -> bool:
        """It measures searches, too."""
        return True

    def map(self, name: str, size: int) -> mmap.mmap:
        """None was made."""
        return mmap.mmap(-1, size) if name == CONNECTS else super().map(name, size)


class FakeNamespaces:
    """One namespace in which nothing happens."""

    def __init__(self, kernel_sockets: Callable[[], int]) -> None:
        self.guard_delays = Histogram(DELAY_EDGES)
        self.one = SimpleNamespace(
            index=0,
            name=None,
            tries=SimpleNamespace(refused=7),
            sockstat=SimpleNamespace(time_wait=kernel_sockets),
            ports=SimpleNamespace(ports=lambda: 0, range=lambda: parse_ports("32768 60999", "40000")),
            max_time_wait=SimpleNamespace(count=lambda: 4096),
            entry_count=SimpleNamespace(overflow=lambda: 5),
        )

    def ask(self, question: Callable[[SimpleNamespace], object]) -> list[object]:
        """It answers."""
        return [question(self.one)]

    def counts(self) -> TallyOf[str]:
        """Nothing has changed."""
        return TallyOf()

    def prefixes(self) -> dict[tuple[Class, str], int]:
        """Three of each class and family."""
        return {(class_, family): 3 for class_ in Class for family in FAMILIES}

    def sysctls_kept(self) -> dict[str, bool]:
        """None was set."""
        return {}

    def guarded_devices(self) -> int:
        """No device has the guard."""
        return 0

    def missing_devices(self) -> int:
        """None needs it."""
        return 0


class FakeDiscovery:
    """It has nothing to discover."""

    def __init__(self, namespaces: FakeNamespaces) -> None:
        self.namespaces = namespaces

    def states(self) -> dict[str, int]:
        """None of any state."""
        return dict.fromkeys(STATES, 0)


def registry(table: FakeTable, kernel_sockets: Callable[[], int] = lambda: 23, blamed: int = 0) -> CollectorRegistry:
    """The metrics of a daemon that observes this table, without those of its own process."""
    config = load(None, {}, default_file=Path("/nowhere")).config
    config = dataclasses.replace(config, blame=dataclasses.replace(config.blame, metrics=blamed))
    idle = SimpleNamespace(rounds=0, errors=0, missing=0, drift={"missing": 0, "stale": 0})
    reaper = SimpleNamespace(errors=0, passed_over=0, lateness={class_: Histogram(LATENESS_EDGES) for class_ in Class})
    discovery = FakeDiscovery(FakeNamespaces(kernel_sockets))
    searches = cast("MeasuringSearches", object()) if table.has(CONNECTS) else None
    work = Work(cast("Reconciling", idle), cast("Discovery", discovery), cast("Reaper", reaper), searches=searches)
    made = CollectorRegistry()
    made.register(collector_of(cast("Table", table), work, config, {"crowded": 3}))
    return made


def series(made: CollectorRegistry) -> dict[str, float]:
    """One scrape, without the zeros."""
    rows = (line.rsplit(" ", 1) for line in generate_latest(made).decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in rows if float(value)}


def test_every_number_of_the_table_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole scrape after 101 entries, 7 resets and 71 expiries; what is 0 is left out here."""
    monkeypatch.setattr("twctl.daemon.work_metrics.socket_bytes", lambda: SocketBytes(mini=256, port=256))
    (tmp_path / "tcp_max_orphans").write_text("65536\n")
    monkeypatch.setattr("twctl.daemon.work_metrics.MaxOrphans", lambda: MaxOrphans(tmp_path / "tcp_max_orphans"))
    sockstat = SimpleNamespace(orphans=lambda: 3, close=lambda: None)
    monkeypatch.setattr("twctl.daemon.work_metrics.Sockstat", lambda: sockstat)
    table = FakeTable()
    for _ in range(101):
        table.entry()
    for _ in range(7):
        table.reset()
    table.alive[LOCAL, "ipv4", LANE] = 23
    tick = 2**26 / 1e9
    found = series(registry(table))
    expected = {
        'twctl_time_wait_entered_total{class="local",family="ipv4"}': 101,
        'twctl_time_wait_sessions{class="local",family="ipv4"}': 23,
        'twctl_time_wait_ended_total{class="local",reason="expired"}': 71,
        'twctl_time_wait_ended_total{class="local",reason="reset"}': 7,
        **{
            f'twctl_time_wait_lifetime_seconds_bucket{{class="local",le="{le}"}}': 78 if le > 60 else 7
            for le in (1.5, 2.5, 9.0, 11.0, 25.0, 55.0, 65.0)
        },
        'twctl_time_wait_lifetime_seconds_bucket{class="local",le="+Inf"}': 78,
        'twctl_time_wait_lifetime_seconds_count{class="local"}': 78,
        'twctl_time_wait_lifetime_seconds_sum{class="local"}': 71 * 900 * tick,
        "twctl_table_bytes": sum(table.layout.bytes(family) for family in FAMILIES),
        "twctl_blame_bytes": TALLIES_BYTES,
        "twctl_classifier_refused_prefixes": 7,
        "twctl_kernel_time_wait_sockets": 23,
        "twctl_kernel_time_wait_socket_bytes": 256,
        'twctl_netns_time_wait_sockets{netns=""}': 23,
        'twctl_netns_time_wait_limit_sockets{netns=""}': 4096,
        'twctl_netns_time_wait_overflow_total{netns=""}': 5,
        "twctl_kernel_orphan_sockets": 3,
        "twctl_kernel_orphan_limit_sockets": 65536,
        'twctl_mode{mode="observe"}': 1,
        'twctl_http_connections_ended_total{reason="crowded"}': 3,
        f'twctl_build_info{{probe="tracepoint",version="{__version__}"}}': 1,
        **{f'twctl_time_wait_seconds{{class="{class_.label}"}}': 60 for class_ in Class},
    }
    for class_ in Class:
        for family in FAMILIES:
            labels = f'{{class="{class_.label}",family="{family}"}}'
            expected |= {f"twctl_table_capacity_sessions{labels}": 256, f"twctl_classifier_prefixes{labels}": 3}
    assert expected == found


def test_a_part_that_fails_is_counted_and_the_rest_is_told() -> None:
    """Own errors come last, so that this scrape's failure is in this scrape."""

    def fail() -> int:
        raise OSError

    made = registry(FakeTable(), fail)
    for scrape in (1, 2):
        text = generate_latest(made).decode()
        assert f"twctl_collect_errors_total {scrape}.0" == text.splitlines()[-1]
        assert 'twctl_mode{mode="observe"} 1.0' in text
        assert "twctl_kernel_time_wait_sockets" not in text
