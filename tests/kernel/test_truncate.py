"""Mode truncate and draining on the real kernel: what goes, when, and what is never touched."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.load import counters, paths, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Namespace, link, namespace
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED
from twctl.classes import Class
from twctl.commands.cli import app
from twctl.daemon.main import main
from twctl.linux.sockdiag import SockDiag

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
QUIET = {"net.ipv4.tcp_rfc1337": 1}
SHORT = "[time_wait]\nloopback = 1\nlocal = 3\n"


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace(QUIET) as made:
        yield made


def closes(ns: Namespace, count: int, port: int) -> None:
    """So many sessions of the client in TIME_WAIT, toward a port of 127.0.0.1."""
    run(ns, "--count", str(count), "--close", "client", "--inline", "--threads", "1", "--port", str(port))


@pytest.mark.parametrize("family", [pytest.param(IPV4, marks=pytest.mark.vm), IPV6, MAPPED])
def test_sessions_go_at_their_class_s_time_and_others_stay(probe: str, family: str) -> None:
    """Loopback sessions leave the kernel after 1 s, local ones after 3 s, neither early nor 0.5 s late."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client, probe=probe, mode="truncate", config=SHORT))
        started = time.monotonic()
        paths.fin_wait2(paths.over_lo(both.client, family), N, CLIENT)
        near = time.monotonic()
        paths.fin_wait2(paths.over_link(both, family), N, CLIENT)
        done = time.monotonic()
        assert counters.time_wait_count(both.client) == 2 * N
        wait_until(lambda: counters.time_wait_count(both.client) == N, what="loopback sessions go", timeout=10)
        assert 1.0 - 0.02 <= time.monotonic() - started
        assert time.monotonic() - near <= 1.5
        wait_until(lambda: counters.time_wait_count(both.client) == 0, what="local sessions go", timeout=10)
        assert time.monotonic() - near >= 3.0 - 0.02
        assert time.monotonic() - done <= 3.5
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason="truncated") == 2 * N, what="counted")
        assert 2 * N == one.metric("twctl_truncate_lateness_seconds_bucket", le="0.5")


def test_a_session_that_goes_in_time_reads_as_its_class_s_time(ns: Namespace) -> None:
    """2 s, a few hundredths late: in the bucket that has it in its middle, not in the one that follows."""
    with daemon(ns, mode="truncate") as one:
        paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason="truncated") == N, what="truncated")
        lives = "twctl_time_wait_lifetime_seconds_bucket"
        assert [0, N] == [one.metric(lives, le=edge, **{"class": "loopback"}) for edge in ("1.5", "2.5")]


def test_a_fin_wait2_socket_waits_for_its_own_time(ns: Namespace) -> None:
    """The class's time does not end FIN_WAIT2; `[fin_wait2]` does."""
    config = "[time_wait]\nloopback = 0.3\n[fin_wait2]\nloopback = 3\n"
    with daemon(ns, mode="truncate", config=config) as one, paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT):
        entered = time.monotonic()
        closes(ns, 101, 21000)
        wait_until(lambda: counters.time_wait_count(ns) == N, what="TIME_WAIT goes")
        assert time.monotonic() - entered < 2
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="FIN_WAIT2 goes", timeout=10)
        assert 3 - 0.1 <= time.monotonic() - entered <= 4.5
        assert one.metric("twctl_time_wait_ended_total", reason="truncated") == 101 + N


def test_a_fin_wait2_socket_of_a_short_linger_has_its_own_age(ns: Namespace) -> None:
    """The kernel's timer tells what is left of it, not how long it was to be (TCP_LINGER2)."""
    config = "[time_wait]\nloopback = 0.3\n[fin_wait2]\nloopback = 20\n"
    with daemon(ns, mode="truncate", config=config) as one:
        with paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT, fin_timeout=30):
            closes(ns, 101, 21000)
            wait_until(lambda: counters.time_wait_count(ns) == N, what="TIME_WAIT goes")
            time.sleep(3)  # nothing tells that they were looked at and left alone
            assert N == counters.time_wait_count(ns)
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="their peers have closed")
        assert 101 + N == one.metric("twctl_time_wait_ended_total", reason="truncated")


