"""What others do by the same devices: one forges the host's name, one's answers are translated by the host."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import wait_until
from tests.load.duty import on_duty
from tests.load.foreign import CLSACT, TCX, attached, loaded
from tests.load.netns import Link, Namespace, add_addresses, link, namespace
from tests.load.paths import IPV4, IPV6, fin_wait2, over_link
from tests.load.peer import TunPeer, tun_peer
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, SYN, Segment, build, capture, inject
from tests.load.translations import POSTROUTING, nftables
from twctl.linux import tcx

pytestmark = pytest.mark.alone("it waits for replies")

FAMILIES = (IPV4, IPV6)
ETHERTYPE = {IPV4: 0x0800, IPV6: 0x86DD}
# The peer's kernel answers a forged SYN with a RST, which must not end the session.
QUIET = {"net.ipv4.tcp_rfc1337": 1}


@dataclass(frozen=True)
class Neighbours:
    """A host and its peer on one link, and somebody whose macvlan device sends by the host's."""

    link: Link
    neighbour: Namespace


@pytest.fixture(scope="module")
def neighbours(kind: str) -> Iterator[Neighbours]:
    """Stock or guarded."""
    with ExitStack() as stack:
        made = stack.enter_context(link(QUIET))
        other = stack.enter_context(namespace())
        made.client.ip("link", "add", "mac0", "link", made.device, "type", "macvlan", "mode", "bridge")
        made.client.ip("link", "set", "mac0", "netns", other.name)
        other.ip("link", "set", "mac0", "up")
        stack.enter_context(on_duty(kind, made.client))
        yield Neighbours(made, other)


def hardware_address(ns: Namespace, device: str) -> bytes:
    """The Ethernet address of a device."""
    with ns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock, ns.entered():
        sock.bind((device, 0))
        return bytes(sock.getsockname()[4])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_that_a_neighbour_sends_in_the_host_s_name_ends_nothing(neighbours: Neighbours, family: str) -> None:
    """It knows the tuple, and the host's own device is its way out: the peer's FIN is acknowledged as before."""
    made = neighbours.link
    route = over_link(made, family)
    with capture(made.server, made.device) as seen:
        (session,) = fin_wait2(route, 1)
        own, peer = session.client.tuple, session.server.tuple
        fin = next(one for one in seen.segments() if one.tuple == peer and one.has(FIN))
        packet = build(Segment(*own, seq=12_345, ack=0, flags=SYN))
        with neighbours.neighbour.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
            where = "mac0", ETHERTYPE[family], 0, 0, hardware_address(made.server, made.device)
            with neighbours.neighbour.entered():
                sock.sendto(packet, where)
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
