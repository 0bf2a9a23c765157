"""connect()'s search for a local port on the real kernel: each call is counted once, with outcome and length."""

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.kernel.test_headroom import QUIET
from tests.load import wait_until
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Link, link
from twctl.linux import libbpf
from twctl.linux.cgroups import root_cgroup
from twctl.table.connects import CONNECTS, SEARCHED, SEARCHING, Connects, connects
from twctl.table.maps import Table

N = 23
TCP_FASTOPEN_CONNECT = 30  # not in the socket module
SMALL = "capacity = 1021\n"
EACH = SMALL + "connect.port_search = 1\n"
PORT = 20000
# Without what shows the root of the cgroups, in a mount namespace of its own.
BLIND = (
    *("unshare", "--mount", "sh", "-c"),
    'umount -l $(sed -n "s/^[^ ]* \\([^ ]*\\) cgroup2 .*/\\1/p" /proc/mounts); exec "$@"',
    "sh",
)


def measured(one: Daemon) -> Connects:
    """What was counted so far."""
    found = connects(Table(one.pins / "current"))
    assert found
    return found


def counts(one: Daemon) -> tuple[int, int, int]:
    """Searches that found a port, that did not, and those that were not measured."""
    now = measured(one)
    return now.searches["found"].made, now.searches["no_port"].made, now.unmeasured


@pytest.fixture(scope="module")
def both() -> Iterator[Link]:
    """A client with 1,009 ports, and a server that listens."""
    with link(QUIET) as made:
        made.client.sysctl("net.ipv4.tcp_fastopen", 5)  # client, and without a cookie
        with closing(made.server.socket(socket.AF_INET)) as listener:
            listener.bind(("", PORT))
            listener.listen(1024)
            yield made


@pytest.fixture(scope="module")
def one(both: Link, probe: str) -> Iterator[Daemon]:
    """Observes the client alone."""
    with daemon(both.client, probe=probe, config=EACH) as made:
        wait_until(lambda: program_number(made) in at_the_root(), what="the program is attached")
        yield made


def connecting(both: Link, kind: int = socket.AF_INET) -> socket.socket:
    """A socket of the client that is connected to the server."""
    made = both.client.socket(kind)
    made.connect((both.server_ipv4 if kind == socket.AF_INET else f"::ffff:{both.server_ipv4}", PORT))
    return made


@pytest.mark.parametrize("kind", [socket.AF_INET, socket.AF_INET6])
def test_each_connect_is_counted_once_and_has_taken_some_time(both: Link, one: Daemon, kind: int) -> None:
    """Those of the server are not: it is not enrolled. No lane is below what a function call takes."""
    before = measured(one)
    for _ in range(N):
        connecting(both, kind).close()
    after = measured(one)
    found = after.searches["found"].since(before.searches["found"])
    assert (N, before.unmeasured) == (found.made, after.unmeasured)
    assert before.searches["no_port"] == after.searches["no_port"]
    assert 1e-7 * N < found.seconds < N


def test_a_call_that_is_refused_by_the_peer_has_found_a_port(both: Link, one: Daemon) -> None:
    """Its end comes later, from SYN_SENT, too, and is not counted again."""
    before = counts(one)
    for _ in range(N):
        with closing(both.client.socket(socket.AF_INET)) as made:
            assert made.connect_ex((both.server_ipv4, PORT + 1)) == errno.ECONNREFUSED
    assert (before[0] + N, *before[1:]) == counts(one)


def test_a_call_that_finds_no_port_is_the_other_outcome(both: Link, one: Daemon) -> None:
    """As many as are counted to have failed; each has looked at every port."""
    before, failed = measured(one), one.metric("twctl_connects_without_port_total")
    both.client.sysctl("net.ipv4.ip_local_port_range", "30000 30001")
    held = []
    try:
        while True:
            try:
                held.append(connecting(both))
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL  # noqa: PT017 - what ends the loop
                break
        for _ in range(N - 1):
            with pytest.raises(OSError, match="assign requested address"):
                connecting(both)
    finally:
        both.client.sysctl("net.ipv4.ip_local_port_range", QUIET["net.ipv4.ip_local_port_range"])
        for each in held:
            each.close()
    after = measured(one)
    assert N == after.searches["no_port"].since(before.searches["no_port"]).made
    assert failed + N == one.metric("twctl_connects_without_port_total")
    assert len(held) == after.searches["found"].since(before.searches["found"]).made


