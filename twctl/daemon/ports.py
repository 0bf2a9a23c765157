"""Tasks about local ports: how many are left toward the busiest destinations, and shorter TIME_WAIT where few are."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Mapping

from twctl.addresses import Endpoint
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.daemon.namespaces import Namespace, Namespaces
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.headroom import Use, Watch, blocked_for, worst
from twctl.modes.port_pressure import PortPressure, Rule
from twctl.table.maps import Table
from twctl.table.tallies import busiest

# Between two looks at the ports that are left (s).
PORTS_SECONDS = 5.0
# With pressure.port_headroom the busiest destinations are looked at this often (s), and so many of them.
PRESSURE_SECONDS, LOOKED = 1.0, 5
# While there are sessions to destroy, a batch of them this often (s).
BATCH_SECONDS = 0.05


class PortLook:
    """Look how many ports are left toward the destinations that are busiest now.

    uses: those nearest to their end; looked_at: when that was (monotonic, s).
    """

    def __init__(self, table: Table, namespaces: Namespaces, config: Config, pressure: PortPressure | None) -> None:
        self._table, self._namespaces, self._config, self._pressure = table, namespaces, config, pressure
        self._watches: dict[Namespace, Watch] = {}
        self._before: Mapping[bytes, int] = {}
        self._worst: dict[int, list[Endpoint]] = {}
        self.uses: list[Use] = []
        self.looked_at = 0.0

    def run(self) -> float:
        """Look once."""
        began = time.thread_time()
        busy, self._before = _busiest(self._table, self._config.blame.destinations, self._before)
        found = {each: self._look(each, busy.get(each.index, ())) for each in self._namespaces}
        uses = worst(itertools.chain.from_iterable(found.values()), self._config.blame.destinations)
        self._worst = {
            each.index: [(use.remote, use.remote_port) for use in mine if use in uses] for each, mine in found.items()
        }
        self._watches = {each: watch for each, watch in self._watches.items() if each in found}
        self.uses, self.looked_at = uses, time.monotonic()
        return max(PORTS_SECONDS, 20 * (time.thread_time() - began))

    def _look(self, namespace: Namespace, busy: Iterable[Endpoint]) -> list[Use]:
        """At the busiest, and at those that were worst: once their ports are used up, they are busy no more."""
        remotes = {*busy, *self._worst.get(namespace.index, ())}
        watch = self._watches.setdefault(namespace, Watch(namespace.diag, namespace.ports, namespace.name or ""))
        with contextlib.suppress(OSError):
            return watch.look({remote: self._time_wait(namespace, remote) for remote in remotes})
        return []

    def _time_wait(self, namespace: Namespace, remote: Endpoint) -> float:
        if self._config.mode is not Mode.TRUNCATE:
            return KERNEL_TIME_WAIT
        seconds = self._config.time_wait[namespace.routes.explain(remote[0]).class_]
        return self._pressure.toward(namespace.index, remote, seconds) if self._pressure else seconds


class RelievingPorts:
    """While too few ports are left toward a destination, its sessions go sooner than their class's time."""

    def __init__(self, table: Table, namespaces: Namespaces, pressure: PortPressure, config: Config) -> None:
        self._table, self._namespaces, self._pressure, self._config = table, namespaces, pressure, config
        self._before: Mapping[bytes, int] = {}

    def run(self) -> float:
        """Destroy a batch of what is too old, or look at the destinations again."""
        if self._pressure.condemned:
            with self._table.exclusive():
                self._pressure.execute()
            return BATCH_SECONDS
        began = time.thread_time()
        busy, self._before = _busiest(self._table, LOOKED, self._before)
        self._pressure.keep({namespace.index for namespace in self._namespaces})
        for namespace in self._namespaces:
            self._look(namespace, {*busy.get(namespace.index, ()), *self._pressure.remotes(namespace.index)})
        if self._pressure.condemned:
            return BATCH_SECONDS
        return max(PRESSURE_SECONDS, 20 * (time.thread_time() - began))

    def _look(self, namespace: Namespace, remotes: set[Endpoint]) -> None:
        with contextlib.suppress(OSError):
            if remotes:
                found = namespace.diag.toward(list(remotes))
                rules = {remote: self._rule(namespace, remote) for remote in remotes}
                self._pressure.look(namespace.index, found, namespace.ports.range(), rules)

    def _rule(self, namespace: Namespace, remote: Endpoint) -> Rule:
        class_, settings = namespace.routes.explain(remote[0]).class_, self._config.pressure
        normal, floor = self._config.time_wait[class_], settings.floor[class_]
        blocked = blocked_for(*namespace.ports.reuse(), remote[0], normal)
        # Where connect() takes sessions over before they could go, there is nothing to gain.
        return Rule(settings.port_headroom, normal, normal if blocked <= floor else floor, blocked)

    def seconds(self) -> dict[tuple[str, str, str, str], float]:
        """Seconds (float) in force by netns, local address, remote address and remote port; a scrape's thread asks."""
        names = {namespace.index: namespace.name or "" for namespace in self._namespaces}
        return {
            (names[each.netns], str(each.local), str(each.remote), str(each.remote_port)): seconds
            for each, seconds in self._pressure.seconds().items()
            if each.netns in names
        }


def _busiest(
    table: Table, count: int, before: Mapping[bytes, int]
) -> tuple[dict[int, list[Endpoint]], dict[bytes, int]]:
    """The busiest remote endpoints by index of their namespace, and what the next call needs."""
    busy, after = busiest(table, count, before)
    found: dict[int, list[Endpoint]] = {}
    for remote in busy:
        found.setdefault(remote.netns, []).append((remote.address, remote.port))
    return found, after