def test_a_socket_that_is_bound_to_a_device_is_left_to_the_kernel(ns: Namespace, probe: str) -> None:
    """sock_diag does not find it. It is neither taken for gone, nor for one that nobody saw come."""
    config = "reconcile_interval = 0.5\n[time_wait]\nloopback = 0.3\n"
    with daemon(ns, probe=probe, mode="truncate", config=config) as one, ns.socket(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 20000))
        listener.listen(N)
        for _ in range(N):
            with ns.socket(socket.AF_INET) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
                client.connect(("127.0.0.1", 20000))
                server, _ = listener.accept()
                with server:
                    client.close()
                    assert b"" == server.recv(1)
        closes(ns, 101, 21000)
        rounds = "twctl_reconciliations_total"
        began = one.metric(rounds)
        wait_until(lambda: counters.time_wait_count(ns) == N, what="the others go")
        if probe != "fentry":
            wait_until(lambda: one.metric(rounds) > began + 1, what="a comparison", timeout=30)
        ended = [one.metric("twctl_time_wait_ended_total", reason=reason) for reason in ("unknown", "truncated")]
        assert ([0, 101], 0) == (ended, one.metric("twctl_time_wait_adopted_total"))
        assert (N, N) == (len(one.table()), counters.time_wait_count(ns))


@pytest.mark.alone("it measures when sockets go")
def test_a_fin_wait2_socket_may_go_before_time_wait_does(ns: Namespace) -> None:
    """Where `[fin_wait2]` is the shorter time, it ends FIN_WAIT2 alone."""
    config = "[time_wait]\nloopback = 5\n[fin_wait2]\nloopback = 1\n"
    with daemon(ns, mode="truncate", config=config), paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT):
        orphaned = time.monotonic()
        closes(ns, 101, 21000)
        closed = time.monotonic()
        wait_until(lambda: counters.time_wait_count(ns) == 101, what="FIN_WAIT2 goes")
        assert 1 - 0.1 <= time.monotonic() - orphaned <= 2.5
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="TIME_WAIT goes", timeout=10)
        assert 5 - 0.1 <= time.monotonic() - closed <= 5.5


@pytest.mark.alone("it measures when sockets go")
def test_sessions_from_before_the_start_go_at_their_own_age(ns: Namespace) -> None:
    """Not a class's time after the daemon found them."""
    closes(ns, N, 20000)
    first = time.monotonic()
    time.sleep(1)
    closes(ns, 29, 21000)
    second = time.monotonic()
    with daemon(ns, mode="truncate", config="[time_wait]\nloopback = 7\n"):
        serving = time.monotonic()
        wait_until(lambda: counters.time_wait_count(ns) == 29, what="the older go", timeout=20)
        assert first + 7 - 0.1 <= time.monotonic() <= max(serving, first + 7) + 0.5
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="the younger go", timeout=20)
        assert second + 7 - 0.1 <= time.monotonic() <= max(serving, second + 7) + 0.5


@pytest.mark.alone("it measures when sockets go")
def test_a_comparison_in_between_makes_no_session_late(ns: Namespace) -> None:
    """A session whose FIN came late moves to the newest place when a comparison finds that; its time does not."""
    with daemon(
        ns, mode="truncate", config="capacity = 1021\nreconcile_interval = 4\n[time_wait]\nloopback = 6\n"
    ) as one:
        compared = partial(one.metric, "twctl_reconciliations_total")
        wait_until(lambda: compared() == 1, what="a comparison", timeout=20)
        with paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT):
            time.sleep(0.5)
        done = time.monotonic()
        wait_until(lambda: compared() == 2, what="the next", timeout=20)
        assert time.monotonic() < done + 6
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="all go", timeout=20)
        assert done + 6 - 0.1 <= time.monotonic() <= done + 6.5


