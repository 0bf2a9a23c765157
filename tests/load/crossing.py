"""A host between two links: a peer on one, behind which there are other networks, and a stranger on the other.

    stranger veth0 ---- veth1 host veth0 ---- veth0 peer veth1 ---- veth0 outsider
        10.88.0.2              10.77.0.1      10.77.0.2  veth2 ---- veth0 far (10.55.0.2)
                                                             10.66.0.2

The host reaches all of it through the peer, which routes. The stranger can send the host any frame, and pretend to be
somebody else; so can the outsider, as far as routers let packets pass whose source is not what it says.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.load import wait_until
from tests.load.frames import addressed, framed, hardware_address, send_frames
from tests.load.netns import Link, Namespace, add_addresses, await_address, link, namespace
from tests.load.paths import IPV6, Route, over_lo
from tests.load.segments import ACK, FIN, RST, Capture, Segment, inject

CLOSED_PORT = 9
NEAR, FAR = "near", "far"
_IPV4, _IPV6 = ("10.77.0.1", "10.77.0.2", "10.55.0.2"), ("fd77::1", "fd77::2", "fd55::2")


@dataclass(frozen=True)
class Crossing:
    """All namespaces. device: the host's end of its link with the peer; other: of that with the stranger."""

    host: Namespace
    peer: Namespace
    stranger: Namespace
    outsider: Namespace
    far: Namespace
    link: Link
    device: str = "veth0"
    other: str = "veth1"

    def route(self, family: str, where: str = NEAR) -> Route:
        """From the host to the peer, or to who is far behind it."""
        local, near, far = _IPV6 if family == IPV6 else _IPV4
        if where == FAR:
            return Route(self.host, self.far, local, far, family, self.device)
        return Route(self.host, self.peer, local, near, family, self.device)

    def within(self, family: str, *, own: bool) -> Route:
        """Both ends on the host: over 127.0.0.1 or ::1, or over its own address on the link."""
        route = over_lo(self.host, family)
        if not own:
            return route
        address, *_ = _IPV6 if family == IPV6 else _IPV4
        return Route(self.host, self.host, address, address, family)

    def from_stranger(self, *packets: bytes) -> None:
        """The stranger sends packets to the host, and they are done with when this returns."""
        self._send(self.stranger, (self.host, self.other), packets)
        self._settle(self.stranger, "10.88.0.2", "10.88.0.1")

    def from_peer(self, *packets: bytes, source: bytes | None = None) -> None:
        """As from the peer's link, by the peer or whoever has that hardware address."""
        self._send(self.peer, (self.host, self.device), packets, source)
        self._settle(self.peer, "10.77.0.2", "10.77.0.1")

    def from_outsider(self, *packets: bytes) -> None:
        """As from behind the peer, which routes what it is given, whoever it says that it is from."""
        self._send(self.outsider, (self.peer, "veth1"), packets)
        self._settle(self.outsider, "10.66.0.2", "10.77.0.1")

    def _send(
        self,
        sender: Namespace,
        to: tuple[Namespace, str],
        packets: tuple[bytes, ...],
        source: bytes | None = None,
    ) -> None:
        ends = hardware_address(*to), source or hardware_address(sender, "veth0")
        send_frames(sender, "veth0", [framed(*ends, packet) for packet in packets])

    def _settle(self, sender: Namespace, own: str, host: str) -> None:
        """One more is sent, to a port where nobody listens: its RST comes behind what the others caused."""
        fence = Segment(own, CLOSED_PORT, host, CLOSED_PORT, 0, 1, ACK)
        back = (*fence.tuple[2:], *fence.tuple[:2])
        with addressed(sender, "veth0") as seen:
            inject(sender, fence)
            wait_until(lambda: [s for _, s in seen.found() if s.tuple == back and s.has(RST)], what="RST of the fence")


@contextmanager
def crossing(sysctls: Mapping[str, object] | None = None) -> Iterator[Crossing]:
    """All four, wired."""
    with ExitStack() as stack:
        near = stack.enter_context(link(sysctls))
        stranger, outsider, far = (stack.enter_context(namespace(sysctls)) for _ in range(3))
        host, peer = near.client, near.server
        _join(host, "veth1", stranger, "88")
        _join(peer, "veth1", outsider, "66")
        _join(peer, "veth2", far, "55")
        for family in ("ipv4", "ipv6"):
            peer.sysctl(f"net.{family}.conf.all.forwarding", 1)
        for network in ("55", "66"):
            host.ip("route", "add", f"10.{network}.0.0/24", "via", near.server_ipv4)
            host.ip("route", "add", f"fd{network}::/64", "via", near.server_ipv6)
        for ns, network in ((outsider, "66"), (far, "55")):
            ns.ip("route", "add", "default", "via", f"10.{network}.0.1")
            ns.ip("route", "add", "default", "via", f"fd{network}::1")
        yield Crossing(host, peer, stranger, outsider, far, near)


def _join(near: Namespace, device: str, far: Namespace, network: str) -> None:
    """Another link: a device of one, veth0 of the other."""
    near.ip("link", "add", device, "type", "veth", "peer", "name", "veth0", "netns", far.name)
    for ns, end, number in ((near, device, 1), (far, "veth0", 2)):
        add_addresses(ns, end, f"10.{network}.0.{number}", f"fd{network}::{number}")
    for ns, number in ((near, 1), (far, 2)):
        await_address(ns, f"fd{network}::{number}")


def fin_again(wire: Capture, local: tuple[str, int, str, int]) -> Segment:
    """The FIN that the other end of a session sent, with a newer timestamp: TIME_WAIT acknowledges it."""
    known = wire.seen(*local)
    return Segment(
        *(local[2:] + local[:2]),
        seq=(known.rcv_nxt - 1) % 2**32,
        ack=known.snd_nxt,
        flags=FIN | ACK,
        tsval=((known.ts_recent or 0) + 1) % 2**32,
        tsecr=known.last_tsval or 0,
    )


def rst_of(fin: Segment) -> Segment:
    """The RST that ends the session whose FIN this is: with the exact sequence number."""
    return Segment(*fin.tuple, seq=fin.end, ack=fin.ack, flags=RST)
