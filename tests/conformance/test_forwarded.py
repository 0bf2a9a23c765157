"""A container's connection that is masqueraded to the tuple of a session of the host: it is the container's alone."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import wait_until
from tests.load.counters import CLOSE, plain
from tests.load.duty import FIN_WAIT2, TIME_WAIT
from tests.load.netns import Namespace, add_addresses, await_address, namespace
from tests.load.paths import IPV4, IPV6, state_of
from tests.load.peer import Connection, Tuple
from tests.load.segments import ACK, FIN, PSH
from tests.load.translations import (
    ADDRESSES,
    POSTROUTING,
    TranslatedDuty,
    Translation,
    forget,
    nftables,
    translated_duty,
)

pytestmark = pytest.mark.alone("it waits for replies")

FAMILIES = (IPV4, IPV6)
CONTAINER = {IPV4: ("172.17.9.1", "172.17.9.2"), IPV6: ("fd99::1", "fd99::2")}
PORT = 30_011  # the only one that a container's connection gets
MASQUERADE = Translation(nftables(POSTROUTING % f'iifname "veth9" meta l4proto tcp masquerade to :{PORT}'), same=True)


@dataclass(frozen=True)
class Node:
    """A host whose sessions somebody is on duty for, and a container behind it."""

    duty: TranslatedDuty
    container: Namespace


@pytest.fixture(scope="module")
def node(kind: str) -> Iterator[Node]:
    """Stock or guarded."""
    with ExitStack() as stack:
        container = stack.enter_context(namespace())
        duty = stack.enter_context(translated_duty(kind, MASQUERADE))
        host = duty.ns
        host.ip("link", "add", "veth9", "type", "veth", "peer", "name", "veth0", "netns", container.name)
        for ns, device, end in ((host, "veth9", 0), (container, "veth0", 1)):
            add_addresses(ns, device, CONTAINER[IPV4][end], CONTAINER[IPV6][end])
        for ns, end in ((host, 0), (container, 1)):
            await_address(ns, CONTAINER[IPV6][end])
        for family, option in ((IPV4, "-4"), (IPV6, "-6")):
            container.ip(option, "route", "add", "default", "via", CONTAINER[family][0])
            host.sysctl(f"net.{family}.conf.all.forwarding", 1)
        if watch := duty.watch:
            wait_until(lambda: watch.metric("twctl_guard_devices") == 3, what="the guard on the container's link")
        yield Node(duty, container)


def dial(node: Node, family: str, target: tuple[str, int]) -> tuple[socket.socket, Tuple]:
    """The container dials; what the peer sees of it."""
    sock = node.container.socket(socket.AF_INET if family == IPV4 else socket.AF_INET6)
    sock.settimeout(0)
    assert sock.connect_ex(target) == errno.EINPROGRESS
    return sock, node.duty.peer.caller(8.0)  # if its first SYN is held back, the second


@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_container_s_connection_is_its_own(node: Node, family: str, state: str) -> None:
    """Opened, used and closed from both ends with the host's name and a tuple of the host's: nobody else answers."""
    duty, peer = node.duty, node.duty.peer
    target = ADDRESSES[family]["peer"], 7000 + (state == FIN_WAIT2)
    subject = duty.closed_from(PORT, target[1], state, family)
    forget(duty, subject)  # as conntrack does in time; as long as it knows both it gives the container another port
    assert duty.fires(subject)
    sock, wire = dial(node, family, target)
    with sock:
        assert wire == subject.connection.tuple
        assert plain(sock.getsockname()[0]) == CONTAINER[family][1]
        connection = peer.answer(wire, isn=77_000_000)
        sock.settimeout(5)
        converse(sock, connection)
        sock.shutdown(socket.SHUT_WR)
        connection.expect(FIN | ACK)
        connection.send(FIN | ACK)
        connection.expect(ACK)
        assert sock.recv(1) == b""
        wait_until(lambda: state_of(sock) == CLOSE, what="the container's end is in TIME_WAIT")
        connection.send(FIN | ACK, seq=connection.snd_nxt - 1)  # once more: of the container's end, not of the host's
        answer = connection.expect(ACK)
        assert (connection.rcv_nxt, connection.snd_nxt) == (answer.seq, answer.ack)
    assert [] == peer.received(connection) + peer.strays()


def converse(sock: socket.socket, connection: Connection) -> None:
    """Some bytes each way."""
    sock.sendall(b"asked")
    assert connection.expect(ACK).payload == b"asked"
    connection.send(ACK | PSH, b"answered")
    assert sock.recv(100) == b"answered"
    connection.expect(ACK)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_s_session_is_not_the_container_s(node: Node, family: str) -> None:
    """What is forwarded and has no tuple of the host's leaves the host's sessions alone."""
    duty, peer = node.duty, node.duty.peer
    subject = duty.closed_from(PORT + 1, 7010, TIME_WAIT, family)
    sock, wire = dial(node, family, (ADDRESSES[family]["peer"], 7010))
    with sock:
        assert wire != subject.connection.tuple
        connection = peer.answer(wire)
        sock.settimeout(5)
        converse(sock, connection)
    assert duty.fires(subject)
    connection.expect(FIN | ACK)
