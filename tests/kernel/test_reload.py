"""Another table in mode vestigial: by SIGHUP, or by an upgrade after a crash. Nobody's session is lost on the way."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel.test_guard import buckets
from tests.load import counters, wait_until
from tests.load.closes import run, serving
from tests.load.daemon import Daemon, daemon
from tests.load.guards import BOTH, guarded, programs
from tests.load.netns import Namespace, link, namespace
from tests.load.peer import tun_peer
from tests.load.scripts import assert_fins_acknowledged, scripted
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
BEFORE, AFTER = "capacity = 1021\n", "capacity = 1031\n"
WAITS = "an earlier guard for"


def lives(seconds: float) -> str:
    """Of every class, in TIME_WAIT and FIN_WAIT2."""
    times = "".join(f"{class_} = {seconds}\n" for class_ in ("loopback", "local", "remote"))
    return f"[time_wait]\n{times}[fin_wait2]\n{times}"


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Where sessions are known to the guard alone; a RST of the peer's would end none."""
    with namespace({"net.ipv4.tcp_rfc1337": 1}) as made:
        yield made


def another_capacity(one: Daemon) -> None:
    """SIGHUP."""
    one.reload(f'mode = "vestigial"\n{AFTER}{lives(60)}')


def crash_and_upgrade(one: Daemon) -> None:
    """The next start finds a table that is not its own."""
    one.kill()
    one.config = AFTER + lives(60)
    one.start()


@pytest.mark.parametrize("change", [another_capacity, crash_and_upgrade])
def test_what_only_the_guard_knew_is_answered_for_beside_a_new_table(ns: Namespace, change: object) -> None:
    """The sysctl is as it was, so that the kernel keeps what comes; the earlier guard goes on, also after a crash."""
    before = buckets(ns)
    with tun_peer(ns) as peer, daemon(ns, mode="vestigial", config=BEFORE + lives(60)) as one:
        sessions, programs_before = scripted(peer, "fin_wait2", N), programs(ns)
        change(one)  # type: ignore[operator]
        assert WAITS in one.log
        assert (before, programs_before) == (buckets(ns), programs(ns))
        assert_fins_acknowledged(peer, sessions)
        assert one.metric("twctl_mode", mode="observe") == 1
        one.kill()
        one.start()
        assert 2 == one.log.count(WAITS)
        assert_fins_acknowledged(peer, sessions)


@pytest.mark.alone("it counts RSTs")
def test_a_new_table_takes_the_place_of_the_last_without_a_rst() -> None:
    """SIGHUP with another capacity while a client closes 300 times a second, until the guard of the new table is there.

    Each FIN of the server finds somebody, and no connect() fails.
    """
    with (
        link() as both,
        daemon(both.client, mode="vestigial", config=BEFORE + lives(0.5)) as one,
        serving(both.server, "--close", "client", "--address", both.server_ipv4),
    ):
        before, earlier = counters.tcp(both.client)["OutRsts"], programs(both.client)
        load = ("--connect", "--close", "client", "--address", both.server_ipv4, "--rate", "300", "--seconds", "12")
        with ThreadPoolExecutor(1) as pool:
            closes = pool.submit(run, both.client, *load)
            wait_until(lambda: len(one.table()) > N, what="closes")
            one.reload(f'mode = "vestigial"\n{AFTER}{lives(0.5)}')
            wait_until(lambda: "guarding with" in one.log.rsplit(WAITS, 1)[1], what="guarding", timeout=60)
            report = closes.result()
        assert ((0, BOTH), set()) == (
            (buckets(both.client), guarded(both.client, "lo")),
            earlier & programs(both.client),
        )
        assert (0, before) == (report["failed"], counters.tcp(both.client)["OutRsts"])
        assert {1031} == {*Table(one.pins / "current").layout.capacity["ipv4"].values()}


def test_a_table_that_cannot_be_loaded_leaves_the_one_that_is_there(ns: Namespace) -> None:
    """One line, and the configuration goes back: sysctls, guard and sessions are as before, and so is what is served.

    A second one that fails does the same: what came back is in force.
    """
    alone = ("unshare", "--mount")
    with tun_peer(ns) as peer, daemon(ns, mode="vestigial", config=BEFORE + lives(60), prefix=alone) as one:
        sessions = scripted(peer, "fin_wait2", N)
        assert one.process
        hide = ("mount", "--bind", "/dev/null", "/sys/kernel/btf/vmlinux")
        subprocess.run(["nsenter", f"--mount=/proc/{one.process.pid}/ns/mnt", *hide], check=True)
        for _ in range(2):
            one.reload(f'mode = "vestigial"\n{AFTER}{lives(60)}')
            assert "the configuration goes back to what it was: " in one.log
            assert (0, BOTH, N) == (buckets(ns), guarded(ns, "lo"), len(one.table()))
        assert_fins_acknowledged(peer, sessions)
        assert 1 == one.metric("twctl_mode", mode="vestigial")
        assert {1021} == {*Table(one.pins / "current").layout.capacity["ipv4"].values()}
        assert (0, 2) == (one.stop(), one.log.count("goes back"))
        assert "Traceback" not in one.log
