"""Orphans in FIN_WAIT2 in mode vestigial: they stay the kernel's sockets, and tcp_fin_timeout says so."""

import os
import socket
import time
from contextlib import ExitStack

import pytest

from tests.load import counters, paths, wait_until
from tests.load.counters import FIN_WAIT2
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, Namespace, link, namespace
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.segments import RST, capture

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
FIN_TIMEOUT, BUCKETS = "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_max_tw_buckets"


def full_sockets(ns: Namespace) -> int:
    """In FIN_WAIT2, and not mini-sockets."""
    return sum(each.state == FIN_WAIT2 and not each.mini for each in counters.sockets(ns))


def ended(one: Daemon, how: str) -> float:
    """Connections that ended without TIME_WAIT in this way."""
    return one.metric("twctl_closed_without_time_wait_total", how=how)


@pytest.mark.vm
def test_the_peer_s_late_fin_finds_the_socket_and_makes_a_vestige(probe: str) -> None:
    """23 orphans of each family, sockets until their peers close; then 69 vestiges, no socket, and no RST."""
    with (
        link() as both,
        daemon(both.client, probe=probe, mode="vestigial") as one,
        capture(both.client, both.device) as wire,
    ):
        with ExitStack() as orphans:
            for family in (IPV4, IPV6, MAPPED):
                orphans.enter_context(paths.orphan_fin_wait2(paths.over_link(both, family), N))
            assert (3 * N, 0) == (full_sockets(both.client), len(one.table()))
        wait_until(lambda: len(one.table()) == 3 * N, what="vestiges")
        assert ["TIME_WAIT"] * 3 * N == [each.substate for each in one.table()]
        assert (0, 0) == (full_sockets(both.client), counters.time_wait_count(both.client))
        assert not [each for each in wire.segments() if each.flags & RST]
        assert 0 == one.metric("twctl_time_wait_unseen_total")


@pytest.mark.vm
def test_an_orphan_whose_time_is_over_leaves_nothing(probe: str) -> None:
    """After the tcp_fin_timeout that there was: no vestige, no entry, nothing unseen; the peer's FIN gets a RST."""
    with link({FIN_TIMEOUT: 1}) as both, daemon(both.client, probe=probe, mode="vestigial") as one:
        assert "61" == both.client.sysctl(FIN_TIMEOUT)
        began = time.monotonic()
        with paths.orphan_fin_wait2(paths.over_link(both), N):
            wait_until(lambda: full_sockets(both.client) == 0, what="they are gone")
            assert time.monotonic() - began >= 1
            wait_until(lambda: ended(one, "orphan") == N, what="counted")
            assert [] == one.table()
            assert (0, 0) == (one.metric("twctl_time_wait_entered_total"), ended(one, "abort"))
            before = counters.tcp(both.client)["OutRsts"]
        wait_until(lambda: counters.tcp(both.client)["OutRsts"] == before + N, what="the FINs met nobody")
        time.sleep(2.5)  # two looks at what is unseen
        assert 0 == one.metric("twctl_time_wait_unseen_total")


def test_a_time_that_the_application_sets_makes_a_vestige_of_that_time(probe: str) -> None:
    """TCP_LINGER2 of 20 s: FIN_WAIT2 vestiges, which the peer's FIN turns into TIME_WAIT."""
    with link() as both, daemon(both.client, probe=probe, mode="vestigial", config="[time_wait]\nlocal = 60\n") as one:
        with paths.orphan_fin_wait2(paths.over_link(both), N, fin_timeout=20):
            assert ["FIN_WAIT2"] * N == [each.substate for each in one.table()]
            assert all(15 < each.expires_in < 21 for each in one.table())
        wait_until(lambda: {"TIME_WAIT"} == {each.substate for each in one.table()}, what="the FINs")
        assert N == len(one.table())