def test_a_storm_on_few_tuples_harms_no_live_connection() -> None:
    """Of 200,003 connections on 1,000 client ports, reused as fast as possible, none fails and no RST is sent."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace({**QUIET, "net.ipv4.tcp_tw_reuse": 1}))
        with daemon(ns, mode="truncate", config="[time_wait]\nloopback = 0.05\n") as one:
            before = counters.tcp(ns)["OutRsts"]
            options = ("--source", "127.0.0.1", "--source-ports", "40000-40999", "--port", "20000-20003")
            report = run(ns, "--count", "200003", "--close", "client", "--bytes", "101", "--inline", *options)
            assert (200003, 0, {}) == (report["closed"], report["failed"], report["errors"])
            assert before == counters.tcp(ns)["OutRsts"]
            truncated = partial(one.metric, "twctl_time_wait_ended_total", reason="truncated")
            wait_until(lambda: truncated() > 0, what="those that nobody took are destroyed")


def test_live_connections_on_the_tuples_of_old_sessions_go_on(ns: Namespace) -> None:
    """A connection that took the tuple of a session in TIME_WAIT carries bytes after the session was due."""
    ns.sysctl("net.ipv4.tcp_tw_reuse", 1)
    with ExitStack() as stack:
        one = stack.enter_context(daemon(ns, mode="truncate", config="[time_wait]\nloopback = 2\n"))
        server = stack.enter_context(ns.socket(socket.AF_INET))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 22000))
        server.listen(N)
        pairs = []
        for again in (False, True):
            for port in range(41000, 41000 + N):
                client = stack.enter_context(ns.socket(socket.AF_INET))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.0.0.1", port))
                client.connect(("127.0.0.1", 22000))
                peer = stack.enter_context(server.accept()[0])
                if again:
                    pairs.append((client, peer))
                else:
                    client.close()
                    peer.recv(1)
                    peer.close()
        wait_until(lambda: not one.table(), what="the old sessions are over", timeout=10)
        time.sleep(0.5)
        for client, peer in pairs:
            client.sendall(b"still here")
            assert peer.recv(64) == b"still here"


def test_after_a_kill_what_is_due_still_goes(ns: Namespace) -> None:
    """Sessions that enter while no daemon runs are destroyed by the next one."""
    with daemon(ns, mode="truncate", config="[time_wait]\nloopback = 1\n") as one:
        closes(ns, N, 20000)
        one.kill()
        closes(ns, 29, 21000)
        time.sleep(1.5)
        assert counters.time_wait_count(ns) == N + 29
        one.start()
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="what is due goes", timeout=5)


def test_the_mode_changes_by_sighup_and_no_vestige_is_lost(ns: Namespace) -> None:
    """A bad file changes nothing and costs one line; a good one takes the daemon from observe to truncate."""
    with daemon(ns) as one:
        closes(ns, N, 20000)
        reload(one, "mode = 'truncated'\n")
        wait_until(lambda: "the configuration stays as it was" in one.log, what="one line")
        assert (N, 1, 1) == (len(one.table()), one.log.count("the configuration stays"), one.log.count("metrics on"))
        reload(one, "mode = 'truncate'\n[time_wait]\nloopback = 30\n")
        wait_until(lambda: "truncating with" in one.log, what="the new mode")
        assert N == len(one.table())
        reload(one, "mode = 'truncate'\n[time_wait]\nloopback = 1\n")
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="what is due goes", timeout=10)


def reload(one: Daemon, text: str) -> None:
    """Write another configuration and tell the daemon."""
    (one.folder / "twctl.toml").write_text(text)
    assert one.process
    one.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("mode", ["observe", "truncate"])
def test_drain_destroys_the_oldest_of_a_class(ns: Namespace, mode: str) -> None:
    """Only sessions older than asked go, of the class asked, and they count as drained."""
    with daemon(ns, mode=mode, config="[time_wait]\nloopback = 30\n") as one:
        closes(ns, N, 20000)
        time.sleep(4.5)
        closes(ns, 29, 21000)  # younger than asked for while the two commands run

        assert twctl("drain", *one.options, "--class", "remote").stdout == "drained 0: remote 0\n"
        drained = twctl("drain", *one.options, "--older-than", "4")
        assert drained.stdout == f"drained {N}: loopback {N}, local 0, remote 0\n", drained.stderr
        assert {21000} == {vestige.remote_port for vestige in one.table()}
        assert counters.time_wait_count(ns) == 29
        assert one.metric("twctl_time_wait_ended_total", reason="drained") == N


def test_drain_takes_what_its_filters_choose(ns: Namespace) -> None:
    """By remote prefix, local port and owner; a dry run counts the same, and changes nothing."""
    with daemon(ns) as one:
        closes(ns, N, 20000)
        paths.fin_wait2(paths.over_lo(ns, IPV6), 29, CLIENT)
        port = next(vestige.local_port for vestige in one.table() if vestige.family == "ipv4")
        owners = twctl("blame", *one.options, "--json", "--by", "owner").stdout.splitlines()
        (owner,) = {row["owner"] for row in map(json.loads, owners) if row["sessions"]}

        def drained(*words: str) -> int:
            done = twctl("drain", *one.options, "--json", *words)
            assert done.returncode == 0, done.stderr
            return int(json.loads(done.stdout)["drained"]["loopback"])

        left = N + 29
        for words, count in (
            (("--remote", "192.0.2.0/24"), 0),
            (("--local-port", str(port)), 1),
            (("--remote", "::/0", "--owner", owner), 29),
            (("--all",), N - 1),
        ):
            assert count == drained(*words, "--dry-run")
            assert (left, left) == (counters.time_wait_count(ns), len(one.table()))
            assert count == drained(*words)
            left -= count
            assert (left, left) == (counters.time_wait_count(ns), len(one.table()))
        done = twctl("drain", *one.options, "--owner", "nobody.service")
        assert (1, "twctl: no owner is named nobody.service") == (done.returncode, done.stderr.partition(" (")[0])


def test_drain_leaves_what_only_the_guard_knows(ns: Namespace) -> None:
    """The kernel has no socket of it, and the peer's FIN may still come."""
    with daemon(ns, mode="vestigial") as one:
        paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
        before = one.table()
        assert N == len(before)
        done = twctl("drain", *one.options, "--all")
        assert "drained 0: loopback 0, local 0, remote 0\n" == done.stdout
        assert "its sessions have no sockets that could be destroyed" in done.stderr
        assert 0 == one.metric("twctl_time_wait_ended_total", reason="unknown")
        assert {each.local_port for each in before} == {each.local_port for each in one.table()}


