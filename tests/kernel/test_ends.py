"""Mode observe on the real kernel: how a session ends, when, and what is said of it."""

import random
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.load import counters, paths, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Namespace, namespace
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED
from tests.load.peer import tun_peer
from tests.load.scripts import scripted
from tests.load.segments import ACK, FIN, RST

N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
QUIET = {"net.ipv4.tcp_rfc1337": 1}
SMALL = "capacity = 1021\n"  # a look at the table takes 2 ms
COMPARING = SMALL + "reconcile_interval = 0.5\n"
ALONE = SMALL + "reconcile_interval = 0\n"  # the tracepoint probe without any help
EARLY, LATE = 0.2, 0.7  # s: how much a vestige's end may differ from its mini-socket's

Tuple = tuple[str, int, str, int]


def in_table(one: Daemon) -> set[Tuple]:
    """Tuples of all live vestiges."""
    return {(str(each.local), each.local_port, str(each.remote), each.remote_port) for each in one.table()}


def in_kernel(ns: Namespace) -> set[Tuple]:
    """Tuples of all mini-sockets."""
    return {each.tuple for each in counters.mini_sockets(ns)}


class Place:
    """Where sessions are, polled: when each was there for certain, and from when on it was certainly gone."""

    def __init__(self, look: Callable[[], set[Tuple]]) -> None:
        self._look = look
        self.there: dict[Tuple, float] = {}
        self.gone: dict[Tuple, float] = {}

    def poll(self) -> bool:
        """Look once; whether anything is there."""
        before, here, after = time.monotonic(), self._look(), time.monotonic()
        for tuple_ in here:
            self.there[tuple_] = before
            self.gone.pop(tuple_, None)
        for tuple_ in self.there.keys() - here:
            self.gone.setdefault(tuple_, after)
        return bool(here)

    def outlived(self, other: "Place") -> float:
        """By how much (s) some session was here longer than there, at least; negative: none was."""
        return max(self.there[tuple_] - gone for tuple_, gone in other.gone.items())


def assert_leave_together(one: Daemon, look: Callable[[], set[Tuple]], count: int, timeout: float) -> None:
    """As many sessions leave the table and the place it describes, none 0.2 s too early or 0.7 s too late."""
    table, kernel = Place(lambda: in_table(one)), Place(look)
    end = time.monotonic() + timeout
    while table.poll() | kernel.poll():
        assert time.monotonic() < end, f"still there after {timeout} s"
        time.sleep(0.01)
    assert table.there.keys() == kernel.there.keys()
    assert count == len(table.there)
    assert kernel.outlived(table) <= EARLY
    assert table.outlived(kernel) <= LATE


def ended(one: Daemon) -> dict[str, float]:
    """Ends by reason, those that are not 0; the histogram has as many, but for a scrape while they change."""
    metrics = one.metrics().items()
    counts: dict[str, float] = {}
    for row, number in metrics:
        if number and (found := re.match(r'twctl_time_wait_ended_total{.*reason="(\w+)"', row)):
            counts[found[1]] = counts.get(found[1], 0) + number
    lives = sum(number for row, number in metrics if row.startswith("twctl_time_wait_lifetime_seconds_count"))
    return counts if sum(counts.values()) == lives else {"changing": lives}


def await_ended(one: Daemon, expected: dict[str, float]) -> None:
    """These ends and no others are counted."""
    wait_until(lambda: ended(one) == expected, what=str(expected), timeout=30)


@dataclass(frozen=True)
class Old:
    """Sessions in TIME_WAIT that grow old while the other tests of this module run."""

    daemon: Daemon
    born: float
    watched: "Future[None]"  # fails if they leave too early or too late


@pytest.fixture(scope="module", autouse=True)
def old(probe: str) -> Iterator[Old]:
    """23 sessions of each family over lo, and the daemon that saw them being born, without help from comparisons."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace(QUIET))
        one = stack.enter_context(daemon(ns, probe=probe, config=ALONE))
        for family in FAMILIES:
            paths.fin_wait2(paths.over_lo(ns, family), N, CLIENT)
        born = time.monotonic()
        watching = stack.enter_context(ThreadPoolExecutor(1)).submit(watch, one, ns, born + 59)
        yield Old(one, born, watching)


def watch(one: Daemon, ns: Namespace, start: float) -> None:
    """Nothing leaves before `start`; from then on look closely."""
    assert 3 * N == len(one.table())
    time.sleep(start - time.monotonic())
    assert_leave_together(one, lambda: in_kernel(ns), 3 * N, timeout=20)


@pytest.mark.parametrize("seconds", [2, 3])
def test_a_fin_wait2_vestige_ends_with_its_mini_socket(probe: str, seconds: int) -> None:
    """Of sessions born at 23 moments none leaves the table 0.2 s before the kernel's own, none 0.7 s after it."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace({**QUIET, "net.ipv4.tcp_fin_timeout": seconds}))
        one = stack.enter_context(daemon(ns, probe=probe, config=ALONE))
        for _ in range(N):
            stack.enter_context(paths.orphan_fin_wait2(paths.over_lo(ns), 1, CLIENT))
            time.sleep(random.uniform(0.01, 0.07))  # noqa: S311 - a phase of the timer wheel
        assert N == len(one.table())
        assert_leave_together(one, lambda: in_kernel(ns), N, timeout=seconds + 10)
        await_ended(one, {"expired": N})


