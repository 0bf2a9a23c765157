"""What holds local ports toward remote endpoints: the kernel's list of them, read in bounded memory.

Of a list of more than MOST_SOCKETS one look reads a piece: the sockets on some of the local ports, from all over the
range (Ports.piece). What holds those ports is counted exactly, and stands for the whole.
"""

import dataclasses
import math
from array import array
from collections.abc import Collection, Mapping
from typing import NamedTuple, Self

from twctl.addresses import Address, Endpoint
from twctl.linux.ports import Ports
from twctl.linux.procfs import Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import endpoints

MOST_SOCKETS = 16384
# The list comes in the order of a hash: who holds a twentieth of the ports is seen long before so many others are.
MOST_PAIRS = 4096
# Looks at the ports take at most this share of one CPU, whatever the load: the longer one took, the later the next.
# With all that is around them they stay below 1 %.
LOOK_SHARE = 0.0075

Pair = tuple[Address, Endpoint]  # local address, remote endpoint


@dataclasses.dataclass(slots=True)
class Held:
    """What holds ports from one local address toward one remote endpoint.

    ports: local ports of the sockets in TIME_WAIT; left: in the same order, seconds until each ends; live: number of
    connections.
    """

    ports: "array[int]" = dataclasses.field(default_factory=lambda: array("H"))
    left: "array[float]" = dataclasses.field(default_factory=lambda: array("f"))
    live: int = 0

    def add(self, port: int, left: float | None) -> None:
        """Count one socket. left: seconds until its TIME_WAIT ends; None: it is a connection."""
        if left is None:
            self.live += 1
        else:
            self.ports.append(port)
            self.left.append(left)

    def extend(self, other: Self) -> None:
        """Count all that the other one has counted."""
        self.ports.extend(other.ports)
        self.left.extend(other.left)
        self.live += other.live


class Piece(NamedTuple):
    """A part of the local ports, and what holds them. ports: how many are in it; all_ports: in the whole range."""

    ports: int
    all_ports: int
    pairs: Mapping[Pair, Held]

    @property
    def scale(self) -> float:
        """How many ports each one of the piece stands for."""
        return self.all_ports / self.ports if self.ports else 1.0


def pause(least: float, cost: float) -> float:
    """Seconds until the next look. least: between two of them; cost: CPU time that this one took (s)."""
    return max(least, cost / LOOK_SHARE - cost)


def pieces(ports: Ports, sockets: float) -> int:
    """In how many pieces so many sockets are read; inf: all at once."""
    return 1 if math.isinf(sockets) else min(ports.pieces(), max(1, math.ceil(sockets / MOST_SOCKETS)))


def short_of_ports(
    sockstat: Sockstat, sessions: Mapping[Endpoint, float], least: float
) -> tuple[dict[Endpoint, float], float]:
    """Return the endpoints that can hold `least` ports, by the kernel's count of sockets, and the most for all of them.

    sessions: at most so many are in TIME_WAIT toward each (inf: not known). Live connections are counted as if all went
    to one endpoint.
    """
    time_wait, live = sockstat.time_wait(), sockstat.in_use()
    found = {remote: most for remote, most in sessions.items() if min(time_wait, most) + live >= least}
    return found, min(time_wait, sum(found.values())) + live


def look(diag: SockDiag, ports: Ports, remotes: Collection[Endpoint], sockets: float, turn: int = 0) -> Piece:
    """Read what goes toward some remote endpoints, or a piece of it where that may be too many `sockets`.

    turn: which piece it is to be; one after the other they are the whole.

    :raises OSError: if the kernel refuses to answer.
    """
    of = pieces(ports, sockets)
    parts = ports.piece(turn % of, of)
    found: dict[tuple[int, bytes], Held] = {}
    for family, ends, port, left in diag.toward(list(remotes), parts) if remotes else ():
        if port in ports:
            pair = family, ends
            held = found.get(pair)
            if held is None:
                if len(found) >= MOST_PAIRS:
                    continue
                held = found[pair] = Held()
            held.add(port, left)
    return Piece(ports.count(parts), len(ports), _by_address(found, remotes))


def _by_address(found: Mapping[tuple[int, bytes], Held], remotes: Collection[Endpoint]) -> dict[Pair, Held]:
    """Sockets of IPv4, and dual-stack ones of IPv6, may have the same addresses on the wire: both hold the ports."""
    pairs: dict[Pair, Held] = {}
    for (family, ends), held in found.items():
        pair = endpoints(family, ends)
        if pair[1] in remotes:
            pairs.setdefault(pair, Held()).extend(held)
    return pairs