def test_drain_without_a_table_says_so() -> None:
    """One line, exit status 1."""
    done = twctl("drain", "--all", "--pins", "/sys/fs/bpf/twctl-test-none")
    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "start 'twctl run'" in done.stderr


def test_sysctls_are_put_back_by_stop_by_release_and_by_the_next_start(ns: Namespace) -> None:
    """Also after kill -9; a value that somebody else changed stays."""
    config = "[sysctl]\ntcp_fin_timeout = 31\ntcp_tw_reuse = 1\n"
    before = [ns.sysctl("net.ipv4.tcp_fin_timeout"), ns.sysctl("net.ipv4.tcp_tw_reuse")]

    def now() -> list[str]:
        return [ns.sysctl("net.ipv4.tcp_fin_timeout"), ns.sysctl("net.ipv4.tcp_tw_reuse")]

    with daemon(ns, config=config) as one:
        assert now() == ["31", "1"]
        assert one.stop() == 0
        assert before == now()
        one.start()
        one.kill()
        assert now() == ["31", "1"]
        one.config = ""
        one.start()
        assert before == now()
        one.kill()
        one.config = config
        one.start()
        one.kill()
        ns.sysctl("net.ipv4.tcp_tw_reuse", 0)
        released = twctl("release", "--pins", str(one.pins))
        assert "net.ipv4.tcp_tw_reuse is left at 0" in released.stderr
        assert [before[0], "0"] == now()


