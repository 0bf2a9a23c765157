"""A tuple that is used again: how old its session was then, and how old it must be."""

import errno
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.kernel.test_ends import close, pairs
from tests.load.daemon import Daemon, daemon
from tests.load.duty import TIME_WAIT, VESTIGIAL
from tests.load.netns import Namespace, namespace
from tests.load.paths import IPV4
from tests.load.segments import SYN
from tests.load.translations import ADDRESSES, POSTROUTING, Translation, forget, nftables, translated_duties
from twctl.table.counters import TICK

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
PORT = 22000
KEPT = "capacity = 1021\n[time_wait]\nloopback = 60\n"


def ages(one: Daemon) -> dict[float, float]:
    """How many loopback sessions were at most so old (s) when their tuple was used again."""
    row = r'twctl_reuse_age_seconds_bucket{class="loopback",le="(.+)"}'
    return {float(found[1]): number for name, number in one.metrics().items() if (found := re.fullmatch(row, name))}


def test_the_age_at_which_a_tuple_is_used_again_is_counted() -> None:
    """23 tuples that are used again after half a second: none was younger, none older, and the sum says so, too."""
    with namespace() as ns, daemon(ns, mode="vestigial", config=KEPT) as one, pairs(ns, PORT) as connect:
        connections = connect()
        began = time.monotonic()
        for client, server in connections:
            close(client, server)
        ended = time.monotonic()
        time.sleep(0.6)  # so old are they, at least
        least = time.monotonic() - ended - TICK
        connect()
        most = time.monotonic() - began + TICK
        assert N == one.metric("twctl_time_wait_ended_total", reason="reused")
        counted = ages(one)
        assert {0} == {count for edge, count in counted.items() if edge < least}
        assert {N} == {count for edge, count in counted.items() if edge > most}
        assert N * least <= one.metric("twctl_reuse_age_seconds_sum") <= N * most


def test_where_nobody_sees_a_tuple_taken_its_age_is_not_guessed(probe: str) -> None:
    """The tracepoint does not tell when connect() takes a tuple of the kernel's: its next close is not that moment."""
    with namespace() as ns, daemon(ns, probe=probe, config=KEPT) as one, pairs(ns, PORT) as connect:
        for _ in range(2):
            for client, server in connect():
                close(client, server)
        assert N == one.metric("twctl_time_wait_ended_total", reason="reused")
        assert (N if probe == "fentry" else 0) == ages(one)[math.inf]


Pair = tuple[socket.socket, socket.socket]


@contextmanager
def tuples(ns: Namespace) -> Iterator[Callable[[], list[Pair]]]:
    """Gives connections (client, server) of 23 tuples, each time the same; all connect at once."""
    with ExitStack() as stack:
        listener = stack.enter_context(ns.socket(socket.AF_INET))
        listener.bind(("127.0.0.1", PORT))
        listener.listen(N)
        listener.settimeout(60)

        def connect() -> list[Pair]:
            clients = {port: stack.enter_context(ns.socket(socket.AF_INET)) for port in range(PORT + 1, PORT + 1 + N)}
            for port, client in clients.items():
                client.bind(("127.0.0.1", port))
                client.settimeout(0)
                assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            servers = [listener.accept() for _ in clients]
            for client in clients.values():
                client.settimeout(None)
            return [(clients[port], stack.enter_context(server)) for server, (_, port) in servers]

        yield connect


def held(one: Daemon) -> float:
    """SYNs that the guard held back."""
    return one.metric("twctl_guard_segments_total", action="held")


def test_a_local_syn_waits_until_its_class_s_sessions_are_old_enough() -> None:
    """No SYN of connect() leaves for a session of less than 2 s, one that comes again later does; unset: at once."""
    with (
        namespace() as ns,
        daemon(ns, mode="vestigial", config=f"{KEPT}[reuse_age]\nloopback = 2\n") as one,
        tuples(ns) as connect,
    ):
        connections = connect()
        assert held(one) == 0
        for client, server in connections:
            close(client, server)
        ended = time.monotonic()
        connections = connect()
        assert time.monotonic() - ended >= 2
        assert held(one) >= N
        counted = ages(one)
        assert (0, N) == (counted[1.5], counted[math.inf])

        one.reload(f'mode = "vestigial"\n{KEPT}')
        for client, server in connections:
            close(client, server)
        before = held(one)
        connect()
        assert (before, 2 * N) == (held(one), ages(one)[math.inf])


def test_a_syn_of_the_peer_s_is_not_for_us_to_hold() -> None:
    """The host that closed first is the server: a client may come again at once."""
    with (
        namespace() as ns,
        daemon(ns, mode="vestigial", config=f"{KEPT}[reuse_age]\nloopback = 60\n") as one,
        tuples(ns) as connect,
    ):
        for client, server in connect():
            close(server, client)
        connect()
        assert (0, N) == (held(one), ages(one)[math.inf])


def test_a_syn_waits_whatever_its_socket_s_own_tuple_was() -> None:
    """Two addresses of the host's are one on the wire: the age is that of the tuple there, where a firewall sees it."""
    aged = "[time_wait]\nloopback = 60\nlocal = 60\nremote = 60\n[reuse_age]\nlocal = 2\n"
    snat = Translation(nftables(POSTROUTING % "{ip} daddr {peer_} snat to {host}"), local=("pod", 0))
    with translated_duties(VESTIGIAL, {"": snat}, config=aged) as made:
        duty = made[""]
        assert duty.watch
        subject = duty.closed_from(PORT, 80, TIME_WAIT, IPV4)
        forget(duty, subject)
        ended = time.monotonic()
        with duty.ns.socket(socket.AF_INET) as sock:
            sock.bind((ADDRESSES[IPV4]["bridge"], PORT))
            sock.settimeout(0)
            assert sock.connect_ex((ADDRESSES[IPV4]["peer"], 80)) == errno.EINPROGRESS
            syn = duty.peer.receive(subject.connection, 10.0)
            assert syn
            assert SYN == syn.flags
        assert time.monotonic() - ended >= 2
        assert held(duty.watch) >= 1