@pytest.mark.parametrize("fin_timeout", [1, 61])
def test_linger2_is_the_time_of_an_orphan(probe: str, fin_timeout: int) -> None:
    """TCP_LINGER2 goes before net.ipv4.tcp_fin_timeout; of 61 s the mini-socket has what 60 s leave, after as much."""
    with (
        namespace(QUIET) as ns,
        daemon(ns, probe=probe, config=ALONE) as one,
        paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT, fin_timeout=fin_timeout),
    ):
        wait_until(lambda: len(in_kernel(ns)) == N, what="mini-sockets")
        assert_leave_together(one, lambda: in_kernel(ns), N, timeout=10)
        await_ended(one, {"expired": N})


@contextmanager
def pairs(ns: Namespace, port: int) -> Iterator[Callable[[], list[tuple[socket.socket, socket.socket]]]]:
    """Gives 23 connections (client, server), each time between the same tuples."""
    with ExitStack() as stack:
        listener = stack.enter_context(ns.socket(socket.AF_INET))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(N)

        def connect() -> list[tuple[socket.socket, socket.socket]]:
            made = []
            for own in range(port + 1, port + 1 + N):
                client = stack.enter_context(ns.socket(socket.AF_INET))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.0.0.1", own))
                client.connect(listener.getsockname())
                made.append((client, stack.enter_context(listener.accept()[0])))
            return made

        yield connect


def close(first: socket.socket, second: socket.socket) -> None:
    """The first goes through FIN_WAIT2 into TIME_WAIT."""
    first.shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""
    second.close()
    assert first.recv(1) == b""
    first.close()


def assert_alive(client: socket.socket, server: socket.socket) -> None:
    """Bytes go both ways."""
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(b"still here")
        assert receiver.recv(64) == b"still here"


def test_connect_takes_the_tuple(probe: str) -> None:
    """connect() from the port of a session ends it: at once where the kernel tells, else at the next entry."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=ALONE) as one, pairs(ns, 22000) as connect:
        for client, server in connect():
            close(client, server)
        assert N == len(one.table())
        again = connect()
        at_once = {"reused": N} if probe == "fentry" else {}
        assert at_once == ended(one)
        assert N - sum(at_once.values()) == len(one.table())
        for client, server in again:
            assert_alive(client, server)
            close(client, server)
        await_ended(one, {"reused": N})
        assert N == len(one.table())


def test_a_syn_reopens_the_tuple(probe: str) -> None:
    """A SYN that takes over the server's session ends it; the new connection works, and its close is a new session."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=COMPARING) as one, pairs(ns, 22000) as connect:
        for client, server in connect():
            close(server, client)
        time.sleep(0.01)  # the timestamp of the SYN must be newer
        again = connect()
        reason = "reused" if probe == "fentry" else "unknown"
        await_ended(one, {reason: N})
        assert [] == one.table()
        for client, server in again:
            assert_alive(client, server)
            close(server, client)
        wait_until(lambda: in_kernel(ns) == in_table(one), what="the table is the kernel's list")
        assert (N, 2 * N) == (len(one.table()), one.metric("twctl_time_wait_entered_total"))


@pytest.mark.parametrize("name", ["fin_wait2", "orphan_fin_wait2", "data_after_close"])
def test_a_reset_ends_a_session(probe: str, name: str) -> None:
    """A RST at rcv_nxt, or data that the kernel answers with one: reset where the kernel tells, else unknown."""
    with (
        namespace({"net.ipv4.tcp_rfc1337": 0}) as ns,
        daemon(ns, probe=probe, config=COMPARING) as one,
        tun_peer(ns) as peer,
    ):
        stay = {each.client.tuple for family in FAMILIES for each in scripted(peer, "fin_wait2", 29, family=family)}
        for session in (each for family in FAMILIES for each in scripted(peer, name, N, family=family)):
            if name != "data_after_close":
                assert session.seen
                peer.connection(session.server.tuple).send(RST, seq=session.seen.rcv_nxt)
        await_ended(one, {"reset" if probe == "fentry" else "unknown": 3 * N})
        assert stay == in_table(one) == in_kernel(ns)


