"""What others do by the same devices: one forges the host's name, one's answers are translated by the host."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import wait_until
from tests.load.duty import on_duty
from tests.load.foreign import CLSACT, TCX, attached, loaded
from tests.load.frames import ETHERTYPE, hardware_address
from tests.load.netns import Link, Namespace, add_addresses, link, namespace
from tests.load.paths import IPV4, IPV6, fin_wait2, over_link
from tests.load.peer import TunPeer, open_tun, tun_peer
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, SYN, Segment, build, capture, inject
from tests.load.translations import POSTROUTING, nftables
from twctl.linux import tcx

pytestmark = pytest.mark.alone("it waits for replies")

# The peer's kernel answers a forged SYN with a RST, which must not end the session.
QUIET = {"net.ipv4.tcp_rfc1337": 1}


@dataclass(frozen=True)
class Neighbours:
    """A host and its peer on one link, and somebody whose macvlan device sends by the host's."""

    link: Link
    neighbour: Namespace
    tun: int  # what is written here the neighbour forwards, with the hardware address of the host's device
    tun_behind: int  # so does somebody behind the neighbour's bridge


@pytest.fixture(scope="module")
def neighbours(kind: str) -> Iterator[Neighbours]:
    """Stock or guarded."""
    with ExitStack() as stack:
        made = stack.enter_context(link(QUIET))
        other, behind = (stack.enter_context(namespace()) for _ in range(2))
        made.client.ip("link", "add", "mac0", "link", made.device, "type", "macvlan", "mode", "bridge")
        made.client.ip("link", "set", "mac0", "netns", other.name)
        other.ip("link", "add", "br0", "type", "bridge")
        other.ip("link", "add", "veth1", "type", "veth", "peer", "name", "veth0", "netns", behind.name)
        for port in ("mac0", "veth1"):
            other.ip("link", "set", port, "master", "br0", "up")
        tuns = [_disguised(made, ns, device) for ns, device in ((other, "br0"), (behind, "veth0"))]
        for tun in tuns:
            stack.callback(os.close, tun)
        stack.enter_context(on_duty(kind, made.client))
        yield Neighbours(made, other, *tuns)


def _disguised(made: Link, ns: Namespace, device: str) -> int:
    """A tun device of a namespace that forwards by a device, which gets the hardware address of the host's."""
    tun = open_tun(ns, "tun0")
    own, peer = (hardware_address(end, made.device).hex(":") for end in (made.client, made.server))
    ns.ip("link", "set", device, "address", own, "up")
    ns.ip("link", "set", "tun0", "up")
    ns.ip("route", "add", made.server_ipv4, "dev", device)
    ns.ip("neighbour", "add", made.server_ipv4, "dev", device, "lladdr", peer)
    ns.sysctl("net.ipv4.conf.all.forwarding", 1)
    return tun


def by_neighbour(on: Neighbours, segment: Segment) -> None:
    """It has no address of the host's, neither of IP nor of Ethernet."""
    packet = build(segment)
    where = "mac0", ETHERTYPE[packet[0] >> 4], 0, 0, hardware_address(on.link.server, on.link.device)
    with on.neighbour.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock, on.neighbour.entered():
        sock.sendto(packet, where)


def by_disguised_neighbour(on: Neighbours, segment: Segment) -> None:
    """As one with an ipvlan device, which always has the host's hardware address."""
    os.write(on.tun, build(segment))


def by_one_behind(on: Neighbours, segment: Segment) -> None:
    """So that no route of the neighbour's own leads there."""
    os.write(on.tun_behind, build(segment))


def by_raw_socket(on: Neighbours, segment: Segment) -> None:
    """The host's own."""
    inject(on.link.client, segment)


SENDERS: tuple[tuple[Callable[[Neighbours, Segment], None], str], ...] = (
    (by_neighbour, IPV4),
    (by_neighbour, IPV6),
    (by_disguised_neighbour, IPV4),
    (by_one_behind, IPV4),
    (by_raw_socket, IPV4),
    (by_raw_socket, IPV6),
)


@pytest.mark.parametrize(("sender", "family"), SENDERS)
def test_a_syn_that_no_connection_of_the_host_s_sends_ends_nothing(
    neighbours: Neighbours, sender: Callable[[Neighbours, Segment], None], family: str
) -> None:
    """It has the session's tuple, and leaves by the host's own device: the peer's FIN is acknowledged as before."""
    made = neighbours.link
    with capture(made.server, made.device) as seen:
        (session,) = fin_wait2(over_link(made, family), 1)
        own, peer = session.client.tuple, session.server.tuple
        fin = next(one for one in seen.segments() if one.tuple == peer and one.has(FIN))
        sender(neighbours, Segment(*own, seq=12_345, ack=0, flags=SYN))
        wait_until(lambda: any(one.flags == SYN and one.seq == 12_345 for one in seen.segments()), what="it arrives")
        before = len(seen.segments())
        inject(made.server, fin)
        wait_until(lambda: any(one.tuple == own for one in seen.segments()[before:]), what="an answer")
        answer = next(one for one in seen.segments()[before:] if one.tuple == own)
    assert (ACK, fin.end) == (answer.flags, answer.ack)


POD = "172.17.9.2"
MASQUERADE = nftables(POSTROUTING % 'oifname "tun0" masquerade')


@pytest.fixture(scope="module")
def pod(kind: str) -> Iterator[tuple[Namespace, TunPeer]]:
    """A container that the host masquerades, both with somebody on duty. Another program is on the way out."""
    with ExitStack() as stack:
        host, container = (stack.enter_context(namespace()) for _ in range(2))
        peer = stack.enter_context(tun_peer(host))
        host.ip("link", "add", "veth9", "type", "veth", "peer", "name", "veth0", "netns", container.name)
        add_addresses(host, "veth9", "172.17.9.1", "fd99::1")
        add_addresses(container, "veth0", POD, "fd99::2")
        container.ip("route", "add", "default", "via", "172.17.9.1")
        host.sysctl("net.ipv4.conf.all.forwarding", 1)
        MASQUERADE(host)
        program = stack.enter_context(loaded())["passes"]
        form = TCX if tcx.is_available() else CLSACT
        stack.enter_context(attached(host, "tun0", form, {}, {"passes": program}))
        stack.enter_context(on_duty(kind, host, container))
        yield container, peer


def test_an_answer_of_a_container_s_is_translated_like_all_that_it_sends(pod: tuple[Namespace, TunPeer]) -> None:
    """The peer's FIN comes three times more, and each time its ACK comes from the host's address."""
    container, peer = pod
    with container.socket(socket.AF_INET) as sock:
        sock.settimeout(0)
        assert sock.connect_ex(("10.78.0.2", 80)) == errno.EINPROGRESS
        connection = peer.answer(peer.caller())
        sock.settimeout(5)
        SCRIPTS["fin_wait2"][0](sock, connection)
    for _ in range(3):
        connection.send(FIN | ACK, seq=connection.snd_nxt - 1)
        connection.expect(ACK)
    assert [] == peer.strays()
