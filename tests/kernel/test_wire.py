"""Sessions whose packets are translated between socket and wire: tuples, class, what blame says, what is answered."""

import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import wait_until
from tests.load.closes import run, serving
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, Namespace, link
from tests.load.paths import deafen, undeafen
from tests.load.segments import RST, capture
from twctl.classes import Class
from twctl.table.looks import Look
from twctl.table.maps import Table
from twctl.table.records import Vestige

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
# A FIN that comes again on a busy machine is answered, and the RST that answers this must not end the session.
QUIET = {"net.ipv4.tcp_rfc1337": 1}
TIMES = "[time_wait]\nloopback = 60\nlocal = 60\nremote = 60\n"
SERVICE, SERVICE_PORT, PORT = "10.96.0.1", 80, 5000
BULK_SERVICE_PORT, BULK_PORT = 81, 5001
PLAIN_PORT = 5003
FIXED_PORT, WIRE_PORT = 5002, 7777  # toward the first all have this port on the wire
RULES = f"""
table ip t {{
    chain out {{ type nat hook output priority -100; tcp dport {SERVICE_PORT} dnat to SERVER:{PORT}; }}
    chain bulk {{ type nat hook output priority -100; tcp dport {BULK_SERVICE_PORT} dnat to SERVER:{BULK_PORT}; }}
    chain post {{
        type nat hook postrouting priority 100
        ip daddr SERVER tcp dport {FIXED_PORT} masquerade to :{WIRE_PORT}
        ip daddr SERVER tcp dport != {PLAIN_PORT} masquerade random
    }}
}}
"""


@dataclass(frozen=True)
class Service:
    """A client whose connections to a Service's address go to a server, from other ports; a daemon guards it."""

    both: Link
    one: Daemon
    listener: socket.socket

    @property
    def client(self) -> Namespace:
        """Who closes first."""
        return self.both.client

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """A connection: the client's end, and the server's."""
        with self.client.entered():
            near = socket.create_connection((SERVICE, SERVICE_PORT))
        far, _ = self.listener.accept()
        return near, far

    def closed(self, count: int) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        """So many that were closed by the client first: its address, and as the server sees it."""
        pairs = [self.connected() for _ in range(count)]
        seen = [(near.getsockname(), far.getpeername()) for near, far in pairs]
        for near, far in pairs:
            near.close()
            assert far.recv(1) == b""
            far.close()
        return seen


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Destination and source are both translated, as kube-proxy has it."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        subprocess.run(both.client.command("nft", RULES.replace("SERVER", both.server_ipv4)), check=True)
        both.client.ip("route", "add", f"{SERVICE}/32", "dev", both.device)
        one = stack.enter_context(daemon(both.client, mode="vestigial", config=TIMES))
        with both.server.entered():
            listener = stack.enter_context(socket.create_server((both.server_ipv4, PORT), backlog=128))
        yield Service(both, one, listener)


def test_a_translated_session_has_both_tuples_and_the_class_of_its_peer(service: Service) -> None:
    """23 to a Service's address: what the application sees, what is on the wire, and how near the real server is."""
    seen = service.closed(N)
    wait_until(lambda: len(service.one.table()) >= N, what="the sessions enter")
    found = {(str(each.local), each.local_port): each for each in service.one.table()}
    for near, wire in seen:
        one: Vestige = found[near]
        assert (SERVICE, SERVICE_PORT, "local") == (str(one.remote), one.remote_port, one.class_.label)
        assert one.wire
        assert wire == (str(one.wire.local), one.wire.local_port)
        assert (service.both.server_ipv4, PORT) == (str(one.wire.remote), one.wire.remote_port)
    assert len({near for near, _ in seen} & {wire for _, wire in seen}) < N, "ports are translated"


def test_a_translated_session_fills_two_places_of_the_table(service: Service) -> None:
    """How full it is says so, or nobody would hear of it before half of the sessions are evicted."""
    service.closed(N)
    entered = service.one.metric("twctl_time_wait_entered_total")
    assert service.one.metric("twctl_time_wait_translated_total") == entered >= N
    table = Table(service.one.pins / "current")
    look = Look.read(table)
    assert look.full[Class.LOCAL] == 2 * look.sessions[Class.LOCAL] / table.layout.capacity["ipv4"][Class.LOCAL] > 0


def test_blame_counts_by_the_service_and_says_where_it_goes(service: Service) -> None:
    """One remote endpoint, and the server behind it."""
    service.closed(N)
    said = twctl("blame", "--by", "remote", "--json", *service.one.options)
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    [row] = [row for row in rows if row.get("remote") == SERVICE and row["by"] == "remote"]
    sessions = row["sessions"]
    assert sessions >= N
    assert [{"remote": service.both.server_ipv4, "remote_port": PORT, "sessions": sessions}] == row["wire"]
    assert service.both.server_ipv4 not in {row["remote"] for row in rows}
    text = twctl("blame", "--by", "remote", *service.one.options).stdout
    assert f"on the wire {service.both.server_ipv4}:{PORT}" in text


