"""Sockets that are closed at one end only: in CLOSE_WAIT their owner has not, and of orphans the peer has not."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection

from twctl.addresses import Endpoint
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import endpoints
from twctl.linux.tcp import TCP_CLOSE_WAIT, TCP_CLOSING, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK

ORPHAN_STATES = 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 | 1 << TCP_CLOSING | 1 << TCP_LAST_ACK


@dataclasses.dataclass(frozen=True, slots=True)
class HalfClosed:
    """How many, by the number of the cgroup that made them (None: not known).

    closed_by, toward: those in CLOSE_WAIT, and orphans, by remote endpoint.
    """

    close_wait: Counter[int | None]
    closed_by: Counter[Endpoint]
    orphans: Counter[int | None]
    toward: Counter[Endpoint]


def in_close_wait(name: str) -> frozenset[bytes]:
    """Cookies of the sockets in CLOSE_WAIT. name: of the namespace, empty for our own.

    :raises TwctlError: if it cannot be entered; OSError if the kernel refuses to answer.
    """
    with contextlib.closing(SockDiag(name or None)) as diag:
        return frozenset(each.cookie for each in diag.listed(1 << TCP_CLOSE_WAIT))


def look_unclosed(name: str, before: Collection[bytes]) -> HalfClosed:
    """Read the kernel's list. name: of the namespace, empty for our own. An orphan keeps its cgroup.

    before: what was in CLOSE_WAIT at an earlier look; others are not counted, as they may be closed at once.

    :raises TwctlError: if it cannot be entered; OSError if the kernel refuses to answer.
    """
    close_wait: Counter[int | None] = Counter()
    closed_by: Counter[Endpoint] = Counter()
    orphans: Counter[int | None] = Counter()
    toward: Counter[Endpoint] = Counter()
    with contextlib.closing(SockDiag(name or None)) as diag:
        for each in diag.listed(1 << TCP_CLOSE_WAIT | ORPHAN_STATES):
            if each.state == TCP_CLOSE_WAIT:
                if each.cookie in before:
                    close_wait[each.cgroup] += 1
                    closed_by[endpoints(each.family, each.ends)[1]] += 1
            elif not each.owned:
                orphans[each.cgroup] += 1
                toward[endpoints(each.family, each.ends)[1]] += 1
    return HalfClosed(close_wait, closed_by, orphans, toward)