@pytest.mark.parametrize("mode", ["observe", "vestigial"])
def test_a_keepalive_timer_that_is_late_is_not_the_orphan_s(mode: str) -> None:
    """SO_KEEPALIVE sets the same timer: 23 sockets close when it is due and has not fired yet, and all enter."""
    with (
        link() as both,
        daemon(both.client, mode=mode) as one,
        ExitStack() as stack,
    ):
        listener = stack.enter_context(both.server.socket(socket.AF_INET))
        listener.bind((both.server_ipv4, 0))
        listener.listen(N)
        opened: list[tuple[float, socket.socket]] = []
        for _ in range(N):
            sock = both.client.socket(socket.AF_INET)
            for option, value in ((socket.TCP_LINGER2, 60), (socket.TCP_KEEPIDLE, 3)):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.connect(listener.getsockname())
            opened.append((time.monotonic(), sock))
            stack.enter_context(listener.accept()[0])
        for at, sock in opened:  # at 250 Hz it fires up to 256 ms late
            time.sleep(max(0.0, at + 3.012 - time.monotonic()))
            sock.close()
        wait_until(lambda: len(one.table()) == N, what="vestiges")
        assert 0 == ended(one, "abort")


def connect(both: Link, address: tuple[str, int], listener: socket.socket) -> float:
    """A connection that the client closes first; seconds that connecting took."""
    with both.client.socket(socket.AF_INET) as sock:
        began = time.monotonic()
        sock.connect(address)
        seconds = time.monotonic() - began
        peer, _ = listener.accept()
        sock.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        peer.close()
        assert sock.recv(1) == b""
    return seconds


def test_half_open_sessions_keep_their_ports_and_stand_in_nobody_s_way() -> None:
    """23 of 31 ports toward a server wait for its FIN: 41 connects take the other 8 over and over, without a stall."""
    with ExitStack() as stack:
        both = stack.enter_context(link({"net.ipv4.ip_local_port_range": "40000 40030"}))
        stack.enter_context(daemon(both.client, mode="vestigial"))
        listener = stack.enter_context(both.server.socket(socket.AF_INET))
        listener.bind((both.server_ipv4, 0))
        listener.listen(N)
        address = listener.getsockname()
        for _ in range(N):
            sock = both.client.socket(socket.AF_INET)
            sock.connect(address)
            stack.enter_context(listener.accept()[0])
            sock.close()
        wait_until(lambda: full_sockets(both.client) == N, what="half open")
        assert max(connect(both, address, listener) for _ in range(41)) < 0.9
        assert N == full_sockets(both.client)


@pytest.mark.parametrize(("before", "now"), [("30", "30"), ("61", "60")])
def test_above_the_limit_orphans_become_vestiges(probe: str, before: str, now: str) -> None:
    """None may stay: tcp_fin_timeout is what it was, up to 60 s, and the orphan a vestige; logged once and exported."""
    config = "[pressure]\norphans = 0\n"
    with link({FIN_TIMEOUT: before}) as both, daemon(both.client, probe=probe, mode="vestigial", config=config) as one:
        with paths.orphan_fin_wait2(paths.over_link(both), N):
            wait_until(lambda: one.metric("twctl_orphans_stay") == 0, what="an orphan is seen")
            assert now == both.client.sysctl(FIN_TIMEOUT)
            with paths.orphan_fin_wait2(paths.over_link(both), N):
                assert ["FIN_WAIT2"] * N == [each.substate for each in one.table()]
        wait_until(lambda: ["TIME_WAIT"] * 2 * N == [each.substate for each in one.table()], what="all FINs have come")
        assert 0 == one.metric("twctl_orphan_limit_sockets")
        assert 1 == one.log.count("those in FIN_WAIT2 become vestiges")
        one.stop()
        assert (before, False) == (both.client.sysctl(FIN_TIMEOUT), both.client.sysctl(BUCKETS) == "0")


