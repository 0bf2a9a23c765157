"""The metrics that the pinned table alone tells."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.daemon.families import Metric, counter, gauge, histogram, single
from twctl.linux.ports import Ports
from twctl.modes.histogram import Histogram
from twctl.table.connects import SEARCH_SECONDS, connects
from twctl.table.counters import CLOSES, DROPPED, LANE_SECONDS, REUSE_SECONDS, TICK, Counters, Reason
from twctl.table.maps import Table
from twctl.table.names import Names
from twctl.table.sums import Sums
from twctl.table.tallies import TALLIES_BYTES, By, most_entered

CLASS_FAMILY = [(class_, family) for class_ in Class for family in FAMILIES]
# The series of a party: the beginning of their name, and their labels, which are words of Names.row.
PARTIES = {
    By.OWNER: ("owner", ("owner", "cgroup", "uid")),
    By.REMOTE: ("remote", ("remote", "remote_port", "netns")),
    By.LOCAL_PORT: ("local_port", ("local_port", "netns")),
}


class SessionMetrics:
    """What becomes of sessions.

    What expired is derived from several numbers, so it may fall for a moment: it is held where it was.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._highest: dict[tuple[str, ...], float] = {}

    def metrics(self) -> Iterator[Metric]:
        """Entries, ends, live sessions, restarts, lifetimes, and what ended without TIME_WAIT."""
        sums = Sums.read(self._table)
        yield _by_family(sums, "entered", "Sessions that entered TIME_WAIT or orphaned FIN_WAIT2.")
        yield _by_family(
            sums, "translated", "Of those that entered, sessions that are translated: two places in the table each."
        )
        yield _by_family(sums, "adopted", "Sessions taken over from the kernel's list, whose entry was not seen.")
        ends = [
            ((k.label, r.name.lower()), self._never_less("ended", (k.label, r.name), sums.ended(k, r)))
            for k in Class
            for r in Reason
        ]
        yield counter("twctl_time_wait_ended", "Sessions that ended, by reason.", ends, "class", "reason")
        sessions = [((k.label, f), sums.sessions(k, f)) for k, f in CLASS_FAMILY]
        yield gauge("twctl_time_wait_sessions", "Live sessions.", sessions, "class", "family")
        restarts = [((k.label,), sums.counters.get("restarted", k)) for k in Class]
        yield counter("twctl_time_wait_restarted", "Times that a session's timer started anew.", restarts, "class")
        yield self._lifetimes(sums)
        yield _reuse_ages(sums.counters)
        closes = [((how,), sums.counters.get("closed", i)) for i, how in enumerate(CLOSES)]
        text = "Connections that ended without TIME_WAIT on this host, by how."
        yield counter("twctl_closed_without_time_wait", text, closes, "how")

    def _never_less(self, name: str, labels: tuple[str, ...], value: float) -> float:
        self._highest[name, *labels] = max(value, self._highest.get((name, *labels), 0))
        return self._highest[name, *labels]

    def _lifetimes(self, sums: Sums) -> Metric:
        text = "Seconds from entering TIME_WAIT, or from the last restart of its timer, to the session's end."
        rows = []
        for class_ in Class:
            lanes, seconds = sums.lifetimes(class_)
            lanes = [int(self._never_less("lane", (class_.label, str(i)), count)) for i, count in enumerate(lanes)]
            seconds = self._never_less("seconds", (class_.label,), seconds)
            rows.append(((class_.label,), Histogram(LANE_SECONDS, lanes, seconds)))
        return histogram("twctl_time_wait_lifetime_seconds", text, rows, "class")


def _by_family(sums: Sums, what: str, text: str) -> Metric:
    rows = [((k.label, f), sums.counters.get(what, k, FAMILIES.index(f))) for k, f in CLASS_FAMILY]
    return counter(f"twctl_time_wait_{what}", text, rows, "class", "family")


