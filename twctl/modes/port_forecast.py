"""How many ports are left toward the busiest destinations, looked at again and again at little cost.

Which those are the tallies tell (destinations.py); a destination that cannot hold LEAST of the ports is not looked at,
and of the others at most so many sockets as holders.py allows.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Iterable

from twctl.addresses import Endpoint
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.destinations import Destinations
from twctl.modes.enrolled import Enrolled
from twctl.modes.headroom import PortHistory, Use, worst
from twctl.modes.port_pressure import PortPressure
from twctl.table.maps import Table


class PortForecast:
    """Looks at the destinations that are busiest now, and at those that were nearest to their end.

    pressure: what shortens TIME_WAIT toward some of them, if anything does. uses: those nearest to their end, the
    worst first; looked_at: when that was (monotonic, s).
    """

    def __init__(self, table: Table, config: Config, pressure: PortPressure | None = None) -> None:
        self._config, self._pressure = config, pressure
        self._destinations = Destinations(table)
        self._histories: dict[Enrolled, PortHistory] = {}
        self._worst: dict[int, list[Endpoint]] = {}
        self.uses: list[Use] = []
        self.looked_at = 0.0

    def look(self, namespaces: Iterable[Enrolled]) -> float:
        """Look once at what goes on in these namespaces; returns the CPU time that it took (s)."""
        began, count = time.thread_time(), self._config.blame.destinations
        busy = self._destinations.look(count)
        # Once all ports toward a destination are used up, nothing enters any more, and it is not busy.
        for index, remotes in self._worst.items():
            mine = busy.setdefault(index, {})
            mine |= {remote: math.inf for remote in remotes if remote not in mine}
        found = {each: self._look(each, busy[each.index]) for each in namespaces if each.index in busy}
        uses = worst(itertools.chain.from_iterable(found.values()), count)
        self._worst = {
            each.index: [(use.remote, use.remote_port) for use in mine if use in uses] for each, mine in found.items()
        }
        self._histories = {each: history for each, history in self._histories.items() if each in found}
        self.uses, self.looked_at = uses, time.monotonic()
        return time.thread_time() - began

    def _look(self, namespace: Enrolled, sessions: dict[Endpoint, float]) -> list[Use]:
        history = self._histories.setdefault(
            namespace, PortHistory(namespace.diag, namespace.ports, namespace.name or "", namespace.sockstat)
        )
        times = {remote: self._time_wait(namespace, remote) for remote in sessions}
        with contextlib.suppress(OSError):
            return history.look(times, sessions, self._config.blame.destinations)
        return []

    def _time_wait(self, namespace: Enrolled, remote: Endpoint) -> float:
        if self._config.mode is not Mode.TRUNCATE:
            return KERNEL_TIME_WAIT
        seconds = self._config.time_wait[namespace.routes.explain(remote[0]).class_]
        return self._pressure.toward(namespace.index, remote, seconds) if self._pressure else seconds