def test_a_rst_that_the_kernel_ignores_ends_nothing(probe: str) -> None:
    """Out of place, or with net.ipv4.tcp_rfc1337: the session stays."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=COMPARING) as one, tun_peer(ns) as peer:
        for session in scripted(peer, "fin_wait2", N):
            assert session.seen
            for shift in (0, 1):
                peer.connection(session.server.tuple).send(RST, seq=session.seen.rcv_nxt + shift)
        await_rounds(one, 3)
        assert {} == ended(one)
        assert N == len(one.table())


def await_rounds(one: Daemon, count: int) -> None:
    """So many more comparisons with the kernel, where there are any."""
    if one.probe == "fentry":
        return
    wanted = one.metric("twctl_reconciliations_total") + count

    def compared() -> bool:
        time.sleep(0.05)  # to be scraped all the time would slow it down
        return one.metric("twctl_reconciliations_total") >= wanted

    wait_until(compared, what="comparisons", timeout=60)


def test_a_late_segment_restarts_the_timer(probe: str) -> None:
    """The FIN sent once more, 2.5 s later: the vestige is young again, counted as restarted, and not as ended."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=COMPARING) as one, tun_peer(ns) as peer:
        sessions = scripted(peer, "fin_wait2", N)
        time.sleep(2.5)  # the timer wheel rounds 60 s to 2 s: later than that the timer must show it
        before = time.monotonic() + min(vestige.expires_in for vestige in one.table())
        sent = time.monotonic()
        for session in sessions:
            assert session.seen
            connection = peer.connection(session.server.tuple)
            connection.send(FIN | ACK, seq=session.seen.rcv_nxt - 1, ack=session.seen.snd_nxt)
            connection.expect(ACK)
        # more where a CPU was held up as a session entered: a comparison sets its time right, and counts that
        wait_until(lambda: one.metric("twctl_time_wait_restarted_total") >= N, what="restarted", timeout=30)
        assert {} == ended(one)
        table, now = one.table(), time.monotonic()
        assert N == len(table) == one.metric("twctl_time_wait_sessions")
        assert now + min(vestige.expires_in for vestige in table) > before + 1
        assert max(vestige.age for vestige in table) < now - sent + 0.1


def test_what_another_tool_destroys_is_drift(probe: str) -> None:
    """`ss -K`: where the kernel does not tell, the next comparison finds 23 stale sessions, and says so."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=COMPARING) as one:
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        run(ns, "--count", "101", "--close", "client", "--inline", "--threads", "1", "--port", "21000")
        command = ns.command("ss", "-K", "-Htan", "state", "time-wait", "dst", "127.0.0.1:20000")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert N == len(done.stdout.splitlines())
        killed = time.monotonic()
        if probe == "tracepoint":
            wait_until(lambda: one.metric("twctl_table_drift_sessions", which="stale") == N, what="drift")
            wait_until(lambda: f"{N} the kernel no longer has" in one.log, what="a line in the log")
        await_ended(one, {"destroyed" if probe == "fentry" else "unknown": N})
        assert time.monotonic() - killed <= (0.5 if probe == "fentry" else 5)
        assert (101, in_kernel(ns)) == (len(one.table()), in_table(one))


def test_what_the_kernel_had_no_room_for_does_not_stay(probe: str) -> None:
    """Beyond net.ipv4.tcp_max_tw_buckets closes enter and end at once, or at the next comparison."""
    sysctls = {**QUIET, "net.ipv4.tcp_max_tw_buckets": 11}
    with namespace(sysctls) as ns, daemon(ns, probe=probe, config=COMPARING) as one:
        paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
        assert N == one.metric("twctl_time_wait_entered_total")
        wait_until(lambda: in_kernel(ns) == in_table(one), what="the table is the kernel's list")
        await_ended(one, {"unknown": N - len(in_kernel(ns))})


def test_a_namespace_that_is_deleted_harms_nothing(probe: str) -> None:
    """The daemon goes on, its vestiges are told, and another namespace is still watched."""
    with ExitStack() as stack, namespace(QUIET) as other:
        gone = stack.enter_context(namespace(QUIET))
        one = stack.enter_context(daemon(gone, other, probe=probe, config=COMPARING))
        paths.fin_wait2(paths.over_lo(gone), N, CLIENT)
        subprocess.run(["ip", "netns", "del", gone.name], check=True)
        try:
            paths.fin_wait2(paths.over_lo(other), 29, CLIENT)
            await_rounds(one, 2)
            assert 29 == sum(vestige.netns == other.name for vestige in one.table())
            assert one.metric("twctl_collect_errors_total") == 0
            assert one.process
            assert one.process.poll() is None
        finally:
            subprocess.run(["ip", "netns", "add", gone.name], check=True)  # for its own clean-up


def test_a_time_wait_vestige_ends_with_its_mini_socket(old: Old) -> None:
    """After 60 s and what the timer wheel adds: neither 0.2 s before it nor 0.7 s after it."""
    old.watched.result()
    assert time.monotonic() - old.born >= 60
    await_ended(old.daemon, {"expired": 3 * N})
