"""The collector over a table of plain numbers: every series, in order, and what changes while it reads."""

from collections.abc import Callable
from typing import cast

from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from tests.test_status import zeros
from twctl import __version__
from twctl.blame import TALLIES_BYTES
from twctl.classes import Class
from twctl.layout import FAMILIES, LANES, Layout
from twctl.metrics import DaemonState, Sums, TwctlCollector
from twctl.table import ACTIONS, Counters, Reason, Table

LOCAL, IPV4, LANE = Class.LOCAL, 0, 5


class FakeTable:
    """A table whose counters and cells stand in lists."""

    def __init__(self) -> None:
        self.layout = Layout({family: dict.fromkeys(Class, 256) for family in FAMILIES})
        self.values = zeros()
        self.alive = {(klass, family, lane): 0 for klass in Class for family in FAMILIES for lane in range(LANES)}
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

    def nested(self) -> int:
        """No event came inside of another."""
        return 0

    def actions(self) -> dict[str, int]:
        """No guard was ever loaded."""
        return dict.fromkeys(ACTIONS, 0)

    def birth(self) -> None:
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


def sums(table: FakeTable) -> Sums:
    """Read it."""
    return Sums.read(cast("Table", table))


def registry(table: FakeTable, kernel_sockets: Callable[[], int] = lambda: 23) -> CollectorRegistry:
    """The metrics of a daemon that observes this table."""
    prefixes = {(klass, family): 3 for klass in Class for family in FAMILIES}
    state = DaemonState("observe", "tracepoint", dict.fromkeys(Class, 60.0), lambda: prefixes, kernel_sockets)
    made = CollectorRegistry()
    made.register(TwctlCollector(cast("Table", table), state))
    return made


def series(made: CollectorRegistry) -> dict[str, float]:
    """One scrape, without the zeros."""
    rows = (line.rsplit(" ", 1) for line in generate_latest(made).decode().splitlines() if line[0] != "#")
    return {name: float(value) for name, value in rows if float(value)}


def test_what_begins_or_ends_while_it_is_read_has_not_expired() -> None:
    """Births and early ends between the counters and the cells are no expiries."""
    table = FakeTable()
    for _ in range(101):
        table.birth()
    for meanwhile in (table.reset, table.birth):
        table.meanwhile = meanwhile
        assert sums(table).ended(LOCAL, Reason.EXPIRED) <= 0
    table.meanwhile = lambda: None
    assert (0, 2) == (sums(table).ended(LOCAL, Reason.EXPIRED), sums(table).ended(LOCAL, Reason.RESET))


def test_a_derived_counter_never_falls() -> None:
    """A scrape in the middle of a birth does not take back an expiry that was told."""
    table = FakeTable()
    for _ in range(23):
        table.birth()
    table.alive[LOCAL, "ipv4", LANE] = 6
    made, row = registry(table), 'twctl_time_wait_ended_total{class="local",reason="expired"}'
    assert series(made)[row] == 17
    table.alive[LOCAL, "ipv4", LANE] = 7  # its cell is there, the rest is still to come
    assert series(made)[row] == 17


def test_every_number_of_the_table_is_told() -> None:
    """The whole scrape after 101 births, 7 resets and 71 expiries; what is 0 is left out here."""
    table = FakeTable()
    for _ in range(101):
        table.birth()
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
        **{f'twctl_time_wait_lifetime_seconds_bucket{{class="local",le="{le}.0"}}': 7 for le in (1, 2, 5, 10, 30)},
        **{f'twctl_time_wait_lifetime_seconds_bucket{{class="local",le="{le}.0"}}': 78 for le in (70, 150)},
        'twctl_time_wait_lifetime_seconds_bucket{class="local",le="+Inf"}': 78,
        'twctl_time_wait_lifetime_seconds_count{class="local"}': 78,
        'twctl_time_wait_lifetime_seconds_sum{class="local"}': 71 * 900 * tick,
        "twctl_table_bytes": sum(table.layout.bytes(family) for family in FAMILIES),
        "twctl_blame_bytes": TALLIES_BYTES,
        "twctl_kernel_time_wait_sockets": 23,
        'twctl_mode{mode="observe"}': 1,
        f'twctl_build_info{{probe="tracepoint",version="{__version__}"}}': 1,
        **{f'twctl_time_wait_seconds{{class="{klass.label}"}}': 60 for klass in Class},
    }
    for klass in Class:
        for family in FAMILIES:
            labels = f'{{class="{klass.label}",family="{family}"}}'
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
