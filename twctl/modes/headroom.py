"""How many of the local ports toward a destination are held, and when connect() will find none.

A port is held per destination: by TIME_WAIT (unless tcp_tw_reuse lets connect() take it over) and by live connections.
The kernel's own list, restricted to one remote endpoint, says both, and each TIME_WAIT socket's timer says when it lets
its port go: so one look is enough for a forecast of these. Whether the live ones become more takes two.

Not known, and not counted: ports that bind() took for something else, which connect() passes over, a socket's own range
(IP_LOCAL_PORT_RANGE), and whether a session has the timestamps that tcp_tw_reuse asks for.
"""

import contextlib
import dataclasses
import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from twctl.addresses import Address, Endpoint, host_port
from twctl.classes import Class
from twctl.linux.ports import Ports
from twctl.linux.procfs import PortRange
from twctl.linux.sockdiag import Held, SockDiag
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.table.enrolments import reachable
from twctl.table.maps import Table
from twctl.table.tallies import Remote, Tally

RATE_SECONDS = 10.0  # the rate of use is that of the last 10 s
SHORTEST_SECONDS = 1.0  # or of this long at least, however young the load is
STEP_SECONDS = 0.25
# Without the daemon: between the two looks.
APART_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """The ports of one local address toward one remote endpoint.

    ports: how many there are; time_wait, live: how many are held by what; rate: how many a second begin to be held,
    less the live ones that end without TIME_WAIT; seconds_left: until none is free at this rate; None: never, as those
    that are let go keep up.
    """

    netns: str
    local: Address
    remote: Address
    remote_port: int
    ports: int
    time_wait: int
    live: int
    rate: float
    seconds_left: float | None

    @property
    def ratio(self) -> float:
        """Share of the ports that is held."""
        return (self.time_wait + self.live) / self.ports if self.ports else 1.0


Pair = tuple[Address, Endpoint]  # local address, remote endpoint


class Earlier(NamedTuple):
    """An earlier look: so many seconds ago, and what was alive then."""

    seconds: float
    live: Mapping[Pair, int]

    def growth(self, pair: Pair, live: int) -> float:
        """Live connections that became more, a second. What mere chance does to so many is nothing."""
        more = live - self.live.get(pair, live)
        return more / self.seconds if more * more > live + 1 else 0.0


def measure(diag: SockDiag, netns: str, ports: Ports, lives: Mapping[Endpoint, float], earlier: Earlier) -> list[Use]:
    """Look at these destinations: a row for each, and for each local address that is used toward it.

    lives: seconds that TIME_WAIT keeps a port from connect(): 60, the class's time in mode truncate, or what
    tcp_tw_reuse leaves of it.

    :raises OSError: if the kernel refuses to answer.
    """
    pairs: dict[Pair, list[Held]] = {}
    for held in diag.toward(list(lives)) if lives else ():
        if held.local_port in ports and held.remote in lives:
            pairs.setdefault((held.local, held.remote), []).append(held)
    uses = []
    for (local, remote), found in pairs.items():
        life = lives[remote]
        blocking, live = _sorted_out(found, life)
        entries, growth = entry_rate(blocking, life), earlier.growth((local, remote), live)
        until = seconds_left(len(ports) - live, blocking, entries, life, growth)
        uses.append(Use(netns, local, *remote, len(ports), len(blocking), live, max(0.0, entries + growth), until))
    return uses


def _sorted_out(found: Iterable[Held], life: float) -> tuple[list[float], int]:
    """What is left (s, sorted) of the time that each TIME_WAIT socket keeps its port, and how many have it alive."""
    found = list(found)
    left = [held.left - (KERNEL_TIME_WAIT - life) for held in found if held.left is not None]
    return sorted(seconds for seconds in left if seconds > 0), sum(held.left is None for held in found)