class TcpMemory:
    """A tcp_mem that one daemon sees: the real one is the whole machine's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.touch()
        self.threshold(2**31 - 1)

    def threshold(self, pages: int) -> None:
        """Where pressure begins; in place, at one length: the daemon reads when it likes, and what it has mounted."""
        with self._path.open("r+") as file:
            file.write(f"0 {pages:10} {2**31 - 1}\n")

    @contextmanager
    def daemon(self, ns: Namespace) -> Iterator[Daemon]:
        """A daemon in mode truncate that truncates nothing: it drains."""
        config = "reconcile_interval = 0\n[time_wait]\nloopback = 60\nlocal = 60\n"
        with daemon(ns, mode="truncate", config=config) as one:
            one.kill()  # it has mounted bpffs where there was none: that mount is seen from both sides
            mount = 'mount --bind "$0" /proc/sys/net/ipv4/tcp_mem && exec "$@"'
            one.prefix = ("unshare", "--mount", "sh", "-c", mount, str(self._path))
            one.start()
            yield one


def test_under_tcp_memory_pressure_the_nearest_go_first_and_only_while_it_lasts(tmp_path: Path) -> None:
    """Loopback sessions go within a second, the rest of them and local ones not before pressure is back."""
    memory = TcpMemory(tmp_path / "tcp_mem")
    with ExitStack() as stack:
        both = stack.enter_context(link({**QUIET, "net.ipv4.tcp_tw_reuse": 0}))
        client, server = connection(stack, both.client)
        one = stack.enter_context(memory.daemon(both.client))
        options = ("--inline", "--threads", "1", "--port", "21000-21003")
        run(both.client, "--count", "20011", "--close", "client", *options)
        paths.fin_wait2(paths.over_link(both), N, CLIENT)
        assert counters.time_wait_count(both.client) == 20011 + N

        memory.threshold(0)
        started = time.monotonic()
        wait_until(lambda: counters.time_wait_count(both.client) < 20011 + N, what="draining begins")
        assert time.monotonic() - started <= 1
        memory.threshold(2**31 - 1)
        time.sleep(0.5)  # several times what lies between two batches
        left = counters.time_wait_count(both.client)
        assert N < left < 20011 + N
        assert drained(one) == {"loopback": 20011 + N - left, "local": 0, "remote": 0}
        time.sleep(1)
        assert left == counters.time_wait_count(both.client)

        memory.threshold(0)
        wait_until(lambda: counters.time_wait_count(both.client) == 0, what="all are drained", timeout=20)
        wait_until(lambda: drained(one) == {"loopback": 20011, "local": N, "remote": 0}, what="counted")
        client.sendall(b"still here")
        assert server.recv(64) == b"still here"


def test_what_was_in_fin_wait2_is_drained_once_its_fin_has_come(ns: Namespace, tmp_path: Path) -> None:
    """While pressure lasts; until then orphans in FIN_WAIT2 stay, although sessions that entered later go."""
    memory = TcpMemory(tmp_path / "tcp_mem")
    with memory.daemon(ns) as one:
        memory.threshold(0)
        with paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT):
            closes(ns, 101, 21000)
            wait_until(lambda: counters.time_wait_count(ns) == N, what="TIME_WAIT is drained")
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="what was FIN_WAIT2 is drained")
        wait_until(lambda: drained(one)["loopback"] == 101 + N, what="counted")


def connection(stack: ExitStack, ns: Namespace) -> tuple[socket.socket, socket.socket]:
    """The two ends of a live connection over lo."""
    listener = stack.enter_context(ns.socket(socket.AF_INET))
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = stack.enter_context(ns.socket(socket.AF_INET))
    client.connect(listener.getsockname())
    return client, stack.enter_context(listener.accept()[0])


def drained(one: Daemon) -> dict[str, float]:
    """Sessions that ended as drained, by class."""
    name = "twctl_time_wait_ended_total"
    return {class_.label: one.metric(name, reason="drained", **{"class": class_.label}) for class_ in Class}


def test_the_daemon_says_what_tells_it_of_pressure(ns: Namespace) -> None:
    """PSI where the kernel has it, else why not; and TCP's memory."""
    with daemon(ns, mode="truncate") as one:
        wait_until(lambda: "draining under pressure" in one.log, what="the line")
        said = re.search(r"draining under pressure: (.+), TCP memory\n", one.log)
        assert said
        off = r"PSI off \(.+; boot with psi=1\)"
        assert re.fullmatch(f"PSI above 150 ms a second|{off}", said[1])
        if not Path("/proc/pressure/memory").exists():
            assert re.fullmatch(off, said[1])


