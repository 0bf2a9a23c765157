"""Prometheus metrics, read at scrape time: each part of them is a function, and a part that fails is counted."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from twctl.config.config import Config
from twctl.daemon.families import Metric, counter, single
from twctl.daemon.namespaces import Namespaces
from twctl.daemon.table_metrics import PartyMetrics, SessionMetrics, connect_metrics, guard_segments, table_metrics
from twctl.daemon.work import Work
from twctl.daemon.work_metrics import (
    conntrack_metrics,
    kernel_metrics,
    mode_metrics,
    namespace_metrics,
    obstacle_metrics,
    orphan_metrics,
    port_metrics,
    task_metrics,
)
from twctl.linux.ports import Ports
from twctl.table.maps import Table

Part = Callable[[], Iterable[Metric]]


class PartsCollector(Collector):
    """All parts, one after the other. Those that failed are counted, and their number comes last in the same scrape."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts, self._errors = tuple(parts), 0

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        for part in self._parts:
            try:
                yield from list(part())
            except (OSError, ValueError):
                self._errors += 1
        yield counter("twctl_collect_errors", "Parts of a scrape that failed.", single(self._errors))


def collector_of(table: Table, work: Work, config: Config, ended: Mapping[str, int]) -> PartsCollector:
    """All of twctl's own metrics. ended: connections that the server ended, by the reason."""
    namespaces = work.discovery.namespaces
    return PartsCollector(
        (
            SessionMetrics(table).metrics,
            lambda: table_metrics(table),
            PartyMetrics(table, config.blame.metrics, lambda: _ephemeral(namespaces)).metrics,
            lambda: guard_segments(table),
            lambda: connect_metrics(table) if work.searches else (),
            lambda: namespace_metrics(namespaces, work.discovery.states()),
            lambda: task_metrics(work),
            lambda: mode_metrics(config, table),
            lambda: kernel_metrics(namespaces),
            lambda: orphan_metrics(work),
            lambda: obstacle_metrics(work),
            lambda: port_metrics(work),
            lambda: conntrack_metrics(work),
            lambda: [_ended(ended)],
        )
    )


def _ephemeral(namespaces: Namespaces) -> dict[int, Ports]:
    return dict(namespaces.ask(lambda each: (each.index, each.ports.range())))


def _ended(ended: Mapping[str, int]) -> Metric:
    text = "Connections to the metrics' server that it ended before their answer: too late, or for newer ones."
    rows = [((reason,), ended.get(reason, 0)) for reason in ("late", "crowded")]
    return counter("twctl_http_connections_ended", text, rows, "reason")


def registry_of(table: Table, work: Work, config: Config, ended: Mapping[str, int]) -> CollectorRegistry:
    """Everything that the daemon exports, its own process included. The server's thread collects."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(collector_of(table, work, config, ended))
    return registry
