"""Prometheus metrics, read from the pinned maps at scrape time."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from twctl import __version__
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.modes.headroom import Use
from twctl.modes.truncate import LATENESS_EDGES, Lateness
from twctl.table.layout import LANES
from twctl.table.maps import CLOSES, DROPPED, LANE_SECONDS, MODES, TICK, Counters, Reason, Table
from twctl.table.tallies import TALLIES_BYTES, By, Names, most_entered

Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily

# Of network namespaces: something stands in the way, or there is no room.
STATES = ("enrolled", "refused", "beyond_capacity")
# Series of parties: the name's beginning, and labels, which are words of Names.row.
BLAMED = {
    By.OWNER: ("owner", ("owner", "cgroup", "uid")),
    By.REMOTE: ("remote", ("remote", "remote_port", "netns")),
    By.LOCAL_PORT: ("local_port", ("local_port", "netns")),
}
CLASS_FAMILY = [(class_, family) for class_ in Class for family in FAMILIES]


@dataclass
class DaemonState:
    """What the daemon knows and no map holds. Plain numbers, written by its one thread."""

    mode: str
    probe: str
    time_wait: dict[Class, float]
    prefixes: Callable[[], dict[tuple[Class, str], int]]
    kernel_sockets: Callable[[], int]
    route_changes: Callable[[], int] = lambda: 0
    route_resyncs: Callable[[], int] = lambda: 0
    prefixes_refused: Callable[[], int] = lambda: 0
    reconciliations: int = 0
    drift: dict[str, int] = field(default_factory=lambda: {"missing": 0, "stale": 0})
    reconcile_errors: int = 0
    unseen: int = 0  # entries that no probe saw
    lateness: Mapping[Class, Lateness] = field(default_factory=lambda: {class_: Lateness() for class_ in Class})
    destroy_refused: Callable[[], int] = lambda: 0
    namespaces: Callable[[], Mapping[str, int]] = lambda: dict.fromkeys(STATES, 0)
    guard_devices: Callable[[], int] = lambda: 0
    guard_reattached: Callable[[], int] = lambda: 0
    sysctls: Callable[[], Mapping[str, bool]] = dict
    ephemeral_ports: Callable[[], int] = lambda: 0
    socket_bytes: Callable[[], int] = lambda: 0
    uses: Sequence[Use] = ()
    uses_at: float = 0.0  # monotonic
    # By namespace, local and remote address, remote port.
    shrunk: Callable[[], Mapping[tuple[str, ...], float]] = dict
    blamed: int = 0  # parties of each kind that have series of their own


@dataclass(frozen=True)
class Sums:
    """Counters and living of one moment, with what follows from both."""

    counters: Counters
    living: dict[tuple[Class, str, int], int]

    @classmethod
    def read(cls, table: Table) -> "Sums":
        """Read planned, living, withdrawn, in this order: what changes meanwhile makes an expiry late, never early."""
        before = table.counters().values
        living = table.living(time.monotonic_ns())
        after = table.counters().values
        planned = {name: before[name] for name in ("planned", "planned_ticks")}
        return cls(Counters(after | planned), living)

    def sessions(self, class_: Class, family: str) -> int:
        """Live sessions."""
        return sum(self.living[class_, family, lane] for lane in range(LANES))

    def expired(self, class_: Class, lane: int) -> int:
        """Sessions of a lane that expired by their tick: planned, not withdrawn, not alive."""
        gone = self.counters.get("planned", class_, lane) - self.counters.get("withdrawn", class_, lane)
        return gone - sum(self.living[class_, family, lane] for family in FAMILIES)

    def ended(self, class_: Class, reason: Reason) -> int:
        """Sessions that ended for a reason; what expired unseen is derived."""
        seen = self.counters.get("ended", class_, reason)
        return seen + sum(self.expired(class_, lane) for lane in range(LANES)) if reason is Reason.EXPIRED else seen

    def lifetimes(self, class_: Class) -> tuple[list[int], float]:
        """Ended sessions by lane, and the sum of their lives (s); an unseen expiry has its lane's mean planned life."""
        lanes, ticks = [], float(self.counters.get("lifetime_ticks", class_))
        for lane in range(LANES):
            expired, planned = self.expired(class_, lane), self.counters.get("planned", class_, lane)
            lanes.append(self.counters.get("lifetime", class_, lane) + expired)
            ticks += expired * self.counters.get("planned_ticks", class_, lane) / planned if planned else 0
        return lanes, ticks * TICK


