"""A connection takes a session's tuple without the guard: the session is over, as on a stock host."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.load.counters import tcp
from tests.load.duty import on_duty
from tests.load.netns import Link, link
from tests.load.paths import IPV4, IPV6
from tests.load.peer import Connection
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, PSH
from tests.load.translations import (
    PREROUTING,
    TranslatedDuty,
    Translation,
    forget,
    nftables,
    translated_duty,
)

pytestmark = pytest.mark.alone("it waits for replies")

FAMILIES = (IPV4, IPV6)
# Two ports of the host are one of a socket's.
REDIRECT = PREROUTING % 'iifname "tun0" tcp dport {{ 80, 81 }} redirect to :8080'
TWO = Translation(nftables(REDIRECT), local=("any", 8080), target=("host", 80), served=True)
OWN_PORT = 5555
fin_wait2 = SCRIPTS["fin_wait2"][0]
N = 5


@pytest.fixture(scope="module")
def redirected(kind: str) -> Iterator[TranslatedDuty]:
    """Stock or guarded."""
    with translated_duty(kind, TWO) as made:
        yield made


def say(sock: socket.socket, connection: Connection, text: bytes) -> None:
    """The peer says something, and the socket hears it."""
    connection.send(ACK | PSH, text)
    connection.expect(ACK)
    assert sock.recv(100) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_whose_socket_has_come_again_is_not_there_when_that_is_gone(
    redirected: TranslatedDuty, family: str
) -> None:
    """A session on port 80. Its socket's tuple comes again by port 81, then the one on the wire by port 80.

    To that one conntrack gives another socket. It lives on when the other is gone: nothing answers in its place.
    """
    duty = redirected
    with ExitStack() as stack:
        listener = stack.enter_context(duty.listening(family))
        sock, first = duty.accepted(listener, family, own_port=OWN_PORT)
        with sock:
            fin_wait2(sock, first)
        forget(duty, duty.subject(first))

        again, second = duty.accepted(listener, family, port=81, own_port=OWN_PORT, isn=5_000_000)
        assert duty.ends(first) == duty.ends(second)
        sock, third = duty.accepted(listener, family, own_port=OWN_PORT, isn=9_000_000)
        stack.enter_context(sock)
        assert first.tuple == third.tuple
        sock.settimeout(5)
        say(sock, third, b"before")
        with again:
            second.send(FIN | ACK)
            assert again.recv(1) == b""
        while not (segment := second.peer.receive(second, 3.0)) or not segment.has(FIN):
            assert segment
        second.send(ACK, ack=segment.end)
        say(sock, third, b"after")
        third.send(FIN | ACK)
        assert sock.recv(1) == b""


# A SYN may have data, without a cookie: clients 1 and 4, servers 2 and 0x200 (ip-sysctl).
FASTOPEN = {"net.ipv4.tcp_fastopen": 0x207}


@pytest.fixture(scope="module")
def joined(kind: str) -> Iterator[Link]:
    """Two namespaces, the client's with somebody on duty."""
    with ExitStack() as stack:
        made = stack.enter_context(link(FASTOPEN))
        stack.enter_context(on_duty(kind, made.client))
        yield made


@pytest.mark.parametrize("data", [b"", b"with the SYN"])
@pytest.mark.parametrize("length", [8, 16])
def test_a_syn_that_leaves_in_a_shape_of_its_own_is_answered(joined: Link, length: int, data: bytes) -> None:
    """IPv6 with destination options: the guard follows 8 bytes of them, and 16 it does not. No SYN is sent twice."""
    options = bytes([0, length // 8 - 1, 0x1E, length - 4]) + bytes(length - 4)
    with joined.server.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, N)
        listener.listen()
        target = joined.server_ipv6, listener.getsockname()[1]
        before = tcp(joined.client)["RetransSegs"]
        for turn in range(N):
            with joined.client.socket(socket.AF_INET6) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("::", 30_000 + length))
                if turn:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
                sock.settimeout(5)
                if data:
                    sock.sendto(data, socket.MSG_FASTOPEN, target)
                else:
                    sock.connect(target)
                listener.settimeout(5)
                with listener.accept()[0] as server:
                    server.settimeout(5)
                    sock.shutdown(socket.SHUT_WR)
                    assert server.recv(len(data), socket.MSG_WAITALL) == data
                    assert server.recv(1) == b""
                assert sock.recv(1) == b""
        assert before == tcp(joined.client)["RetransSegs"]
