"""Mode observe on the real kernel: which closes make a vestige, and what it holds."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.load import counters, paths, wait_until
from tests.load.closes import run
from tests.load.counters import FIN_WAIT2, TIME_WAIT
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, Namespace, add_addresses, link, namespace
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED, Route, Session
from tests.load.peer import tun_peer
from tests.load.scripts import SCRIPTS, scripted
from twctl.table.compiled import running_release
from twctl.table.records import Vestige

N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
QUIET = {"net.ipv4.tcp_rfc1337": 1}  # on a busy machine a RST sometimes ends a session on lo
FAR_IPV4, FAR_IPV6 = "10.99.0.1", "fd99::1"


class Host:
    """A client whose peers are near and far: itself, one on its link, one behind a router; and a scripted one."""

    def __init__(self, stack: ExitStack, probe: str) -> None:
        self.link: Link = stack.enter_context(link(QUIET))
        self.client: Namespace = self.link.client
        add_addresses(self.link.server, "lo", FAR_IPV4, FAR_IPV6)
        self.client.ip("route", "add", f"{FAR_IPV4}/32", "via", self.link.server_ipv4)
        self.client.ip("route", "add", f"{FAR_IPV6}/128", "via", self.link.server_ipv6)
        self.peer = stack.enter_context(tun_peer(self.client))
        self.daemon: Daemon = stack.enter_context(
            daemon(self.client, probe=probe, config="reconcile_interval = 0\n[capacity.ipv4]\nloopback = 262144\n")
        )

    def route(self, class_: str, family: str) -> Route:
        """The way to a peer of this class."""
        if class_ == "loopback":
            return paths.over_lo(self.client, family)
        near = paths.over_link(self.link, family)
        if class_ == "local":
            return near
        far = FAR_IPV6 if family == IPV6 else FAR_IPV4
        return Route(near.client, near.server, near.client_address, far, family, near.device)

    def vestiges(self) -> dict[tuple[str, int, str, int], Vestige]:
        """All of them, by tuple."""
        rows = self.daemon.table()
        found = {(str(one.local), one.local_port, str(one.remote), one.remote_port): one for one in rows}
        assert len(rows) == len(found), "the same session twice"
        return found


@pytest.fixture(scope="module")
def host(probe: str) -> Iterator[Host]:
    """One daemon for all tests of this module that can share it."""
    with ExitStack() as stack:
        yield Host(stack, probe)


def entered(one: Daemon) -> dict[str, float]:
    """The series that count entries, where they are not 0."""
    name = "twctl_time_wait_entered_total"
    return {row: number for row, number in one.metrics().items() if row.startswith(name) and number}


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What moved, by how much."""
    rows = {row: after[row] - before.get(row, 0) for row in after}
    return {row: number for row, number in rows.items() if number}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("class_", ["loopback", "local", "remote"])
@pytest.mark.parametrize("path", [paths.fin_wait2, paths.orphan_late_fin, paths.fin_with_ack, paths.simultaneous])
def test_each_way_into_time_wait_makes_one_vestige_a_session(
    host: Host, path: Callable[..., list[Session]], class_: str, family: str
) -> None:
    """23 closes by the client give 23 vestiges of the right class and family, counted there and nowhere else."""
    before = entered(host.daemon)
    sessions = path(host.route(class_, family), N, CLIENT)
    ends = [session.client for session in sessions]
    if path is paths.simultaneous and class_ == "loopback":
        ends += [session.server for session in sessions]
    wire = "ipv6" if family == IPV6 else "ipv4"
    row = f'twctl_time_wait_entered_total{{class="{class_}",family="{wire}"}}'
    assert {row: float(len(ends))} == difference(before, entered(host.daemon))
    table = host.vestiges()
    found = [table.get(end.tuple) for end in ends]
    assert [(class_, wire, host.client.name)] * len(ends) == [
        (one.class_.label, one.family, one.netns) if one else None for one in found
    ]


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name, (_, state) in SCRIPTS.items() if state])
def test_a_vestige_holds_what_was_seen_on_the_wire(host: Host, name: str, family: str, *, timestamps: bool) -> None:
    """Sequence numbers, window and timestamps of the record are those of the segments that were exchanged."""
    sessions = scripted(host.peer, name, N, family=family, timestamps=timestamps)
    late_fin = name in {"orphan_late_fin", "close_late_fin"} and host.daemon.probe == "tracepoint"
    table = host.vestiges()
    for session in sessions:
        vestige, seen = table[session.client.tuple], session.seen
        assert seen
        # Without fentry nothing tells that a mini-socket's FIN has come: the record is that of its entry.
        rcv_nxt = seen.rcv_nxt - late_fin & 0xFFFFFFFF
        assert (seen.snd_nxt, rcv_nxt, seen.window, seen.scale) == (
            vestige.snd_nxt,
            vestige.rcv_nxt,
            vestige.window,
            vestige.window_scale,
        )
        if late_fin and seen.ts_recent is not None:
            assert vestige.ts_recent is not None
            assert 0 <= (seen.ts_recent - vestige.ts_recent) % 2**32 <= 3000
        else:
            assert seen.ts_recent == vestige.ts_recent
        if seen.ts_offset is not None:
            assert abs((seen.ts_offset - vestige.ts_offset + 2**31) % 2**32 - 2**31) <= 50
        state = FIN_WAIT2 if late_fin else SCRIPTS[name][1]
        assert {FIN_WAIT2: "FIN_WAIT2", TIME_WAIT: "TIME_WAIT"}[state or 0] == vestige.substate


