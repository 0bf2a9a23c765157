"""What was there before the daemon, and what a daemon leaves to the next one."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.load import counters, paths, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, Namespace, add_addresses, link, namespace
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED, Route

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
QUIET = {"net.ipv4.tcp_rfc1337": 1}
SMALL = "capacity = 1021\n"
FAR_IPV4, FAR_IPV6 = "10.99.0.1", "fd99::1"
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")  # of /proc/net/tcp

Tuple = tuple[str, int, str, int]


@pytest.fixture
def both() -> Iterator[Link]:
    """A client, a server on its link, and addresses of the server that a router's routes lead to."""
    with link({**QUIET, "net.ipv4.tcp_fin_timeout": 3}) as made:
        add_addresses(made.server, "lo", FAR_IPV4, FAR_IPV6)
        made.client.ip("route", "add", f"{FAR_IPV4}/32", "via", made.server_ipv4)
        made.client.ip("route", "add", f"{FAR_IPV6}/128", "via", made.server_ipv6)
        yield made


def routes(both: Link) -> Iterator[tuple[str, Route]]:
    """To a peer of each class, by each family."""
    for family in FAMILIES:
        near = paths.over_link(both, family)
        far = FAR_IPV6 if family == IPV6 else FAR_IPV4
        yield "loopback", paths.over_lo(both.client, family)
        yield "local", near
        yield "remote", Route(near.client, near.server, near.client_address, far, family, near.device)


def timers(ns: Namespace) -> dict[Tuple, float]:
    """Of each mini-socket, the seconds that its timer was set to run from now on."""
    left = {}
    for table in ("tcp", "tcp6"):
        for line in ns.read(table).splitlines()[1:]:
            words = line.split()
            (local, local_port), (remote, remote_port) = (counters._endpoint(word) for word in words[1:3])  # noqa: SLF001
            left[local, local_port, remote, remote_port] = int(words[5].split(":")[1], 16) / TICKS_A_SECOND
    return {one.tuple: left[one.tuple] for one in counters.mini_sockets(ns)}


def test_sessions_from_before_are_adopted_as_what_they_are(probe: str, both: Link) -> None:
    """TIME_WAIT and FIN_WAIT2, of every class and family; without sequence numbers, which nobody saw."""
    wanted = set()
    with ExitStack() as stack:
        for class_, route in routes(both):
            for substate, sessions in (
                ("TIME_WAIT", paths.fin_wait2(route, N, CLIENT)),
                ("FIN_WAIT2", stack.enter_context(paths.orphan_fin_wait2(route, N, CLIENT, fin_timeout=40))),
            ):
                wanted |= {(class_, substate, *session.client.tuple) for session in sessions}
        one = stack.enter_context(daemon(both.client, probe=probe))
        table = one.table()
        assert wanted == {
            (each.class_.label, each.substate, str(each.local), each.local_port, str(each.remote), each.remote_port)
            for each in table
        }
        assert {(both.client.name, False)} == {(each.netns, each.known) for each in table}
        assert f"took over: {len(wanted)} sessions the table lacked, 0 the kernel no longer has" in one.log
        for class_ in ("loopback", "local", "remote"):
            assert [4 * N, 2 * N] == [
                one.metric("twctl_time_wait_adopted_total", **{"class": class_, "family": family})
                for family in ("ipv4", "ipv6")
            ]
        assert 0 == one.metric("twctl_time_wait_entered_total")


def stopped(stack: ExitStack, probe: str, config: str) -> Daemon:
    """A daemon whose table is pinned already, so that its next start does not compile: that takes long."""
    one = stack.enter_context(daemon(stack.enter_context(namespace()), probe=probe, config=config))
    assert one.stop() == 0
    return one


def test_an_adopted_session_has_what_its_timer_has_left(probe: str) -> None:
    """Never less than the kernel's timer was set to, and as much more as the timer wheel rounds, plus 0.2 s."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace(QUIET))
        one = stopped(stack, probe, SMALL)
        paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
        for fin_timeout in (13, 25, 40):
            stack.enter_context(paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT, fin_timeout=fin_timeout))
        time.sleep(1.1)
        one.namespaces = (ns,)
        one.start()
        left, table = timers(ns), one.table()
        assert 4 * N == len(left) == len(table)
        more = [
            (left[str(each.local), each.local_port, str(each.remote), each.remote_port], each.expires_in)
            for each in table
        ]
        assert all(set_to - 0.1 <= expires for set_to, expires in more)
        # the wheel's levels are eight times coarser each; 60 s are rounded to at most 4.1 s (1000 Hz)
        assert all(expires <= set_to + set_to / 8 + 0.3 for set_to, expires in more if set_to < 50)
        assert all(expires <= set_to + 4.3 for set_to, expires in more)


def test_an_adopted_session_ends_with_its_mini_socket(probe: str) -> None:
    """Adopted while its 12 s run: gone 0.7 s after the kernel's own at the latest, and not before."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace({**QUIET, "net.ipv4.tcp_fin_timeout": 12}))
        one = stopped(stack, probe, SMALL + "reconcile_interval = 0\n")
        stack.enter_context(paths.orphan_fin_wait2(paths.over_lo(ns), N, CLIENT))
        one.namespaces = (ns,)
        one.start()
        assert N == len(one.table())
        wait_until(lambda: len(one.table()) < N, what="the first expires", timeout=20)
        assert counters.time_wait_count(ns) < N
        wait_until(lambda: counters.time_wait_count(ns) == 0, what="the kernel's timers", timeout=20)
        gone = time.monotonic()
        wait_until(lambda: not one.table(), what="the vestiges expire")
        assert time.monotonic() - gone <= 0.7
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason="expired") == N, what="counted")


