"""What the kernel counts, from the files of a namespace and of a folder that a test wrote."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.load import counters, paths, wait_until
from tests.load.netns import namespace
from tests.load.paths import CLIENT
from twctl.linux.procfs import (
    EntryCount,
    MaxTimeWait,
    PortRange,
    SocketBytes,
    Sockstat,
    counts_entries,
    ephemeral_ports,
    socket_bytes,
)


@pytest.mark.parametrize(
    ("release", "counts"), [("5.17.15", False), ("5.18.0-rc1", True), ("6.1.0-37-amd64", True), ("4.19", False)]
)
def test_entries_are_counted_from_5_18_on(release: str, counts: bool) -> None:  # noqa: FBT001 - a parameter
    """Before, TW counted sessions that expire."""
    assert counts == counts_entries(release)


def test_a_cache_that_is_not_there_counts_as_nothing(tmp_path: Path) -> None:
    """The mini-socket's size, and that of the two buckets that hold its port."""
    for name, size in (("tw_sock_TCP", 256), ("tcp_bind_bucket", 128)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slab_size").write_text(f"{size}\n")
    assert SocketBytes(256, 128) == socket_bytes(tmp_path)


def test_the_ephemeral_ports_are_the_sysctls(tmp_path: Path) -> None:
    """Both ends of the range belong to it."""
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_local_port_range").write_text("40000\t40022\n")
    assert range(40000, 40023) == ephemeral_ports(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"), reason="a namespace needs root")
def test_sockets_in_use_are_those_of_both_families_and_no_mini_sockets() -> None:
    """Listeners and connections count, each end for itself; what is closed is in TIME_WAIT."""
    with namespace() as ns, closing(Sockstat(ns.name)) as sockstat:
        assert (0, 0) == (sockstat.in_use(), sockstat.time_wait())
        with ns.socket(socket.AF_INET6) as ipv6, ns.socket(socket.AF_INET) as ipv4:
            for listener, address in ((ipv6, "::1"), (ipv4, "127.0.0.1")):
                listener.bind((address, 0))
                listener.listen(1)
            with ns.socket(socket.AF_INET) as near:
                near.connect(ipv4.getsockname())
                far, _ = ipv4.accept()
                assert 4 == sockstat.in_use()
            far.close()
            wait_until(lambda: sockstat.in_use() == 2, what="the connection is gone")
            assert 1 == sockstat.time_wait() == counters.time_wait_count(ns)


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"), reason="a namespace needs root")
def test_sessions_for_which_there_is_no_room_are_an_overflow() -> None:
    """Of their own namespace, by its own limit."""
    with namespace({"net.ipv4.tcp_max_tw_buckets": 0}) as ns, namespace() as other:
        paths.fin_wait2(paths.over_lo(ns), 7, CLIENT)
        for each, overflow in ((ns, 7), (other, 0)):
            with closing(EntryCount(each.name)) as count, closing(MaxTimeWait(each.name)) as most:
                assert (overflow, overflow > 0) == (count.overflow(), most.count() == 0)


def test_threads_read_side_by_side() -> None:
    """None finds what another has read already: then a range would be empty, and the daemon would end."""
    ports = PortRange()
    expected = ports.range()

    def read() -> bool:
        return all(ports.range() == expected for _ in range(2003))

    with closing(ports), ThreadPoolExecutor(3) as threads:
        assert [True] * 3 == list(threads.map(lambda _: read(), range(3)))


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"), reason="a namespace needs root")
def test_without_timestamps_nothing_is_reused() -> None:
    """Whatever tcp_tw_reuse says."""
    with namespace({"net.ipv4.tcp_tw_reuse": 1}) as ns, closing(PortRange(ns.name)) as ports:
        assert 1 == ports.reuse()[0]
        ns.sysctl("net.ipv4.tcp_timestamps", 0)
        assert 0 == ports.reuse()[0]