def test_thousands_are_neither_lost_nor_shown_twice(service: Service) -> None:
    """Two slots each, and each with a tuple of its own on the wire, which conntrack may use again."""
    before, count = len(service.one.table()), 3001
    with serving(service.both.server, "--address", service.both.server_ipv4, "--port", str(BULK_PORT)):
        load = ("--connect", "--address", SERVICE, "--port", str(BULK_SERVICE_PORT), "--threads", "1")
        done = run(service.client, *load, "--count", str(count))
    assert (0, count) == (done["failed"], done["made"])
    reused = int(service.one.metric("twctl_time_wait_ended_total", reason="reused"))
    wait_until(lambda: len(service.one.table()) == before + count - reused, what="all have entered")
    found = [each for each in service.one.table() if each.remote_port == BULK_SERVICE_PORT]
    assert len(found) == len({each.wire for each in found}) >= count - reused
    assert 0 == service.one.metric("twctl_table_dropped_total")


@pytest.mark.parametrize("conntrack", ["as it was", "flushed"])
def test_a_fin_that_comes_again_is_acknowledged_on_the_wire(service: Service, conntrack: str) -> None:
    """Whether conntrack still knows the connection or not."""
    pairs = [service.connected() for _ in range(N)]
    for near, far in pairs:
        near.close()
        assert far.recv(1) == b""
        deafen(far)
        far.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(live(service.client)) == 0, what="no socket of the client's is left")
    if conntrack == "flushed":
        subprocess.run(service.client.command("conntrack", "-F"), check=True, capture_output=True)
    with capture(service.both.server, service.both.device) as wire:
        for _, far in pairs:
            undeafen(far)
        wait_until(lambda: not live(service.both.server), what="each FIN is acknowledged", timeout=20)
        assert not [each for each in wire.segments() if each.has(RST)]


def live(ns: Namespace) -> list[str]:
    """Connections of the kernel's in a namespace."""
    shown = subprocess.run(ns.command("ss", "-Htan", "state", "connected"), check=True, capture_output=True, text=True)
    return shown.stdout.splitlines()


def test_a_port_that_conntrack_has_chosen_holds_nobody_back(service: Service) -> None:
    """Other sockets' sessions had the tuple on the wire, and nothing tells a new SYN from an old one: as on stock."""
    service.client.sysctl("net.ipv4.tcp_timestamps", 0)
    with ExitStack() as stack:
        stack.callback(service.client.sysctl, "net.ipv4.tcp_timestamps", 1)
        with service.both.server.entered():
            listener = stack.enter_context(socket.create_server((service.both.server_ipv4, FIXED_PORT)))
        for _ in range(N):
            subprocess.run(service.client.command("conntrack", "-F"), check=True, capture_output=True)
            with service.client.entered():
                near = socket.create_connection((service.both.server_ipv4, FIXED_PORT))
            far, (_, port) = listener.accept()
            assert port == WIRE_PORT
            near.close()
            assert far.recv(1) == b""
            far.close()
    assert 0 == service.one.metric("twctl_guard_segments_total", action="held")
    assert N - 1 <= service.one.metric("twctl_time_wait_ended_total", reason="reused")


def test_a_socket_that_connects_again_has_no_wire_of_before(service: Service) -> None:
    """First translated, then not: the second session has its own tuple alone."""
    with ExitStack() as stack:
        with service.both.server.entered():
            plain = stack.enter_context(socket.create_server((service.both.server_ipv4, PLAIN_PORT)))
        near, far = service.connected()
        for listener in (None, plain):
            if listener:
                near.connect((service.both.server_ipv4, PLAIN_PORT))
                far, _ = listener.accept()
            mine = near.getsockname()
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
            far.close()
            found = entered(service, mine)
            assert (listener is None) == (found.wire is not None)
            disconnect(near)
        near.close()


def entered(service: Service, local: tuple[str, int]) -> Vestige:
    """The session with this address and port of the client's, as soon as it is there."""

    def found() -> list[Vestige]:
        return [each for each in service.one.table() if (str(each.local), each.local_port) == local]

    wait_until(found, what="it enters")
    return found()[0]


def disconnect(sock: socket.socket) -> None:
    """Have the socket as it was before it connected (connect(2), AF_UNSPEC)."""
    unspecified = ctypes.create_string_buffer(16)
    assert ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), unspecified, len(unspecified)) == 0
