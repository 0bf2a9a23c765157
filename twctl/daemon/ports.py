"""Tasks about local ports: how many are left toward the busiest destinations, and shorter TIME_WAIT where few are."""

from twctl.config.config import Config
from twctl.daemon.namespaces import Namespaces
from twctl.modes.headroom import Use
from twctl.modes.holders import pause
from twctl.modes.port_forecast import PortForecast
from twctl.modes.port_pressure import PortPressure
from twctl.table.maps import Table

# Between two looks at the ports that are left (s).
PORTS_SECONDS = 5.0
# With pressure.port_headroom the busiest destinations are looked at this often (s).
PRESSURE_SECONDS = 1.0
# While there are sessions to destroy, a batch of them this often (s).
BATCH_SECONDS = 0.05


class PortLook:
    """Look how many ports are left toward the destinations that are busiest now."""

    def __init__(self, table: Table, namespaces: Namespaces, config: Config, pressure: PortPressure | None) -> None:
        self._namespaces = namespaces
        self._forecast = PortForecast(table, config, pressure)

    @property
    def uses(self) -> list[Use]:
        """Those nearest to their end."""
        return self._forecast.uses

    @property
    def looked_at(self) -> float:
        """When that was (monotonic, s)."""
        return self._forecast.looked_at

    def run(self) -> float:
        """Look once."""
        return pause(PORTS_SECONDS, self._forecast.look(self._namespaces))


class RelievingPorts:
    """While too few ports are left toward a destination, its sessions go sooner than their class's time."""

    def __init__(self, table: Table, namespaces: Namespaces, pressure: PortPressure) -> None:
        self._table, self._namespaces, self._pressure = table, namespaces, pressure
        self._pause = 0.0

    def run(self) -> float:
        """Destroy a batch of what is too old, or look at the destinations again."""
        if self._pressure.condemned:
            with self._table.exclusive():
                self._pressure.execute()
            return BATCH_SECONDS if self._pressure.condemned else self._pause
        self._pause = pause(PRESSURE_SECONDS, self._pressure.look(self._namespaces))
        return BATCH_SECONDS if self._pressure.condemned else self._pause

    def seconds(self) -> dict[tuple[str, str, str, str], float]:
        """Seconds (float) in force by netns, local address, remote address and remote port; a scrape's thread asks."""
        names = {namespace.index: namespace.name or "" for namespace in self._namespaces}
        return {
            (names[each.netns], str(each.local), str(each.remote), str(each.remote_port)): seconds
            for each, seconds in self._pressure.seconds().items()
            if each.netns in names
        }
