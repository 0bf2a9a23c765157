"""What the kernel's own lists of sockets say of the ports that connect() chooses from, in one network namespace."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from twctl.addresses import Endpoint
from twctl.errors import TwctlError
from twctl.linux.ports import Ports
from twctl.linux.procfs import PortRange
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import endpoints
from twctl.linux.tcp import TCP_BOUND_INACTIVE, TCP_LISTEN
from twctl.modes.headroom import LEAST
from twctl.table.tallies import Remote

# Destinations with the most live connections that are kept.
KEPT = 100

Seen = TypeVar("Seen")


@dataclasses.dataclass(frozen=True, slots=True)
class Around:
    """Sockets on these ports.

    live: connections by remote endpoint; ends: the local end of one of them. listening: sockets that wait for
    connections; bound: those that have nothing but the port.
    """

    name: str
    ports: Ports
    live: Mapping[Endpoint, int]
    ends: Mapping[Endpoint, Endpoint]
    listening: int
    bound: int


def each_there(indexes: Iterable[int], look: Callable[[int], Seen]) -> dict[int, Seen]:
    """What is seen in each of some namespaces, by index; those that have gone meanwhile are left out.

    :raises TwctlError: if none of them can be entered.
    """
    found: dict[int, Seen] = {}
    gone: TwctlError | None = None
    for index in indexes:
        try:
            found[index] = look(index)
        except TwctlError as error:
            gone = error
    if gone and not found:
        raise gone
    return found


def look_around(name: str) -> Around:
    """Read them. name: of the namespace, empty for our own.

    :raises TwctlError: if it cannot be entered; OSError if the kernel refuses to answer.
    """
    with contextlib.closing(PortRange(name or None)) as sysctls, contextlib.closing(SockDiag(name or None)) as diag:
        ports = sysctls.range()
        span = [range(ports.first, ports.last + 1)]
        live: Counter[tuple[int, bytes]] = Counter()
        local_ports: dict[tuple[int, bytes], int] = {}
        for family, raw, port, left in diag.on_ports(span):
            if left is None:
                live[family, raw] += 1
                local_ports[family, raw] = port
        listening, bound = (
            sum(1 for _ in diag.on_ports(span, 1 << state)) for state in (TCP_LISTEN, TCP_BOUND_INACTIVE)
        )
    found: Counter[Endpoint] = Counter()
    ends: dict[Endpoint, Endpoint] = {}
    for key, count in live.most_common(KEPT):
        local, remote = endpoints(*key)
        found[remote] += count
        ends.setdefault(remote, (local, local_ports[key]))
    return Around(name, ports, found, ends, listening, bound)


def crowded(lists: Mapping[int, Around], count: int) -> Iterator[Remote]:
    """The `count` endpoints of each namespace with most live connections, where these are a part of the ports.

    lists: by index of the namespace.
    """
    for index, each in lists.items():
        most = sorted(each.live.items(), key=lambda item: -item[1])[:count]
        yield from (Remote(*endpoint, index) for endpoint, live in most if live >= LEAST * len(each.ports))


def cgroup_of(around: Around, remote: Endpoint) -> int | None:
    """The number of the cgroup that made one of the connections toward an endpoint; None: not known."""
    with contextlib.suppress(OSError, TwctlError), contextlib.closing(SockDiag(around.name or None)) as diag:
        return diag.cgroup(around.ends[remote], remote) if remote in around.ends else None
    return None