def test_above_the_limit_a_long_retransmission_timeout_makes_a_vestige_too(probe: str) -> None:
    """Of 17.2 s it makes FIN_WAIT2 last 60.2 s: 0.2 s as a socket, and then as a vestige."""
    with link() as both, daemon(both.client, probe=probe, mode="vestigial", config="[pressure]\norphans = 0\n") as one:
        subnet = f"{both.client_ipv4.rpartition('.')[0]}.0/24"
        both.client.ip("route", "change", subnet, "dev", both.device, "src", both.client_ipv4, "rto_min", "17.2s")
        with paths.orphan_fin_wait2(paths.over_link(both), 1):
            wait_until(lambda: one.metric("twctl_orphans_stay") == 0, what="an orphan is seen")
            with paths.orphan_fin_wait2(paths.over_link(both), N):
                wait_until(lambda: full_sockets(both.client) == 1, what="their part of the time is over")
                assert ["FIN_WAIT2"] * N == [each.substate for each in one.table()]


def test_a_sysctl_that_is_put_back_ends_orphans_with_a_rst() -> None:
    """When their time is over: they leave no vestige, and count as aborts."""
    with (
        link({FIN_TIMEOUT: 1}) as both,
        daemon(both.client, mode="vestigial") as one,
        paths.orphan_fin_wait2(paths.over_link(both), N),
    ):
        both.client.sysctl(FIN_TIMEOUT, 1)
        wait_until(lambda: counters.tcp(both.client)["OutRsts"] == N, what="all are over")
        wait_until(lambda: ended(one, "abort") == N, what="counted")
        assert ([], 0) == (one.table(), ended(one, "orphan"))


@pytest.mark.parametrize(
    ("before", "config", "raised"),
    [("60", "", "120"), ("90", "", "150"), ("60", "[sysctl]\ntcp_fin_timeout = 30\n", "90")],
)
def test_tcp_fin_timeout_is_raised_by_60_s_and_comes_back(before: str, config: str, raised: str) -> None:
    """After a stop; after kill -9, another start, and a stop; after kill -9 and `release`; `status` tells."""
    with namespace({FIN_TIMEOUT: before}) as ns, daemon(ns, mode="vestigial", config=config) as one:
        buckets = ns.sysctl(BUCKETS)
        assert (raised, "0") == (ns.sysctl(FIN_TIMEOUT), buckets)
        assert f"{FIN_TIMEOUT} {raised} (was {before})" in twctl("status", *one.options).stdout
        one.stop()
        assert before == ns.sysctl(FIN_TIMEOUT)
        one.start()
        one.kill()
        one.start()
        assert raised == ns.sysctl(FIN_TIMEOUT)
        one.stop()
        assert before == ns.sysctl(FIN_TIMEOUT)
        assert ns.sysctl(BUCKETS) != "0"
        one.start()
        one.kill()
        assert raised == ns.sysctl(FIN_TIMEOUT)
        assert 0 == twctl("release", "--pins", str(one.pins)).returncode
        assert before == ns.sysctl(FIN_TIMEOUT)


def test_what_somebody_else_set_meanwhile_stays() -> None:
    """While it ran: it is left alone, and a line says so. After kill -9: the next start takes it for what there was."""
    with namespace() as ns, daemon(ns, mode="vestigial") as one:
        ns.sysctl(FIN_TIMEOUT, 41)
        assert 0 == one.metric("twctl_sysctl_as_set", sysctl=FIN_TIMEOUT)
        one.stop()
        assert f"{FIN_TIMEOUT} is left at 41: somebody else changed it from 120" in one.log
        assert ("41", False) == (ns.sysctl(FIN_TIMEOUT), ns.sysctl(BUCKETS) == "0")
        one.start()
        assert "101" == ns.sysctl(FIN_TIMEOUT)
        one.kill()
        ns.sysctl(FIN_TIMEOUT, 31)
        one.start()
        assert "91" == ns.sysctl(FIN_TIMEOUT)
        one.stop()
        assert "31" == ns.sysctl(FIN_TIMEOUT)