def _reuse_ages(counters: Counters) -> Metric:
    text = (
        "Seconds from entering TIME_WAIT, or from the last restart of its timer, until a new connection took the tuple."
    )
    rows = [
        (
            (k.label,),
            Histogram(REUSE_SECONDS, counters.row("reused", k), counters.get("reused_ticks", k) * TICK),
        )
        for k in Class
    ]
    return histogram("twctl_reuse_age_seconds", text, rows, "class")


def table_metrics(table: Table) -> Iterator[Metric]:
    """Sizes of the table, and what it could not take."""
    layout, counters = table.layout, table.counters()
    capacity = [((k.label, f), layout.capacity[f][k]) for k, f in CLASS_FAMILY]
    text = "Sessions that the table holds before the oldest is evicted."
    yield gauge("twctl_table_capacity_sessions", text, capacity, "class", "family")
    size = sum(layout.bytes(family) for family in FAMILIES)
    yield gauge("twctl_table_bytes", "Kernel memory of records and index.", single(size))
    yield gauge("twctl_blame_bytes", "Kernel memory of the tallies of who causes it.", single(TALLIES_BYTES))
    text = "connect() calls that found no free local port (EADDRNOTAVAIL)."
    yield counter("twctl_connects_without_port", text, single(counters.get("no_port", 0)))
    dropped = [((why,), counters.get("dropped", i)) for i, why in enumerate(DROPPED)]
    text = "What the table could not take: entries lost, lives cut short, look-ups left incomplete."
    yield counter("twctl_table_dropped", text, [*dropped, (("nested",), table.nested())], "reason")
    text = "Events that 'twctl events' was too slow for."
    yield counter("twctl_events_lost", text, single(counters.get("events_lost", 0)))


def connect_metrics(table: Table) -> Iterator[Metric]:
    """How long connect() looks for a local port; nothing where that is not measured."""
    found = connects(table)
    if found is None:
        return
    text = "Seconds that connect() looked for a local port before its SYN, or before it failed."
    rows = [((k,), Histogram(SEARCH_SECONDS, each.lanes, each.seconds)) for k, each in found.searches.items()]
    yield histogram("twctl_connect_port_search_seconds", text, rows, "outcome")
    text = "Searches whose length is not known: too many at once, or the SYN waits for data (TCP Fast Open)."
    yield counter("twctl_connect_port_search_unmeasured", text, single(found.unmeasured))


def guard_segments(table: Table) -> Iterator[Metric]:
    """What the guard did."""
    actions = [((action,), count) for action, count in table.actions().items()]
    text = "Segments that met a vestige or that the guard could not read, by what the guard did to them."
    yield counter("twctl_guard_segments", text, actions, "action")


class PartyMetrics:
    """Entries by party, of the `count` parties of each kind with the most; from the tallies, without a walk.

    ephemeral: asks for the ports that connect() chooses from, by index of the namespace.
    """

    def __init__(self, table: Table, count: int, ephemeral: Callable[[], Mapping[int, Ports]]) -> None:
        self._table, self._count, self._ephemeral = table, count, ephemeral
        self._names: Names | None = None  # made when it is needed: it looks for all cgroups

    def metrics(self) -> Iterator[Metric]:
        """A family for each kind; none where `[blame] metrics` is 0."""
        if not self._count:
            return
        self._names = names = self._names or Names(self._table)
        ephemeral = self._ephemeral()
        found = {by: most_entered(self._table, by, self._count, ephemeral) for by in By}
        names.update(tally.party for tallies in found.values() for tally in tallies)
        for by, (name, labels) in PARTIES.items():
            rows: Counter[tuple[str, ...]] = Counter()
            for tally in found[by]:
                row = names.row(by, tally)
                rows[tuple("" if row[label] is None else str(row[label]) for label in labels)] += tally.entered or 0
            text = f"Sessions that entered by {by.value}, of those with the most; without a place, without a series."
            yield counter(f"twctl_{name}_time_wait_entered", text, rows.items(), *labels)