def test_a_route_moves_new_sessions_and_leaves_those_that_are_there() -> None:
    """A session keeps the class, and so the time, that its peer had when it closed, in either direction."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client, mode="truncate", config=SHORT))
        detour = (f"{both.server_ipv4}/32", "via", both.server_ipv4, "onlink", "dev", both.device)
        started = time.monotonic()
        paths.fin_wait2(paths.over_link(both), N, CLIENT)
        done = time.monotonic()
        both.client.ip("route", "add", *detour)
        wait_until(lambda: far_prefixes(one) == 1, what="the route is known")
        paths.fin_wait2(paths.over_link(both), 29, CLIENT)
        assert counters.time_wait_count(both.client) == N + 29
        wait_until(lambda: counters.time_wait_count(both.client) == 29, what="what was local goes", timeout=10)
        assert started + 3 - 0.02 <= time.monotonic() <= done + 3.5

        both.client.ip("route", "del", *detour)
        wait_until(lambda: far_prefixes(one) == 0, what="the route is gone")
        started = time.monotonic()
        paths.fin_wait2(paths.over_link(both), 31, CLIENT)
        assert {"local": 31, "remote": 29} == Counter(vestige.class_.label for vestige in one.table())
        wait_until(lambda: counters.time_wait_count(both.client) == 29, what="what is local again goes", timeout=10)
        assert time.monotonic() - started >= 3 - 0.02
        assert {"remote": 29} == Counter(vestige.class_.label for vestige in one.table())


def far_prefixes(one: Daemon) -> float:
    """Prefixes that are remote inside of nearer ones."""
    return one.metric("twctl_classifier_prefixes", family="ipv4", **{"class": "remote"})


def test_a_kernel_that_does_not_destroy_is_told_by_check_and_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`check` says so and still passes; mode truncate ends with one line and leaves nothing pinned."""
    pins = Path(f"/sys/fs/bpf/twctl-test-refused-{os.getpid()}")
    monkeypatch.setattr(SockDiag, "destroy", lambda _, requests: len(requests))  # as with EOPNOTSUPP to each
    reason = (
        "this kernel does not destroy TIME_WAIT sockets "
        "(mode truncate needs Linux 6.0 and CONFIG_INET_DIAG_DESTROY=y; use mode observe)"
    )
    checked = CliRunner().invoke(app, ["check", "--pins", str(pins)])
    assert checked.exit_code == 0
    assert f"less truncate   {reason}" in checked.stdout.splitlines()
    file = tmp_path / "twctl.toml"
    file.write_text(f'mode = "truncate"\npins = "{pins}"\n')
    monkeypatch.setattr(sys, "argv", ["twctl", json.dumps({"file": str(file), "options": {}})])
    try:
        assert main() == 1
        assert [reason] == [record.getMessage() for record in caplog.records]
        assert not (pins / "current").exists()
    finally:
        assert twctl("release", "--pins", str(pins)).returncode == 0