def test_sessions_born_without_a_daemon_are_as_exact_as_others(probe: str) -> None:
    """After kill -9: class, sequence numbers and time as always; the next daemon adopts none of them."""
    with link(QUIET) as both, daemon(both.client, probe=probe, config=SMALL) as one:
        paths.fin_wait2(paths.over_lo(both.client), N, CLIENT)
        before = {(each.local, each.local_port): (each.snd_nxt, each.rcv_nxt) for each in one.table()}
        one.kill()
        paths.fin_wait2(paths.over_link(both), 29, CLIENT)
        one.start()
        table = one.table()
        assert (N, 29) == tuple(sum(each.class_.label == label for each in table) for label in ("loopback", "local"))
        assert all(each.known and each.ts_recent for each in table)
        assert before.items() <= {(each.local, each.local_port): (each.snd_nxt, each.rcv_nxt) for each in table}.items()
        assert (52, 0) == (one.metric("twctl_time_wait_entered_total"), one.metric("twctl_time_wait_adopted_total"))


def test_what_the_kernel_dropped_meanwhile_is_found(probe: str) -> None:
    """Sockets destroyed while no daemon runs end at the first comparison, where the kernel did not tell."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=SMALL + "reconcile_interval = 0.3\n") as one:
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        one.kill()
        subprocess.run(ns.command("ss", "-K", "-Htan", "state", "time-wait"), capture_output=True, check=True)
        assert counters.time_wait_count(ns) == 0
        one.start()
        reason = "destroyed" if probe == "fentry" else "unknown"
        wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason=reason) == N, what=reason, timeout=10)
        assert [] == one.table()


def test_another_set_of_namespaces_is_watched_after_a_restart(probe: str) -> None:
    """Of the one that was dropped nothing new is recorded, and the one that stays keeps its vestiges."""
    with ExitStack() as stack:
        stays, goes, comes = (stack.enter_context(namespace(QUIET)) for _ in range(3))
        one = stack.enter_context(daemon(stays, goes, probe=probe, config=SMALL + "reconcile_interval = 0\n"))
        close(stays, goes, comes)
        assert one.stop() == 0
        one.namespaces = (stays, comes)
        one.start()
        close(stays, goes, comes, port=21000)
        names = [each.netns for each in one.table()]
        assert (2 * N, 2 * N, 0) == tuple(names.count(each.name) for each in (stays, comes, goes))
        # its 23 are still there, by the number they had
        assert 5 * N == len(names)


def test_a_namespace_that_comes_does_not_get_vestiges_of_one_that_left(probe: str) -> None:
    """Three namespaces one after the other: each names only its own sessions."""
    with ExitStack() as stack:
        places = [stack.enter_context(namespace(QUIET)) for _ in range(3)]
        one = stack.enter_context(daemon(places[0], probe=probe, config=SMALL + "reconcile_interval = 0\n"))
        close(places[0])
        for ns in places[1:]:
            assert one.stop() == 0
            one.namespaces = (ns,)
            one.start()
            assert [] == [each for each in one.table() if each.netns == ns.name]
        assert N == len(one.table())


def test_a_daemon_whose_pins_were_removed_says_so() -> None:
    """`rm -r` detaches everything, and the daemon ends with one line."""
    with namespace(QUIET) as ns, daemon(ns, config=SMALL + "reconcile_interval = 0.1\n") as one:
        subprocess.run(["rm", "-r", str(one.pins)], check=True)
        assert one.process
        assert one.process.wait(30) == 1
        said = f"twctl: the table at {one.pins}/current was removed (start 'twctl run' again)\n"
        assert said == one.log.splitlines(keepends=True)[-1]
        assert "Traceback" not in one.log


def close(*namespaces: Namespace, port: int = 20000) -> None:
    """23 sessions over lo in each."""
    for ns in namespaces:
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1", "--port", str(port))


@pytest.fixture(scope="module")
def started(probe: str) -> Iterator[Daemon]:
    """A daemon that tests leave running."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config=SMALL) as one:
        yield one


def test_everything_is_pinned_in_one_folder_of_root_s(started: Daemon) -> None:
    """Maps, programs and links below `current`, and no folder that others may enter."""
    folders = [folder for folder in started.pins.rglob("*") if folder.is_dir()]
    assert ["current", "links", "maps", "programs"] == sorted(folder.name for folder in folders)
    assert {0o700} == {folder.stat().st_mode & 0o777 for folder in (started.pins, *folders)}
    assert all(any(folder.iterdir()) for folder in folders)


def test_stop_leaves_the_probes_and_sigint_is_as_good_as_sigterm(started: Daemon) -> None:
    """The last line says what goes on, and what removes it."""
    assert started.process
    started.process.send_signal(2)
    assert started.process.wait(30) == 0
    assert started.log.endswith("twctl: stopped; the probes go on, 'twctl release' removes them\n")
    before = len(started.table())
    close(*started.namespaces)
    assert before + N == len(started.table())
    started.start()


def test_a_release_says_what_it_removed(started: Daemon) -> None:
    """Twice without complaint; afterwards nothing is pinned, and closes are no longer recorded."""
    assert started.stop() == 0
    try:
        done = [twctl("release", *started.options) for _ in range(2)]
        assert [(0, ""), (0, "")] == [(each.returncode, each.stderr) for each in done]
        assert not started.pins.exists()
    finally:
        started.start()
    assert "took over the pinned table" not in started.log.rsplit("stopped", 1)[1]
