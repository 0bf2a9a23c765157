"""A host between two links: a peer on one, behind which there is another network, and a stranger on the other.

    stranger veth0 ---- veth1 host veth0 ---- veth0 peer (10.55.0.1, fd55::1)

The host reaches the far network through the peer. The stranger can send it any frame, and pretend to be the peer.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.load import wait_until
from tests.load.frames import addressed, framed, hardware_address, send_frames
from tests.load.netns import Link, Namespace, add_addresses, await_address, link, namespace
from tests.load.paths import IPV6, Route, over_lo
from tests.load.segments import ACK, FIN, RST, Capture, Segment, build

CLOSED_PORT = 9
NEAR, FAR = "near", "far"
_FAR = {4: "10.55.0.1", 6: "fd55::1"}


@dataclass(frozen=True)
class Crossing:
    """The three namespaces. device: the host's end of its link with the peer; other: of that with the stranger."""

    host: Namespace
    peer: Namespace
    stranger: Namespace
    link: Link
    device: str = "veth0"
    other: str = "veth1"

    def route(self, family: str, where: str = NEAR) -> Route:
        """From host to peer, by its address on the link or by that behind it."""
        if family == IPV6:
            local, near = self.link.client_ipv6, self.link.server_ipv6
        else:
            local, near = self.link.client_ipv4, self.link.server_ipv4
        far = _FAR[6 if family == IPV6 else 4]
        return Route(self.host, self.peer, local, far if where == FAR else near, family, self.device)

    def within(self, family: str, *, own: bool) -> Route:
        """Both ends on the host: over 127.0.0.1 or ::1, or over its own address on the link."""
        route = over_lo(self.host, family)
        if not own:
            return route
        address = self.link.client_ipv6 if family == IPV6 else self.link.client_ipv4
        return Route(self.host, self.host, address, address, family)

    def from_stranger(self, *packets: bytes) -> None:
        """The stranger sends packets to the host, and they are done with when this returns."""
        self._send(self.stranger, self.other, hardware_address(self.stranger, "veth0"), packets)
        self._settle(self.stranger, self.other)

    def from_peer(self, *packets: bytes, source: bytes | None = None) -> None:
        """As from the peer's link, by the peer or whoever has that hardware address."""
        self._send(self.peer, self.device, source or hardware_address(self.peer, "veth0"), packets)
        self._settle(self.peer, self.device)

    def _send(self, sender: Namespace, device: str, source: bytes, packets: tuple[bytes, ...]) -> None:
        destination = hardware_address(self.host, device)
        send_frames(sender, "veth0", [framed(destination, source, packet) for packet in packets])

    def _settle(self, sender: Namespace, device: str) -> None:
        """One more is sent, to a port where nobody listens: its RST comes behind what the others caused."""
        own, host = _ADDRESSES[device]
        fence = Segment(own, CLOSED_PORT, host, CLOSED_PORT, 0, 1, ACK)
        with addressed(sender, "veth0") as seen:
            self._send(sender, device, hardware_address(sender, "veth0"), (build(fence),))
            back = (host, CLOSED_PORT, own, CLOSED_PORT)
            wait_until(lambda: [s for _, s in seen.found() if s.tuple == back and s.has(RST)], what="RST of the fence")


_ADDRESSES = {"veth0": ("10.77.0.2", "10.77.0.1"), "veth1": ("10.88.0.2", "10.88.0.1")}


@contextmanager
def crossing(sysctls: Mapping[str, object] | None = None) -> Iterator[Crossing]:
    """The three, wired."""
    with ExitStack() as stack:
        near = stack.enter_context(link(sysctls))
        stranger = stack.enter_context(namespace(sysctls))
        host = near.client
        host.ip("link", "add", "veth1", "type", "veth", "peer", "name", "veth0", "netns", stranger.name)
        add_addresses(host, "veth1", "10.88.0.1", "fd88::1")
        add_addresses(stranger, "veth0", "10.88.0.2", "fd88::2")
        await_address(host, "fd88::1")
        await_address(stranger, "fd88::2")
        near.server.ip("address", "add", "10.55.0.1/32", "dev", "lo")
        near.server.ip("address", "add", "fd55::1/128", "dev", "lo", "nodad")
        await_address(near.server, "fd55::1")
        host.ip("route", "add", "10.55.0.0/24", "via", near.server_ipv4)
        host.ip("route", "add", "fd55::/64", "via", near.server_ipv6)
        yield Crossing(host, near.server, stranger, near)


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