def entry_rate(left: Sequence[float], life: float) -> float:
    """TIME_WAIT sockets a second, from what is left of their lives (s, sorted): those of the last seconds.

    Of the last 10 s; of fewer where half of these are younger than that says, as of a load that has just begun.
    """
    longest = min(RATE_SECONDS, life)
    first = bisect_right(left, life - longest)
    if first == len(left):
        return 0.0
    median = life - left[(first + len(left)) // 2]
    window = min(longest, max(SHORTEST_SECONDS, 2 * median))
    return (len(left) - bisect_right(left, life - window)) / window


def seconds_left(ports: int, left: Sequence[float], entries: float, life: float, growth: float = 0.0) -> float | None:
    """Seconds until so many ports are held, if sessions and live connections go on to come at this rate; None: never.

    left: what is left of the lives of the sessions that hold one (s, sorted). Once a life is over as many go as come,
    and only a growing number of live connections, so many a second, can still use the ports up.
    """
    for step in range(int(life / STEP_SECONDS) + 2):
        seconds = min(step * STEP_SECONDS, life)
        if len(left) - bisect_right(left, seconds) + (entries + growth) * seconds >= ports:
            return seconds
    return (ports - entries * life) / growth if growth > 0 else None


def blocked_for(reuse: int, delay: float, remote: Address, life: float) -> float:
    """Seconds that a TIME_WAIT socket keeps its port from connect() (tcp_twsk_unique).

    reuse: tcp_tw_reuse, 2: loopback only; delay: tcp_tw_reuse_delay (s). That both ends use timestamps is taken for
    granted.
    """
    applies = reuse == 1 or (reuse == 2 and remote.is_loopback)  # noqa: PLR2004 - the sysctl's values
    return min(life, delay) if applies else life


class Watch:
    """Looks again and again at the destinations of one namespace, and so knows whether what is alive becomes more."""

    def __init__(self, diag: SockDiag, sysctls: PortRange, netns: str) -> None:
        self._diag, self._sysctls, self._netns = diag, sysctls, netns
        self._at, self._live = -math.inf, dict[Pair, int]()

    def look(self, times: Mapping[Endpoint, float]) -> list[Use]:
        """Look at remote endpoints. times: seconds that the class of each stays in TIME_WAIT, 60 at most.

        :raises OSError: if the kernel refuses to answer.
        """
        now, reuse = time.monotonic(), self._sysctls.reuse()
        lives = {remote: blocked_for(*reuse, remote[0], seconds) for remote, seconds in times.items()}
        earlier = Earlier(now - self._at, self._live)
        uses = measure(self._diag, self._netns, self._sysctls.range(), lives, earlier)
        self._at, self._live = now, {(use.local, (use.remote, use.remote_port)): use.live for use in uses}
        return uses


def toward(table: Table, tallies: Iterable[Tally]) -> Iterator[Use]:
    """Look at remote endpoints that are blamed, without the daemon: where it truncates, by its classes' times.

    :raises TwctlError: where its namespaces cannot be entered.
    """
    remotes = [tally.party for tally in tallies if isinstance(tally.party, Remote)]
    lives = [seconds / 1e9 for seconds in table.lives[: len(Class)]] if table.mode == "truncate" else None
    with contextlib.ExitStack() as opened:
        watches = []
        for index, name in reachable(table).items():
            mine = [(party.address, party.port) for party in remotes if party.netns == index]
            diag, sysctls = SockDiag(name or None), PortRange(name or None)
            opened.callback(diag.close)
            opened.callback(sysctls.close)
            watches.append((Watch(diag, sysctls, name), _times(name, mine, lives)))
        for watch, times in watches:
            watch.look(times)
        time.sleep(APART_SECONDS if remotes else 0)
        for watch, times in watches:
            yield from watch.look(times)


def _times(name: str, remotes: Iterable[Endpoint], lives: Sequence[float] | None) -> dict[Endpoint, float]:
    """How long sessions toward them stay in TIME_WAIT."""
    if not lives:
        return dict.fromkeys(remotes, KERNEL_TIME_WAIT)
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 - pyroute2 takes a while

    with RouteWatcher({}, name or None) as routes:
        return {remote: min(KERNEL_TIME_WAIT, lives[routes.explain(remote[0]).class_]) for remote in remotes}


def row(use: Use) -> dict[str, Any]:
    """Plain values, as `twctl blame --json` prints them."""
    return {**dataclasses.asdict(use), "local": str(use.local), "remote": str(use.remote), "used": round(use.ratio, 4)}


def worst(uses: Iterable[Use], count: int, least: float = 0.05) -> list[Use]:
    """The destinations that are nearest to their end."""
    return sorted((use for use in uses if use.ratio >= least), key=lambda use: -use.ratio)[:count]


def lines(uses: Iterable[Use]) -> Iterator[str]:
    """A table of at most 80 columns."""
    yield f"{'ports toward':<36} {'used':>5} {'TIME_WAIT':>9} {'live':>6} {'per s':>7} {'left':>10}".rstrip()
    for use in uses:
        where = host_port(use.remote, use.remote_port)
        where = where if len(where) <= 36 else f"...{where[-33:]}"  # noqa: PLR2004 - the column
        until = "for ever" if use.seconds_left is None else f"{use.seconds_left:.0f} s"
        yield f"{where:<36} {use.ratio:>5.0%} {use.time_wait:>9} {use.live:>6} {use.rate:>7.0f} {until:>10}"