ENDINGS: dict[str, tuple[str, Callable[..., list[Session]]]] = {
    "abort_linger0": ("abort", paths.abort_linger0),
    "abort_unread": ("abort", paths.abort_unread),
    "linger2_negative": ("abort", paths.linger2_negative),
    "reset_established": ("reset", partial(paths.reset_by_peer, state=counters.ESTABLISHED)),
    "reset_fin_wait2": ("reset", partial(paths.reset_by_peer, state=FIN_WAIT2)),
    "user_timeout": ("timeout", paths.user_timeout),
    "passive": ("passive", paths.passive),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_other_endings_make_no_vestige_and_are_counted_as_what_they_are(host: Host, name: str) -> None:
    """23 aborts, resets, timeouts and passive closes of the client leave nothing in the table."""
    how, path = ENDINGS[name]
    before, entries = host.daemon.metric("twctl_closed_without_time_wait_total", how=how), entered(host.daemon)
    # the server is in a namespace that is not enrolled: only the client's end can count
    sessions = path(host.route("local", IPV4), N, CLIENT)
    wait_until(lambda: host.daemon.metric("twctl_closed_without_time_wait_total", how=how) == before + N, what=how)
    assert difference(entries, entered(host.daemon)) == {}
    assert not host.vestiges().keys() & {session.client.tuple for session in sessions}


def test_a_storm_is_counted_exactly(host: Host) -> None:
    """Of 100,003 closes from both CPUs, some on reused tuples, none counts twice, and what was missed is known."""
    options = ("--inline", "--threads", "2", "--cpus", "0,1", "--port", "20000-20003", "--source", "127.0.1.1+16")
    before = counters.tcpext(host.client)
    entries, missed = (host.daemon.metric(f"twctl_time_wait_{which}_total") for which in ("entered", "unseen"))
    report = run(host.client, "--count", "100003", "--close", "client", *options)
    assert (100003, 0) == (report["closed"], report["failed"])
    after = counters.tcpext(host.client)
    kernel = sum(after[name] - before[name] for name in ("TW", "TWKilled", "TCPTimeWaitOverflow"))
    lost = kernel - (host.daemon.metric("twctl_time_wait_entered_total") - entries)
    assert 0 <= lost <= 1009
    wait_until(lambda: host.daemon.metric("twctl_time_wait_unseen_total") - missed == lost, what=f"{lost} are missed")
    metrics = host.daemon.metrics()
    dropped = {row: n for row, n in metrics.items() if re.match('twctl_table_dropped.*"(?!collision|nested)', row)}
    assert dict.fromkeys(dropped, 0) == dropped
    assert_books_balance(host.daemon)


def assert_books_balance(one: Daemon) -> None:
    """What came is there or has ended, and what is there is in the table. Taken again while sessions expire."""

    def balanced() -> bool:
        came = one.metric("twctl_time_wait_entered_total") + one.metric("twctl_time_wait_adopted_total")
        ended = one.metric("twctl_time_wait_ended_total")
        sessions = one.metric("twctl_time_wait_sessions")
        return came == sessions + ended and sessions == len(one.table())

    wait_until(balanced, what="entered + adopted == sessions + ended == table", timeout=20)


def test_the_lifetime_histogram_counts_every_end(host: Host) -> None:
    """The histogram's count is the number of sessions that ended."""

    def agree() -> bool:
        metrics = host.daemon.metrics()
        ended = sum(n for row, n in metrics.items() if row.startswith("twctl_time_wait_ended_total"))
        counted = sum(n for row, n in metrics.items() if row.startswith("twctl_time_wait_lifetime_seconds_count"))
        return ended == counted

    wait_until(agree, what="ended == lifetime count", timeout=20)


def test_a_full_ring_gives_up_its_oldest(probe: str) -> None:
    """Of 3,001 sessions in 1,021 places the newest stay, less what shared a full line; the rest is evicted."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config="capacity = 1021") as one:
        run(ns, "--count", "3001", "--close", "client", "--source-ports", "30001-33001", "--inline", "--threads", "1")
        table = one.table()
        evicted = one.metric("twctl_time_wait_ended_total", reason="evicted")
        assert (3001, 3001) == (one.metric("twctl_time_wait_entered_total"), len(table) + evicted)
        assert 1021 * 0.95 <= len(table) <= 1021
        assert min(vestige.local_port for vestige in table) > 33001 - 1021
        assert_books_balance(one)


def test_only_enrolled_namespaces_are_seen_and_each_keeps_its_own_tuple(probe: str) -> None:
    """The same tuple in two namespaces gives two vestiges; a third namespace gives none."""
    with ExitStack() as stack:
        first, second, other = (stack.enter_context(namespace(QUIET)) for _ in range(3))
        with daemon(first, second, probe=probe) as one:
            for ns in (first, second, other):
                run(ns, "--count", "23", "--close", "client", "--source-ports", "30001-30023", "--inline")
            assert {first.name: N, second.name: N} == {
                name: sum(vestige.netns == name for vestige in one.table()) for name in (first.name, second.name)
            }
            assert len(one.table()) == 2 * N


@pytest.mark.vm
def test_a_session_leaves_the_table_when_the_kernel_drops_it(probe: str) -> None:
    """A FIN_WAIT2 mini-socket of 2 s is in both until its timer fires, and in neither afterwards."""
    with namespace({**QUIET, "net.ipv4.tcp_fin_timeout": 2}) as ns, daemon(ns, probe=probe) as one:
        with paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT):
            assert (N, N) == (len(one.table()), counters.time_wait_count(ns))
            wait_until(lambda: counters.time_wait_count(ns) == 0, what="the kernel's timer", timeout=20)
            gone = time.monotonic()
            assert one.metric("twctl_time_wait_ended_total", reason="unknown") == 0
            wait_until(lambda: not one.table(), what="the vestiges expire", timeout=10)
            assert time.monotonic() - gone < (5 if os.environ.get("TWCTL_TEST_FENTRY") else 0.7)
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason="expired") == N, what="23 expired")


def test_a_tuple_that_is_born_again_ends_its_older_vestige(probe: str) -> None:
    """Two closes on each of 23 tuples leave 23 vestiges and 23 sessions that ended as reused."""
    with namespace({**QUIET, "net.ipv4.tcp_tw_reuse": 1}) as ns, daemon(ns, probe=probe) as one:
        for _ in range(2):
            run(ns, "--count", "23", "--close", "client", "--source-ports", "30001-30023", "--inline", "--threads", "1")
        assert (N, N) == (len(one.table()), one.metric("twctl_time_wait_ended_total", reason="reused"))


@pytest.mark.vm("fentry")
def test_destroyed_sockets_leave_the_table(probe: str) -> None:
    """23 sockets that `ss -K` destroys end as destroyed where the kernel tells, else as unknown a little later.

    Before Linux 6.0 it destroys none, and all stay.
    """
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config="reconcile_interval = 0.5") as one:
        run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1")
        run(ns, "--count", "101", "--close", "client", "--inline", "--threads", "1", "--port", "21000")
        killed = destroy(ns, "20000")
        assert (N if running_release() >= (6, 0) else 0) == killed
        reason = "destroyed" if probe == "fentry" else "unknown"
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason=reason) == killed, what=reason, timeout=10)
        assert len(one.table()) == N + 101 - killed


def destroy(ns: Namespace, port: str) -> int:
    """Destroy the TIME_WAIT sockets toward a port with iproute2's ss; returns how many."""
    command = ns.command("ss", "-K", "-Htan", "state", "time-wait", "dst", f"127.0.0.1:{port}")
    return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.mark.vm("fentry")
def test_a_late_fin_makes_fin_wait2_time_wait(probe: str) -> None:
    """The record follows the mini-socket: at once where the kernel tells, else at the next comparison."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config="reconcile_interval = 0.5") as one:
        route = paths.over_lo(ns)
        with paths.orphan_fin_wait2(route, N, CLIENT):
            assert ["FIN_WAIT2"] * N == [vestige.substate for vestige in one.table()]
        wait_until(lambda: [v.substate for v in one.table()] == ["TIME_WAIT"] * N, what="TIME_WAIT", timeout=10)
        assert one.metric("twctl_time_wait_sessions") == N


def test_sessions_from_before_are_taken_over_with_their_time(probe: str) -> None:
    """23 sockets that were in TIME_WAIT before the start are in the table, with what is left of their timers."""
    with namespace(QUIET) as ns:
        sessions = paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
        closed = time.monotonic()
        with daemon(ns, probe=probe) as one:
            table, waited = one.table(), time.monotonic() - closed
            left = {end.tuple[1]: end for end in (session.client for session in sessions)}
            assert sorted(left) == sorted(vestige.local_port for vestige in table)
            assert ["TIME_WAIT"] * N == [vestige.substate for vestige in table]
            # the kernel's timer wheel adds up to 4 s to the 60
            assert all(59 < waited + vestige.expires_in < 65 for vestige in table)
            assert (0, N) == (
                one.metric("twctl_time_wait_entered_total"),
                one.metric("twctl_time_wait_adopted_total", **{"class": "loopback"}),
            )


def test_a_killed_daemon_loses_nothing(probe: str) -> None:
    """After kill -9 entries go on being recorded, and the next start takes over; a new capacity replaces the table."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe) as one:
        run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1")
        one.kill()
        run(ns, "--count", "29", "--close", "client", "--inline", "--threads", "1", "--port", "21000")
        one.start()
        assert "took over the pinned table" in one.log
        assert (52, 52) == (len(one.table()), one.metric("twctl_time_wait_entered_total"))
        assert one.stop() == 0
        one.config = "capacity = 1021"
        one.start()
        assert "replacing the pinned table" in one.log
        assert (52, 52) == (len(one.table()), one.metric("twctl_time_wait_adopted_total"))


def test_a_second_daemon_and_a_release_are_refused_while_one_runs(probe: str) -> None:
    """Both say in one line whose folder it is, and exit with 1; the folder is for root alone."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe) as one:
        for words in (["run", "--listen", "127.0.0.1:0"], ["release"]):
            refused = twctl(*words, *one.options)
            assert (1, f"twctl: another twctl uses {one.pins} ") == (refused.returncode, refused.stderr.split("(")[0])
        assert one.pins.stat().st_mode & 0o777 == 0o700
        assert one.stop() == 0
        assert [f"removed {one.pins}\n", f"nothing to remove at {one.pins}\n"] == [
            twctl("release", *one.options).stdout for _ in range(2)
        ]


def test_a_route_moves_the_next_session(host: Host) -> None:
    """Within a second of its route, a peer on the link is remote, and local again when the route goes."""

    def class_of_next() -> str:
        [session] = paths.fin_wait2(host.route("local", IPV4), 1, CLIENT)
        return host.vestiges()[session.client.tuple].class_.label

    assert class_of_next() == "local"
    detour = (f"{host.link.server_ipv4}/32", "via", host.link.server_ipv4, "onlink", "dev", host.link.device)
    host.client.ip("route", "add", *detour)
    time.sleep(1)  # what is promised
    assert class_of_next() == "remote"
    host.client.ip("route", "del", *detour)
    time.sleep(1)
    assert class_of_next() == "local"


def test_lost_route_notifications_are_made_good(probe: str) -> None:
    """After a queue of notifications has overflowed, routes are read anew, once, counted, and decide the next class."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client, probe=probe))
        assert one.process
        assert class_of_next(both, one) == "local"
        assert one.metric("twctl_route_resyncs_total") == 0
        one.process.send_signal(signal.SIGSTOP)
        stack.callback(one.process.send_signal, signal.SIGCONT)
        for turn in range(11):
            if notifications_lost(both.client):
                break
            change = "del" if turn % 2 else "add"
            lines = (f"route {change} 198.18.{n >> 8}.{n & 255}/32 via {both.server_ipv4}\n" for n in range(10007))
            batch = ["ip", "-n", both.client.name, "-batch", "-"]
            subprocess.run(batch, input="".join(lines), text=True, check=True)
        assert notifications_lost(both.client)
        detour = (f"{both.server_ipv4}/32", "via", both.server_ipv4, "onlink", "dev", both.device)
        both.client.ip("route", "add", *detour)  # this notification is lost for certain
        one.process.send_signal(signal.SIGCONT)
        wait_until(lambda: one.metric("twctl_route_resyncs_total") > 0, what="read anew", timeout=20)
        prefixes = partial(one.metric, "twctl_classifier_prefixes", family="ipv4", **{"class": "remote"})
        wait_until(lambda: prefixes() == 1, what="the lost route is known")
        assert class_of_next(both, one) == "remote"
        assert one.metric("twctl_route_resyncs_total") == 1
        both.client.ip("route", "del", *detour)
        wait_until(lambda: prefixes() == 0, what="the next notification comes")
        assert class_of_next(both, one) == "local"


def notifications_lost(ns: Namespace) -> bool:
    """Whether a netlink socket of the namespace has dropped something: the column Drops."""
    title, *lines = (line.split() for line in ns.read("netlink").splitlines())
    return any(int(words[title.index("Drops")]) for words in lines)


def class_of_next(both: Link, one: Daemon) -> str:
    """The class of a session over the link that closes now."""
    end = paths.fin_wait2(paths.over_link(both), 1, CLIENT)[0].client
    return next(vestige.class_.label for vestige in one.table() if vestige.local_port == end.local_port)
