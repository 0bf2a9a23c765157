"""Why the guard may not see on a device what a local socket sees: something changes or takes packets in between."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from pyroute2.netlink import NETLINK_XFRM, NLM_F_DUMP, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.nlsocket import NetlinkSocket

from twctl.linux import tcx
from twctl.linux.devices import devices
from twctl.linux.netlink import RouteNetlink, complete
from twctl.linux.netns import inside
from twctl.linux.tc import INGRESS, filters
from twctl.modes.filters import PRIORITIES, owner

XFRM_MSG_GETPOLICY = 0x15  # linux/xfrm.h
KINDS = ("xdp", "tc", "ipvlan", "ipsec", "egress")


class Obstacle(NamedTuple):
    """One of these kinds, and a line that says what it is and does."""

    kind: str
    text: str


@dataclasses.dataclass(slots=True)
class PassedBy:
    """Whether sessions end without the guard: other programs let packets out before it sees them.

    A few may have been half closed since before anybody looked, and a program may concern one device of several: so it
    takes most of the sessions of one look, or some of two in a row; and two looks without any to take it back.

    A socket without memory for a note (optmem, which its own user can use up) is none: its FIN was seen.

    noted, missed: sessions until the last look; unnoted: SYNs and FINs. turns: looks in a row that speak against what
    is known.
    """

    noted: int
    missed: int
    unnoted: int
    standing: bool = False
    turns: int = 0

    def look(self, noted: int, missed: int, unnoted: int) -> Iterator[Obstacle]:
        """The obstacle, if there is one."""
        fresh, passed = noted - self.noted, max(0, missed - self.missed - (unnoted - self.unnoted))
        self.noted, self.missed, self.unnoted = noted, missed, unnoted
        if fresh or passed:
            self.turns = self.turns + 1 if self.standing == (not passed) else 0
        if self.turns == 2 or passed > fresh:  # noqa: PLR2004 - in a row
            self.standing, self.turns = passed > 0, 0
        if self.standing:
            text = "another program lets packets out before the guard sees them"
            yield Obstacle("egress", f"{text} ('tc filter show dev DEVICE egress', 'bpftool net')")


class PolicyId(nlmsg):  # type: ignore[misc]
    """struct xfrm_userpolicy_id, all zero: every policy. pyroute2 has nothing of XFRM but its generic socket."""

    fields = (("id", "64s"),)


def obstacles(netns: str | None) -> Iterator[Obstacle]:
    """Each in this network namespace.

    :raises TwctlError: if the namespace cannot be entered.
    """
    yield from _programs(netns)
    yield from inside(netns, lambda: list(_rules()))


def _programs(netns: str | None) -> Iterator[Obstacle]:
    """Programs that get packets before the guard does."""
    with contextlib.closing(RouteNetlink(netns)) as netlink, netlink.requests() as requests:
        for device in devices(requests):
            if device.xdp:
                yield Obstacle("xdp", f"XDP on {device.name}: what it redirects or drops does not reach the guard")
            if device.l3s:
                yield Obstacle("ipvlan", f"{device.name} is ipvlan in mode l3s: what comes in there does not pass TC")
            if tcx.is_available():  # there the guard is first
                continue
            for each in filters(requests, device.number):
                if each.parent == INGRESS and each.priority <= PRIORITIES[INGRESS] and owner(each) is None:
                    text = f"another TC filter on {device.name} runs before the guard (pref {each.priority})"
                    yield Obstacle("tc", text)


def _rules() -> Iterator[Obstacle]:
    """What the thread's namespace hides from TC."""
    if policies := _policies():
        yield Obstacle("ipsec", f"{len(policies)} IPsec policies: the guard does not see inside ESP")


def _policies() -> list[nlmsg]:
    """All of IPsec; none where the kernel has no such subsystem."""
    request = PolicyId()
    request["id"] = bytes(64)
    with contextlib.suppress(OSError), NetlinkSocket(family=NETLINK_XFRM) as xfrm:
        ask = partial(xfrm.nlm_request, request, XFRM_MSG_GETPOLICY, NLM_F_REQUEST | NLM_F_DUMP)
        return complete(lambda: list(ask()))
    return []
