"""Mode vestigial on the real kernel, in brief: the kernel keeps no socket, and the guard answers in its place."""

import os

import pytest

from tests.load import counters
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace
from tests.load.peer import tun_peer
from tests.load.scripts import assert_fins_acknowledged, scripted

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23


def acknowledged(one: Daemon) -> float:
    """Segments that the guard answered; a slow machine sends FINs over lo twice, too."""
    return one.metric("twctl_guard_segments_total", action="acknowledged")


@pytest.mark.vm
def test_closes_leave_vestiges_and_no_sockets_and_a_late_fin_is_acknowledged(probe: str) -> None:
    """23 closes over lo, 23 over a device: 46 vestiges, no kernel socket; a FIN that comes again gets its ACK."""
    life = "[time_wait]\nloopback = 60\nlocal = 60\n"
    with (
        namespace({"net.ipv4.tcp_rfc1337": 1}) as ns,
        tun_peer(ns) as peer,
        daemon(ns, probe=probe, mode="vestigial", config=life) as one,
    ):
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") == "0"
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        sessions = scripted(peer, "fin_wait2", N)
        assert (2 * N, 0) == (len(one.table()), counters.time_wait_count(ns))
        resets, before = counters.tcp(ns)["OutRsts"], acknowledged(one)
        assert_fins_acknowledged(peer, sessions)
        assert resets == counters.tcp(ns)["OutRsts"]
        assert N == acknowledged(one) - before
        assert one.stop() == 0
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") != "0"
