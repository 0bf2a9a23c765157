"""What the landing page tells, at hand whenever it is asked for: nothing of it needs a walk of the table."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Mapping, Sequence

from twctl.addresses import host_port
from twctl.classes import Class
from twctl.config.config import Config
from twctl.daemon.work import Work
from twctl.errors import TwctlError
from twctl.modes.headroom import Use
from twctl.modes.times import time_wait_in_force
from twctl.table.looks import Look, Rates, rates
from twctl.table.maps import Table
from twctl.table.names import Names
from twctl.table.tallies import By, most_entered

# Rates are those since a look of 5 to 10 s ago, and what is warned of is that of the last 5 to 10 minutes.
RATE_SECONDS, TROUBLE_SECONDS = 5.0, 300.0
OWNERS = 5


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the page shows, of one moment.

    private: whether owners and addresses may be told; rates: of the last seconds; earlier: a look of minutes ago.
    kernel_sockets: None where the kernel cannot be asked. uses: destinations nearest to having no port, the worst
    first, as of uses_age seconds ago; None: nobody looks. owners: name and entries. guarded_devices: None where no
    guard is wanted, or no namespace is enrolled. left_alone: namespaces. obstacles, drift: how many of each kind.
    """

    private: bool
    healthy: bool
    mode: str
    look: Look
    earlier: Look
    rates: Rates
    time_wait: Mapping[Class, float]
    kernel_sockets: int | None
    uses: Sequence[Use] | None
    uses_age: float
    owners: Sequence[tuple[str, int]]
    obstacles: Mapping[str, int]
    guarded_devices: int | None
    left_alone: int
    drift: Mapping[str, int]

    def where(self, use: Use) -> str:
        """A destination's name, if it may be told."""
        return host_port(use.remote, use.remote_port) if self.private else "a destination"

    def more(self, *name: str) -> int:
        """By how much a counter has grown since the earlier look."""
        return self.look.counters.get(name, 0) - self.earlier.counters.get(name, 0)

    @property
    def minutes(self) -> float:
        """Since the earlier look."""
        return (self.look.at - self.earlier.at) / 60


class KeptLooks:
    """A task that keeps the last two looks, so that there always is one that is so many seconds old, unless new."""

    def __init__(self, table: Table, seconds: float) -> None:
        self._table, self._seconds = table, seconds
        self._kept = deque([Look.read(table)], maxlen=2)

    @property
    def before(self) -> Look:
        """The older one; the server's thread asks."""
        return self._kept[0]

    def run(self) -> float:
        """Look once more."""
        self._kept.append(Look.read(self._table).held(self._kept[-1]))
        return self._seconds


class FactsAtHand:
    """Reads the facts: counters, and what the tasks found last. tasks: what has to run for it."""

    def __init__(self, table: Table, work: Work, config: Config) -> None:
        self._table, self._work, self._config = table, work, config
        self._names: Names | None = None  # made when it is needed: it looks for all cgroups
        self.tasks = self._lately, self._earlier = KeptLooks(table, RATE_SECONDS), KeptLooks(table, TROUBLE_SECONDS)

    def read(self, *, private: bool, healthy: bool) -> Facts:
        """Read them; private: whether owners and addresses may be told."""
        before, work = self._lately.before, self._work
        look = Look.read(self._table).held(before)
        namespaces, states = work.discovery.namespaces, work.discovery.states()
        kernel_sockets: int | None = None
        with contextlib.suppress(OSError, ValueError, TwctlError):  # a namespace went meanwhile
            kernel_sockets = sum(namespaces.ask(lambda each: each.sockstat.time_wait()))
        return Facts(
            private=private,
            healthy=healthy,
            mode=str(self._config.mode),
            look=look,
            earlier=self._earlier.before,
            rates=rates(before, look),
            time_wait=time_wait_in_force(self._config),
            kernel_sockets=kernel_sockets,
            uses=work.port_look.uses if work.port_look else None,
            uses_age=time.monotonic() - work.port_look.looked_at if work.port_look else 0.0,
            owners=self._owners() if private else (),
            obstacles=work.suspending.found() if work.suspending else {},
            guarded_devices=namespaces.guarded_devices() if work.guarding and states["enrolled"] else None,
            left_alone=states["refused"] + states["beyond_capacity"],
            drift=work.reconciling.drift,
        )

    def _owners(self) -> list[tuple[str, int]]:
        self._names = names = self._names or Names(self._table)
        tallies = most_entered(self._table, By.OWNER, OWNERS, {})
        names.update(tally.party for tally in tallies)
        rows = [names.row(By.OWNER, tally) for tally in tallies]
        return [(_owner(row["owner"], row["uid"]), row["entered"]) for row in rows]


def _owner(name: str, uid: int | None) -> str:
    """With the number of its user: a name may have to be asked for elsewhere, which takes as long as it takes."""
    return name if uid is None else f"{name}, uid {uid}"
