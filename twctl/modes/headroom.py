"""How many of the local ports toward a destination are held, and when connect() will find none.

A port is held per destination: by TIME_WAIT (unless tcp_tw_reuse lets connect() take it over) and by live connections.
The kernel's own list, restricted to one remote endpoint, says both, and each TIME_WAIT socket's timer says when it lets
its port go: so one look is enough for a forecast of these. Whether the live ones become more takes two.

Of a long list a piece is read (holders.py). Everything is foreseen for the ports of that piece as if there were no
others; then the numbers are scaled up.

Not known, and not counted: ports that bind() took for something else, which connect() passes over, a socket's own range
(IP_LOCAL_PORT_RANGE), and whether a session has the timestamps that tcp_tw_reuse asks for.
"""

import contextlib
import dataclasses
import heapq
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from twctl.addresses import Address, Endpoint, host_port
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux.procfs import PortRange, Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.exhaustion import blocked_for, entry_rate, seconds_left
from twctl.modes.holders import Held, Pair, Piece, look, short_of_ports
from twctl.table.enrolments import reachable
from twctl.table.maps import Table
from twctl.table.tallies import Remote, Tally

LEAST = 0.05  # less of the ports than this is no news
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


class Earlier(NamedTuple):
    """An earlier look: so many seconds ago, and what was alive then."""

    seconds: float
    live: Mapping[Pair, float]

    def growth(self, pair: Pair, live: float, scale: float) -> float:
        """Live connections that became more, a second. What mere chance does to so many is nothing.

        scale: how many each one that was counted stands for.
        """
        more = live - self.live.get(pair, live)
        return more / self.seconds if more * more > scale * live + 1 else 0.0


class Count(NamedTuple):
    """What holds the ports of a piece toward a pair: what is left of TIME_WAIT (s, sorted), and live connections."""

    pair: Pair
    left: list[float]
    live: int

    def __len__(self) -> int:
        return len(self.left) + self.live


def measure(
    piece: Piece, netns: str, lives: Mapping[Endpoint, float], earlier: Earlier, count: int | None = None
) -> list[Use]:
    """Foresee what was looked at: a row for each pair, or for the `count` with the most ports in use.

    lives: seconds that TIME_WAIT keeps a port from connect(): 60, the class's time in mode truncate, or what
    tcp_tw_reuse leaves of it.
    """
    counts = [_count(pair, held, lives[pair[1]]) for pair, held in piece.pairs.items()]
    if count is not None:
        counts = heapq.nlargest(count, counts, key=len)
    return [_foresee(each, piece, netns, lives[each.pair[1]], earlier) for each in counts]


def _count(pair: Pair, held: Held, life: float) -> Count:
    over = KERNEL_TIME_WAIT - life
    return Count(pair, sorted(seconds - over for seconds in held.left if seconds > over), held.live)


def _foresee(count: Count, piece: Piece, netns: str, life: float, earlier: Earlier) -> Use:
    pair, left, live = count
    scale = piece.scale
    entries, growth = entry_rate(left, life), earlier.growth(pair, live * scale, scale) / scale
    until = seconds_left(piece.ports - live, left, entries, life, growth)
    rate = max(0.0, entries + growth) * scale
    held = round(len(left) * scale), round(live * scale)
    return Use(netns, pair[0], *pair[1], piece.all_ports, *held, rate, until)


class PortHistory:
    """Looks again and again at the destinations of one namespace, and so knows whether what is alive becomes more.

    sockstat: bounds what one look reads; None: it reads all there is.
    """

    def __init__(self, diag: SockDiag, sysctls: PortRange, netns: str, sockstat: Sockstat | None = None) -> None:
        self._diag, self._sysctls, self._netns, self._sockstat = diag, sysctls, netns, sockstat
        self._at, self._live = -math.inf, dict[Pair, float]()

    def look(
        self,
        times: Mapping[Endpoint, float],
        sessions: Mapping[Endpoint, float] | None = None,
        count: int | None = None,
    ) -> list[Use]:
        """Look at remote endpoints; returns a row for each pair, or for the `count` with the most ports in use.

        times: seconds that the class of each stays in TIME_WAIT, 60 at most. sessions: at most so many are in TIME_WAIT
        toward each (inf: not known); endpoints that can have no more than LEAST of the ports are left out.

        :raises OSError: if the kernel refuses to answer.
        """
        now, ports = time.monotonic(), self._sysctls.range()
        asked, sockets = dict(sessions or dict.fromkeys(times, math.inf)), math.inf
        if self._sockstat:
            asked, sockets = short_of_ports(self._sockstat, asked, LEAST * len(ports))
        if not asked:
            self._at, self._live = now, {}
            return []
        reuse = self._sysctls.reuse()
        lives = {remote: blocked_for(*reuse, remote[0], times[remote]) for remote in asked}
        piece = look(self._diag, ports, asked, sockets)
        uses = measure(piece, self._netns, lives, Earlier(now - self._at, self._live), count)
        self._at, self._live = now, {(use.local, (use.remote, use.remote_port)): use.live for use in uses}
        return uses


def toward(table: Table, tallies: Iterable[Tally], *, daemon: bool) -> Iterator[Use]:
    """Look at remote endpoints that are blamed. daemon: whether one runs, without which nothing is truncated.

    Namespaces that have gone meanwhile are left out.

    :raises TwctlError: where its namespaces cannot be entered.
    """
    remotes = [tally.party for tally in tallies if isinstance(tally.party, Remote)]
    lives = [seconds / 1e9 for seconds in table.lives[: len(Class)]] if daemon and table.mode == "truncate" else None
    with contextlib.ExitStack() as opened:
        histories = []
        for index, name in reachable(table).items():
            mine = [(party.address, party.port) for party in remotes if party.netns == index]
            with contextlib.suppress(TwctlError):
                diag = opened.enter_context(contextlib.closing(SockDiag(name or None)))
                sysctls = opened.enter_context(contextlib.closing(PortRange(name or None)))
                histories.append((PortHistory(diag, sysctls, name), _times(name, mine, lives)))
        for history, times in histories:
            history.look(times)
        time.sleep(APART_SECONDS if remotes else 0)
        for history, times in histories:
            yield from history.look(times)


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


def worst(uses: Iterable[Use], count: int, least: float = LEAST) -> list[Use]:
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