class TwctlCollector(Collector):
    """All metrics of twctl; what failed while collecting is counted, and comes last."""

    def __init__(self, table: Table, state: DaemonState) -> None:
        self._table = table
        self._state = state
        self._errors = 0
        self._highest: dict[tuple[str, ...], float] = {}
        self._names: Names | None = None  # looks for cgroups: not where nobody wants to know

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        for part in (self._sessions, self._table_metrics, self._blame, self._guard, self._daemon, self._kernel):
            try:
                yield from list(part())
            except (OSError, ValueError):
                self._errors += 1
        yield _counter("twctl_collect_errors", "Parts of a scrape that failed.", [((), self._errors)])

    def _never_less(self, name: str, labels: tuple[str, ...], value: float) -> float:
        """Derived counters are differences of numbers read one after the other: hold them where they were."""
        self._highest[name, *labels] = max(value, self._highest.get((name, *labels), 0))
        return self._highest[name, *labels]

    def _sessions(self) -> Iterator[Metric]:
        sums = Sums.read(self._table)
        for name, what, text in (
            ("twctl_time_wait_entered", "entered", "Sessions that entered TIME_WAIT or orphaned FIN_WAIT2."),
            (
                "twctl_time_wait_adopted",
                "adopted",
                "Sessions taken over from the kernel's list, whose entry was not seen.",
            ),
        ):
            yield _counter(
                name,
                text,
                [((k.label, f), sums.counters.get(what, k, FAMILIES.index(f))) for k, f in CLASS_FAMILY],
                "class",
                "family",
            )
        ends = [
            ((k.label, r.name.lower()), self._never_less("ended", (k.label, r.name), sums.ended(k, r)))
            for k in Class
            for r in Reason
        ]
        yield _counter("twctl_time_wait_ended", "Sessions that ended, by reason.", ends, "class", "reason")
        sessions = [((k.label, f), sums.sessions(k, f)) for k, f in CLASS_FAMILY]
        yield _gauge("twctl_time_wait_sessions", "Live sessions.", sessions, "class", "family")
        restarts = [((k.label,), sums.counters.get("restarted", k)) for k in Class]
        yield _counter("twctl_time_wait_restarted", "Times that a session's timer started anew.", restarts, "class")
        yield self._lifetimes(sums)
        closes = [((how,), sums.counters.get("closed", i)) for i, how in enumerate(CLOSES)]
        yield _counter(
            "twctl_closed_without_time_wait",
            "Connections that ended without TIME_WAIT on this host, by how.",
            closes,
            "how",
        )

    def _lifetimes(self, sums: Sums) -> Metric:
        text = "Seconds from entering TIME_WAIT, or from the last restart of its timer, to the session's end."
        metric = HistogramMetricFamily("twctl_time_wait_lifetime_seconds", text, labels=["class"])
        for class_ in Class:
            lanes, seconds = sums.lifetimes(class_)
            lanes = [int(self._never_less("lane", (class_.label, str(i)), count)) for i, count in enumerate(lanes)]
            edges = [*(str(float(edge)) for edge in LANE_SECONDS), "+Inf"]
            buckets = [(edge, sum(lanes[: i + 1])) for i, edge in enumerate(edges)]
            metric.add_metric([class_.label], buckets, self._never_less("seconds", (class_.label,), seconds))
        return metric

    def _table_metrics(self) -> Iterator[Metric]:
        layout = self._table.layout
        capacity = [((k.label, f), layout.capacity[f][k]) for k, f in CLASS_FAMILY]
        yield _gauge(
            "twctl_table_capacity_sessions",
            "Sessions that the table holds before the oldest is evicted.",
            capacity,
            "class",
            "family",
        )
        yield _gauge(
            "twctl_table_bytes", "Kernel memory of records and index.", [((), sum(layout.bytes(f) for f in FAMILIES))]
        )
        yield _gauge("twctl_blame_bytes", "Kernel memory of the tallies of who causes it.", [((), TALLIES_BYTES)])
        counters = self._table.counters()
        dropped = [((why,), counters.get("dropped", i)) for i, why in enumerate(DROPPED)]
        text = "connect() calls that found no free local port (EADDRNOTAVAIL)."
        yield _counter("twctl_connects_without_port", text, [((), counters.get("no_port", 0))])
        dropped.append((("nested",), self._table.nested()))
        dropped.append((("prefix",), self._state.prefixes_refused()))
        text = "What the table could not take: entries and prefixes lost, lives cut short, look-ups left incomplete."
        yield _counter("twctl_table_dropped", text, dropped, "reason")

    def _blame(self) -> Iterator[Metric]:
        """From the tallies alone: no walk of the table."""
        if not self._state.blamed:
            return
        self._names = names = self._names or Names(self._table)
        found = {by: most_entered(self._table, by, self._state.blamed) for by in By}
        names.update(tally.party for tallies in found.values() for tally in tallies)
        for by, (name, labels) in BLAMED.items():
            rows: Counter[tuple[str, ...]] = Counter()
            for tally in found[by]:
                row = names.row(by, tally)
                rows[tuple("" if row[label] is None else str(row[label]) for label in labels)] += tally.entered or 0
            text = f"Sessions that entered by {by.value}, of those with the most; without a place, without a series."
            yield _counter(f"twctl_{name}_time_wait_entered", text, rows.items(), *labels)

    def _guard(self) -> Iterator[Metric]:
        actions = [((action,), count) for action, count in self._table.actions().items()]
        text = "Segments that met a vestige and no socket, by what the guard did to them."
        yield _counter("twctl_guard_segments", text, actions, "action")
        text = "Devices that have the guard."
        yield _gauge("twctl_guard_devices", text, [((), self._state.guard_devices())])
        text = "Filters of the guard that somebody took away and that were put back."
        yield _counter("twctl_guard_reattached", text, [((), self._state.guard_reattached())])
        text = "Whether a sysctl that twctl set still is as it was set, in all namespaces."
        sysctls = [((name,), int(kept)) for name, kept in self._state.sysctls().items()]
        yield _gauge("twctl_sysctl_as_set", text, sysctls, "sysctl")

    def _daemon(self) -> Iterator[Metric]:
        state = self._state
        prefixes = [((k.label, f), count) for (k, f), count in state.prefixes().items()]
        yield _gauge(
            "twctl_classifier_prefixes", "Prefixes that the probe asks for a peer's class.", prefixes, "class", "family"
        )
        states = state.namespaces()
        text = "Network namespaces to work in, by what became of them."
        yield _gauge("twctl_network_namespaces", text, [((each,), states[each]) for each in STATES], "state")
        yield _counter("twctl_route_changes", "Route, address and link notifications.", [((), state.route_changes())])
        yield _counter(
            "twctl_route_resyncs", "Full reads of the routes after a lost notification.", [((), state.route_resyncs())]
        )
        yield _counter(
            "twctl_reconciliations",
            "Comparisons of the table with the kernel's own list.",
            [((), state.reconciliations)],
        )
        yield _counter("twctl_reconcile_errors", "Comparisons that failed.", [((), state.reconcile_errors)])
        text = "Entries that the probe did not see, by the kernel's count; before Linux 5.18 by its list."
        yield _counter("twctl_time_wait_unseen", text, [((), state.unseen)])
        drift = [((which,), count) for which, count in state.drift.items()]
        text = "Differences that the last comparison mended: sessions missing in the table, or in the kernel (stale)."
        yield _gauge("twctl_table_drift_sessions", text, drift, "which")
        yield self._lateness()
        text = "Sockets that were gone, or another's, when the kernel was told to destroy them."
        yield _counter("twctl_destroy_refused", text, [((), state.destroy_refused())])
        seconds = [((k.label,), seconds) for k, seconds in state.time_wait.items()]
        yield _gauge(
            "twctl_time_wait_seconds", "Seconds that a session of the class stays in TIME_WAIT.", seconds, "class"
        )
        yield _gauge(
            "twctl_mode", "1 for the mode that runs.", [((mode,), int(mode == state.mode)) for mode in MODES], "mode"
        )
        info = InfoMetricFamily("twctl_build", "Version, and the probe that sees entries and ends.")
        info.add_metric([], {"version": __version__, "probe": state.probe})
        yield info

    def _lateness(self) -> Metric:
        text = "Seconds from the end of the class's time to the destruction of the socket, in mode truncate."
        metric = HistogramMetricFamily("twctl_truncate_lateness_seconds", text, labels=["class"])
        edges = [*(str(edge) for edge in LATENESS_EDGES), "+Inf"]
        for class_, late in self._state.lateness.items():
            buckets = [(edge, sum(late.buckets[: i + 1])) for i, edge in enumerate(edges)]
            metric.add_metric([class_.label], buckets, late.seconds)
        return metric

    def _kernel(self) -> Iterator[Metric]:
        text = "TIME_WAIT and FIN_WAIT2 mini-sockets that the kernel counts in the enrolled namespaces."
        yield _gauge("twctl_kernel_time_wait_sockets", text, [((), self._state.kernel_sockets())])
        text = "Ports that the kernel chooses local ones from, summed over the enrolled namespaces."
        yield _gauge("twctl_kernel_ephemeral_ports", text, [((), self._state.ephemeral_ports())])
        text = "Kernel memory of one TIME_WAIT mini-socket, without its port; 0 where the kernel does not tell."
        yield _gauge("twctl_kernel_time_wait_socket_bytes", text, [((), self._state.socket_bytes())])
        labels = ("netns", "local", "remote", "remote_port")
        uses = [((use.netns, str(use.local), str(use.remote), str(use.remote_port)), use) for use in self._state.uses]
        text = "Share of the ephemeral ports held toward a destination; the worst only, from 5 % on."
        yield _gauge("twctl_ephemeral_ports_used_ratio", text, [(where, use.ratio) for where, use in uses], *labels)
        text = "Seconds until connect() finds no port toward it, at the rate of the last 10 s; +Inf: never."
        ago = time.monotonic() - self._state.uses_at
        never = math.inf
        left = [(where, never if use.seconds_left is None else max(0, use.seconds_left - ago)) for where, use in uses]
        yield _gauge("twctl_ephemeral_ports_left_seconds", text, left, *labels)
        text = "Seconds that sessions stay in TIME_WAIT toward a destination while few ports are left (port_headroom)."
        yield _gauge("twctl_pressure_time_wait_seconds", text, self._state.shrunk().items(), *labels)


Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)
Rows = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, text: str, rows: Rows, *labels: str) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(name, text, labels=labels), rows)


def _gauge(name: str, text: str, rows: Rows, *labels: str) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(name, text, labels=labels), rows)


def _filled(metric: Family, rows: Rows) -> Family:
    for labels, value in rows:
        metric.add_metric(labels, value)
    return metric
