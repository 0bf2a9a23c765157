"""How many ports the host's own translation has left: SNAT and MASQUERADE hold one for each connection.

Where the addresses and ports of several containers become one address's on the wire, each connection needs a port there
that is its own toward the destination, and has it until conntrack forgets the connection. Where none is left, a new
connection's SYN is dropped, which to who connects looks as if ports were used up.
"""

import contextlib
import ipaddress
from dataclasses import dataclass

from twctl.linux import conntrack
from twctl.linux.conntrack import Fill, Key, Sample

# So many entries are read at most: 0.1 s, and a share of the ports is right within some hundredths.
SAMPLED = 16384
# Ports that a connection may get which had one of 1024 and more: nf_nat_l4proto_unique_tuple(), if the rule names none.
PORTS = 65536 - 1024
# What holds less of them is not told.
LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Translation:
    """An address that a namespace gives connections on the wire, and a destination of theirs.

    taken: ports of the address that are held toward it, by whichever connection; closed: those of them whose connection
    is in conntrack's TIME_WAIT.
    """

    netns: str
    source: str
    remote: str
    remote_port: int
    taken: int
    closed: int

    @property
    def used(self) -> float:
        """Share of the ports."""
        return self.taken / PORTS


def look(netns: str, most: int) -> tuple[Fill | None, list[Translation]]:
    """Of the calling thread's namespace, which has this name. most: of how many it is told; 0: entries are not read."""
    found = conntrack.fill()
    if found and most and found.entries >= LEAST * PORTS:
        with contextlib.suppress(OSError):  # a kernel without ctnetlink does not list them
            return found, translations(netns, conntrack.sample(SAMPLED), found.entries, most)
    return found, []


def translations(netns: str, found: Sample, entries: int, most: int) -> list[Translation]:
    """The `most` with fewest ports left, the worst first. entries: how many there were to take the sample of."""
    scale = 1.0 if found.complete else max(1.0, entries / found.read)
    worst = sorted(found.translated, key=lambda key: -found.ports[key])[:most]
    return [_translation(netns, key, found, scale) for key in worst if found.ports[key] * scale >= LEAST * PORTS]


def _translation(netns: str, key: Key, found: Sample, scale: float) -> Translation:
    taken = min(PORTS, round(found.ports[key] * scale))
    return Translation(
        netns=netns,
        source=str(ipaddress.ip_address(key.source)),
        remote=str(ipaddress.ip_address(key.remote)),
        remote_port=int.from_bytes(key.remote_port, "big"),
        taken=taken,
        closed=min(taken, round(found.closed.get(key, 0) * scale)),
    )