def test_a_syn_that_waits_for_data_is_not_measured(both: Link, one: Daemon) -> None:
    """TCP Fast Open: what lies between is the application's time."""
    before = counts(one)
    for _ in range(N):
        with closing(both.client.socket(socket.AF_INET)) as made:
            made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            made.connect((both.server_ipv4, PORT))
            time.sleep(0.001)  # the application's, for which it waits
            made.send(b"x")
    assert (*before[:2], before[2] + N) == counts(one)


def test_the_metrics_are_what_was_counted(both: Link, one: Daemon) -> None:
    """With all outcomes and edges."""
    connecting(both).close()
    found, no_port, unmeasured = counts(one)
    name = "twctl_connect_port_search_seconds"
    assert (found, no_port) == tuple(one.metric(f"{name}_count", outcome=each) for each in ("found", "no_port"))
    assert found == one.metric(f"{name}_bucket", outcome="found", le="+Inf")
    assert unmeasured == one.metric("twctl_connect_port_search_unmeasured_total")


def test_a_daemon_that_is_killed_leaves_the_cgroup_as_it_was(both: Link, probe: str) -> None:
    """Its program goes with it: none of its link's is pinned. The next daemon measures again."""
    with daemon(both.client, probe=probe, config=EACH) as here:
        number = program_number(here)
        wait_until(lambda: number in at_the_root(), what="the program is attached")
        here.kill()
        wait_until(lambda: number not in at_the_root(), what="the program is gone")
        before = counts(here)
        connecting(both).close()
        assert before == counts(here)
        here.start()
        wait_until(lambda: number in at_the_root(), what="the program is attached")


def test_it_is_measured_for_a_second_now_and_then(both: Link, probe: str) -> None:
    """In between the program is not attached, and nothing is counted."""
    with daemon(both.client, probe=probe, config=SMALL + "connect.port_search = 5\n") as here:
        number = program_number(here)
        for there in (True, False, True):
            wait_until(lambda now=there: (number in at_the_root()) is now, what=f"attached: {there}", timeout=30)  # type: ignore[misc]
        wait_until(lambda: number not in at_the_root(), what="the end of the second")
        before = counts(here)
        connecting(both).close()
        assert before == counts(here)


def program_number(one: Daemon) -> int:
    """Of the program that its table has for it."""
    fd = libbpf.obj_get(one.pins / "current/programs" / SEARCHED)
    try:
        return libbpf.program_id(fd)
    finally:
        os.close(fd)


def at_the_root() -> set[int]:
    """Numbers of the programs at the root cgroup."""
    root = root_cgroup()
    assert root
    numbers, count = (ctypes.c_uint32 * 64)(), ctypes.c_uint32(64)
    folder = os.open(root, os.O_RDONLY)
    try:
        lib = libbpf.libbpf()
        assert 0 == lib.bpf_prog_query(folder, libbpf.CGROUP_SOCK_OPS, 0, None, numbers, ctypes.byref(count))
    finally:
        os.close(folder)
    return set(numbers[: count.value])


def test_it_can_be_switched_off(both: Link, probe: str) -> None:
    """Then nothing of it is there; with it a reload loads anew."""
    with daemon(both.client, probe=probe, config=SMALL + "connect.port_search = 0\n") as here:
        assert not [pin for pin in here.pins.rglob("*") if pin.name in {SEARCHED, CONNECTS, SEARCHING}]
        assert "twctl_connect_port_search" not in here.get()
        connecting(both).close()
        here.reload(EACH)
        wait_until(lambda: program_number(here) in at_the_root(), what="the program is attached")
        connecting(both).close()
        assert (1, 0, 0) == counts(here)


def test_without_a_root_of_the_cgroups_one_line_says_so_and_the_rest_is_there(both: Link, probe: str) -> None:
    """In a container that sees a part of them, say: a part of the calls would be measured."""
    with daemon(both.client, probe=probe, config=SMALL, prefix=BLIND) as here:
        assert 1 == here.log.count("connect() is not measured: no mount of cgroup v2 shows its root")
        assert "twctl_connect_port_search" not in here.get()
        for _ in range(N):
            made = connecting(both)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.close()
        wait_until(lambda: here.metric("twctl_closed_without_time_wait_total", how="abort") == N, what="the ends")
