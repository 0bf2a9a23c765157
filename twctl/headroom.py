"""How many of the local ports toward a destination are held, and when connect() will find none.

A port is held per destination: by TIME_WAIT (unless tcp_tw_reuse lets connect() take it over) and by live connections.
The kernel's own list, restricted to one remote endpoint, says both, and each TIME_WAIT socket's timer says when it lets
its port go: so one look is enough for a forecast.
"""

import contextlib
import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twctl.blame import Remote, Tally
from twctl.classes import Address, Class
from twctl.kernel import PortRange
from twctl.ports import Ports
from twctl.sockdiag import Held, SockDiag
from twctl.table import Table

KERNEL_TIME_WAIT = 60.0
RATE_SECONDS = 10.0  # the rate of use is that of the last 10 s
STEP_SECONDS = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """The ports of one local address toward one remote endpoint.

    ports: how many there are; time_wait, live: how many are held by what; rate: how many a second begin to be held;
    seconds_left: until none is free at this rate; None: never, as those that are let go keep up.
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


def measure(diag: SockDiag, netns: str, remote: tuple[Address, int], ports: Ports, life: float) -> list[Use]:
    """Look at one destination: a row for each local address, those with most held first.

    life: seconds that TIME_WAIT keeps a port from connect(): 60, the class's time in mode truncate, or what
    tcp_tw_reuse leaves of it.

    :raises OSError: if the kernel refuses to answer.
    """
    by_local: dict[Address, list[Held]] = {}
    for held in diag.toward(remote):
        if held.local_port in ports:
            by_local.setdefault(_unmapped(held.local), []).append(held)
    uses = []
    for local, found in by_local.items():
        blocking, live = _sorted_out(found, life)
        rate = birth_rate(blocking, life)
        until = seconds_left(len(ports) - live, blocking, rate, life)
        uses.append(Use(netns, local, *remote, len(ports), len(blocking), live, rate, until))
    return sorted(uses, key=lambda use: -use.ratio)


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def _sorted_out(found: Iterable[Held], life: float) -> tuple[list[float], int]:
    """What is left (s, sorted) of the time that each TIME_WAIT socket keeps its port, and how many have it alive."""
    found = list(found)
    left = [held.left - (KERNEL_TIME_WAIT - life) for held in found if held.left is not None]
    return sorted(seconds for seconds in left if seconds > 0), sum(held.left is None for held in found)


def birth_rate(left: Sequence[float], life: float) -> float:
    """TIME_WAIT sockets a second, from what is left of their lives (s, sorted): those of the last seconds."""
    if not left:
        return 0.0
    window = max(STEP_SECONDS, min(RATE_SECONDS, life, life - left[0]))
    return (len(left) - bisect_right(left, life - window)) / window


def seconds_left(ports: int, left: Sequence[float], rate: float, life: float) -> float | None:
    """Seconds until so many ports are held, if sessions go on to come at this rate; None: never.

    left: what is left of the lives of those that hold one (s, sorted). Once a life is over as many go as come.
    """
    for step in range(int(life / STEP_SECONDS) + 2):
        seconds = min(step * STEP_SECONDS, life)
        if len(left) - bisect_right(left, seconds) + rate * seconds >= ports:
            return seconds
    return None


def blocked_for(reuse: int, delay: float, remote: Address, life: float) -> float:
    """Seconds that a TIME_WAIT socket keeps its port from connect() (tcp_twsk_unique).

    reuse: tcp_tw_reuse, 2: loopback only; delay: tcp_tw_reuse_delay (s). That both ends use timestamps is taken for
    granted.
    """
    applies = reuse == 1 or (reuse == 2 and remote.is_loopback)  # noqa: PLR2004 - the sysctl's values
    return min(life, delay) if applies else life


def look(diag: SockDiag, sysctls: PortRange, netns: str, remote: tuple[Address, int], own: float) -> list[Use]:
    """Look at one destination of a namespace. own: seconds that its class stays in TIME_WAIT, 60 at most."""
    return measure(diag, netns, remote, sysctls.range(), blocked_for(*sysctls.reuse(), remote[0], own))


def toward(table: Table, tallies: Iterable[Tally]) -> Iterator[Use]:
    """Look at remote endpoints that are blamed, without the daemon: where it truncates, by its classes' times.

    :raises TwctlError: where its namespaces cannot be entered.
    """
    from twctl.routes import RouteWatcher  # noqa: PLC0415 - pyroute2 takes a while

    lives = [seconds / 1e9 for seconds in table.lives[: len(Class)]] if table.mode == "truncate" else None
    with contextlib.ExitStack() as opened:
        members = {}
        for index, name in table.reachable().items():
            diag, sysctls = SockDiag(name or None), PortRange(name or None)
            opened.callback(diag.close)
            opened.callback(sysctls.close)
            members[index] = (
                name,
                diag,
                sysctls,
                opened.enter_context(RouteWatcher({}, name or None)) if lives else None,
            )
        for remote in [tally.party for tally in tallies if isinstance(tally.party, Remote)]:
            if remote.netns in members:
                name, diag, sysctls, routes = members[remote.netns]
                own = lives[routes.explain(remote.address).class_] if lives and routes else KERNEL_TIME_WAIT
                yield from look(diag, sysctls, name, (remote.address, remote.port), min(own, KERNEL_TIME_WAIT))


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
        remote = f"[{use.remote}]" if use.remote.version == 6 else str(use.remote)  # noqa: PLR2004
        where = f"{remote}:{use.remote_port}"
        where = where if len(where) <= 36 else f"...{where[-33:]}"  # noqa: PLR2004 - the column
        until = "for ever" if use.seconds_left is None else f"{use.seconds_left:.0f} s"
        yield f"{where:<36} {use.ratio:>5.0%} {use.time_wait:>9} {use.live:>6} {use.rate:>7.0f} {until:>10}"
