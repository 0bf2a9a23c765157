"""The kernel's list of sockets: what a filter lets through, and how one socket is destroyed."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.load import counters, wait_until
from tests.load.netns import Link, link
from tests.load.paths import IPV4, IPV6, MAPPED, over_link
from twctl.addresses import Endpoint
from twctl.linux.ports import parse_ports
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import (
    TIMER_TIME_WAIT,
    destroy_request,
    endpoints,
    exact_request,
    read_answer,
)
from twctl.linux.tcp import TCP_TIME_WAIT

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)

COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"  # no socket has it


@pytest.fixture
def both() -> Iterator[Link]:
    """A client and a server."""
    with link({"net.ipv4.tcp_rfc1337": 1, "net.ipv4.ip_local_port_range": "40000 41008"}) as made:
        yield made


def close_one(both: Link, family: str, port: int, local_port: int) -> Endpoint:
    """Leave a session of the client in TIME_WAIT; returns the remote endpoint."""
    route = over_link(both, family)
    with route.server.socket(route.domain) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((route.spoken(route.server_address), port))
        listener.listen(1)
        with route.client.socket(route.domain) as near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind((route.spoken(route.client_address), local_port))
            near.connect(listener.getsockname())
            far, _ = listener.accept()
        assert far.recv(1) == b""
        far.close()
    return ipaddress.ip_address(route.server_address), port


def test_the_kernel_takes_the_filter_and_lists_what_it_names(both: Link) -> None:
    """Of IPv4, IPv6 and dual-stack sockets, on the ports of one piece; all pieces together are all sockets."""
    ports = parse_ports("40000 41008", "")
    with ExitStack() as stack:
        local_ports = range(40001, 41009, 101)
        remotes = [
            close_one(both, family, 7000 + i, local_port)
            for i, family in enumerate((IPV4, IPV6, MAPPED))
            for local_port in local_ports
        ]
        wait_until(lambda: counters.time_wait_count(both.client) == len(remotes), what="all are in TIME_WAIT")
        diag = stack.enter_context(closing(SockDiag(both.client.name)))
        wanted = sorted(set(remotes[:-1]), key=str)
        everything = {(endpoints(each.family, each.ends)[1], each.local_port) for each in diag.toward(wanted)}
        assert {(remote, port) for remote in wanted for port in local_ports} == everything
        assert set() == {each.local_port for each in diag.toward([(wanted[0][0], 23)])}
        pieces = ports.pieces()
        found: set[tuple[Endpoint, int]] = set()
        for number in range(pieces):
            part = ports.piece(number, pieces)
            mine = {(endpoints(each.family, each.ends)[1], each.local_port) for each in diag.toward(wanted, part)}
            assert all(any(port in each for each in part) for _, port in mine)
            assert not mine & found
            found |= mine
        assert everything == found


def test_a_socket_is_destroyed_by_its_cookie_alone(both: Link) -> None:
    """With another cookie the kernel refuses; what is gone is no answer, and no mini-socket."""
    with ExitStack() as stack:
        remote = close_one(both, IPV4, 7001, 40001)
        diag = stack.enter_context(closing(SockDiag(both.client.name)))
        local = ipaddress.ip_address(both.client_ipv4), 40001
        request = exact_request(local, remote)
        assert diag.has_mini_socket(local, remote, 0)
        unknown, raw = diag.ask([exact_request(local, (remote[0], 7002)), request])
        assert read_answer(unknown) is None
        answer = read_answer(raw)
        assert answer
        assert (TCP_TIME_WAIT, TIMER_TIME_WAIT) == (answer.state, answer.timer)
        assert 0 < answer.left <= 60
        assert 1 == diag.destroy([destroy_request(request, COOKIE)])
        assert diag.has_mini_socket(local, remote, 0)
        assert 0 == diag.destroy([destroy_request(request, answer.cookie)])
        assert not diag.has_mini_socket(local, remote, 0)
        assert 0 == counters.time_wait_count(both.client)


def test_however_many_are_asked_for_each_has_its_answer(both: Link) -> None:
    """More than the socket's buffer has room for: of those that are there, of others, and of refusals to destroy."""
    remote = close_one(both, IPV4, 20000, 40007)
    local = ipaddress.ip_address(both.client_ipv4), 40007
    there, gone = exact_request(local, remote, 0), exact_request(local, (remote[0], 20001), 0)
    with closing(SockDiag(both.client.name)) as diag:
        for request, found in ((there, True), (gone, False)):
            assert [found] * 1009 == [read_answer(raw) is not None for raw in diag.ask([request] * 1009)]
        assert 1009 == diag.destroy([destroy_request(gone, COOKIE)] * 1009)
        assert diag.has_mini_socket(local, remote, 0)
