"""What advice is given on: plain data of one moment, that can be written to JSON and read from it."""

import dataclasses
import json
from typing import Any

from twctl.linux.limits import Limits
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.dry_run import Freed
from twctl.modes.translation import Translation


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A remote endpoint that this host connects to, from the local address with the most of its ports in use.

    class_: loopback, local or remote; empty: not known, as it has no session. owner: the unit or cgroup with most of
    the sessions, else of a live connection. sessions: alive in the table; stamped, plain: how many of them are known to
    have timestamps, or not to. entered, no_port: a second, in the time that was looked at; failed: calls that have
    found no port, all together; failing_since, failed_last: seconds ago.
    ports, time_wait, live, rate, seconds_left: as `Use` has them, but that sessions without timestamps hold their ports
    whatever tcp_tw_reuse says; close_wait: how many of the live ones their peer had closed a second
    ago.
    """

    netns: str
    remote: str
    remote_port: int
    class_: str
    owner: str
    sessions: int
    stamped: int
    plain: int
    entered: float
    no_port: float
    failed: int
    failing_since: float | None
    failed_last: float | None
    ports: int
    time_wait: int
    live: int
    close_wait: int
    rate: float
    seconds_left: float | None

    @property
    def held(self) -> int:
        """Ports that connect() cannot have toward it."""
        return self.live + self.time_wait

    @property
    def used(self) -> float:
        """Share of the ports that is held."""
        return self.held / self.ports if self.ports else 1.0

    @property
    def per_second(self) -> float:
        """Sessions that enter TIME_WAIT a second: now, or in the mean of the last minute if that is more."""
        return max(self.entered, self.sessions / KERNEL_TIME_WAIT)

    @property
    def fails(self) -> bool:
        """Whether connect() has found no port just now."""
        return self.no_port > 0 or (self.failed_last is not None and self.failed_last < KERNEL_TIME_WAIT)


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A port on which this host accepts connections, and closes first."""

    netns: str
    port: int
    owner: str
    sessions: int


@dataclasses.dataclass(frozen=True, slots=True)
class Unclosed:
    """An owner's sockets: close_wait: its peers closed them, and it has not for a second; orphans: the other way."""

    owner: str
    close_wait: int
    orphans: int


@dataclasses.dataclass(frozen=True, slots=True)
class Orphaned:
    """A remote endpoint that does not close what this host has closed."""

    remote: str
    remote_port: int
    orphans: int


@dataclasses.dataclass(frozen=True, slots=True)
class Namespace:
    """An enrolled network namespace. ports: how many there are for connect().

    listening, bound: sockets on these ports that wait for connections, or have nothing but the port (Linux 6.8).
    overflowed: a second, how many more sessions tcp_max_tw_buckets has kept out. obstacles: to mode vestigial.
    translations: those that hold most ports. unclosed, orphaned: those with most sockets.
    """

    name: str
    ports: int
    listening: int
    bound: int
    overflowed: float
    obstacles: tuple[str, ...]
    limits: Limits
    translations: tuple[Translation, ...] = ()
    unclosed: tuple[Unclosed, ...] = ()
    orphaned: tuple[Orphaned, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """What connect() spent on looking for a local port. calls: a second; mean: seconds of one that found a port."""

    calls: float
    mean: float


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole. seconds: how long rates were looked at; passive: connections a second whose peer closed first.

    mode: that of the daemon or, where none runs, of the last one. search: None where it is not measured. full: share
    of its capacity that a class has in use; evicted, dropped: a second, by class, and by what the table could not take.
    """

    mode: str
    daemon: bool
    seconds: float
    entered: float
    passive: float
    search: Search | None
    freed: dict[str, Freed]
    destinations: tuple[Destination, ...]
    services: tuple[Service, ...]
    namespaces: tuple[Namespace, ...]
    full: dict[str, float] = dataclasses.field(default_factory=dict)
    evicted: dict[str, float] = dataclasses.field(default_factory=dict)
    dropped: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def in_force(self) -> str:
        """The mode whose work is done: without a daemon observe's, but where only a guard does TIME_WAIT's duty."""
        return self.mode if self.daemon or (self.mode == "vestigial" and self.without_sockets) else "observe"

    @property
    def without_sockets(self) -> tuple[Namespace, ...]:
        """Where the kernel keeps no TIME_WAIT sockets at all."""
        return tuple(each for each in self.namespaces if not each.limits.max_tw_buckets)

    def namespace(self, name: str) -> Namespace | None:
        """The one of this name."""
        return next((each for each in self.namespaces if each.name == name), None)


def as_plain(snapshot: Snapshot) -> dict[str, Any]:
    """Plain values, as JSON takes them."""
    return dataclasses.asdict(snapshot)


def from_plain(plain: dict[str, Any]) -> Snapshot:
    """The snapshot that `as_plain` was made from."""
    return Snapshot(
        **plain
        | {
            "search": Search(**plain["search"]) if plain["search"] else None,
            "freed": {mode: Freed(**each) for mode, each in plain["freed"].items()},
            "destinations": tuple(Destination(**each) for each in plain["destinations"]),
            "services": tuple(Service(**each) for each in plain["services"]),
            "namespaces": tuple(_namespace(each) for each in plain["namespaces"]),
        }
    )


def _namespace(plain: dict[str, Any]) -> Namespace:
    return Namespace(
        **plain
        | {
            "limits": Limits(**plain["limits"]),
            "obstacles": tuple(plain["obstacles"]),
            "translations": tuple(Translation(**each) for each in plain.get("translations", ())),
            "unclosed": tuple(Unclosed(**each) for each in plain.get("unclosed", ())),
            "orphaned": tuple(Orphaned(**each) for each in plain.get("orphaned", ())),
        }
    )


def from_json(text: str) -> Snapshot:
    """Read one that was written down."""
    return from_plain(json.loads(text))
