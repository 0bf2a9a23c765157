"""Mode vestigial on the real kernel: order and safety of the guard, and what programs see of it."""

import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.test_truncate import reload
from tests.load import clsact, counters, paths, wait_until
from tests.load.closes import run, serving
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.guards import BOTH, guarded, programs
from tests.load.netns import Link, Namespace, link, namespace
from tests.load.obstacles import SAID, add_ipsec
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED, SERVER
from tests.load.segments import RST, capture
from twctl.linux import tcx
from twctl.linux.devices import Device
from twctl.linux.netns import cookie
from twctl.modes.filters import class_id_of
from twctl.table.enrolments import withdraw
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
LOOK = 40  # s: a look each 10 s
FAMILIES = (IPV4, IPV6, MAPPED)
BUCKETS = "net/ipv4/tcp_max_tw_buckets"
TUNSETIFF, TUNSETLINK, IFF_TUN_NO_PI = 0x400454CA, 0x400454CD, 0x1001  # linux/if_tun.h
PORTS = ("--source-ports", "30001-30023")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace() as made:
        yield made


def buckets(ns: Namespace) -> int:
    """tcp_max_tw_buckets."""
    with ns.entered():
        return int(Path("/proc/sys", BUCKETS).read_text())


def qdiscs(ns: Namespace, device: str) -> str:
    """What `tc qdisc` shows."""
    return subprocess.run(
        ns.command("tc", "qdisc", "show", "dev", device), capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("closer", [CLIENT, SERVER])
def test_sessions_are_vestiges_and_nothing_else(closer: str) -> None:
    """23 closes of each family leave as many vestiges and no socket; they go when their class's time is up."""
    with link() as both:
        ends = {CLIENT: both.client, SERVER: both.server}
        config = "[time_wait]\nlocal = 3\n"
        with daemon(ends[closer], mode="vestigial", config=config) as one, capture(both.client, both.device) as wire:
            sessions = [
                each for family in FAMILIES for each in paths.fin_wait2(paths.over_link(both, family), N, closer)
            ]
            assert (3 * N, 0) == (len(one.table()), counters.time_wait_count(ends[closer]))
            assert {session.end(closer).tuple for session in sessions} == {
                (str(each.local), each.local_port, str(each.remote), each.remote_port) for each in one.table()
            }
            wait_until(lambda: not one.table(), what="expired", timeout=10)
            wait_until(lambda: one.metric("twctl_time_wait_ended_total", reason="expired") == 3 * N, what="expired")
            assert not [each for each in wire.segments() if each.flags & RST]


def test_the_host_is_as_it_was_found(ns: Namespace) -> None:
    """Sysctl, filters and qdisc come and go; a stop puts the sysctl back and leaves the guard for what is under way."""
    before = buckets(ns), qdiscs(ns, "lo")
    with daemon(ns, mode="vestigial") as one:
        assert (0, BOTH) == (buckets(ns), guarded(ns, "lo"))
        assert one.metric("twctl_guard_devices") == 1
        assert one.metric("twctl_sysctl_as_set", sysctl="net.ipv4.tcp_max_tw_buckets") == 1
        assert one.stop() == 0
        assert (before[0], BOTH) == (buckets(ns), guarded(ns, "lo"))
    assert (*before, []) == (buckets(ns), qdiscs(ns, "lo"), guarded(ns, "lo"))


def test_after_a_crash_the_guard_goes_on_and_release_finds_all(ns: Namespace) -> None:
    """Kill -9: closes still make vestiges that are answered for; `twctl release`, twice, leaves nothing."""
    before = buckets(ns)
    with daemon(ns, mode="vestigial", config="[time_wait]\nloopback = 60\n") as one:
        one.kill()
        assert (0, BOTH) == (buckets(ns), guarded(ns, "lo"))
        run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1")
        assert (N, 0) == (len(one.table()), counters.time_wait_count(ns))
        for _ in range(2):
            released = twctl("release", "--pins", str(one.pins))
            assert (0, "") == (released.returncode, released.stderr)
        assert (before, []) == (buckets(ns), guarded(ns, "lo"))
        assert "clsact" not in qdiscs(ns, "lo")
        one.start()
        assert (0, BOTH) == (buckets(ns), guarded(ns, "lo"))


def test_a_restart_keeps_vestiges_and_guard(ns: Namespace) -> None:
    """The next start takes over what is pinned; what the sysctl was is not forgotten."""
    before = buckets(ns)
    with daemon(ns, mode="vestigial", config="[time_wait]\nloopback = 60\n") as one:
        run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1")
        one.kill()
        one.start()
        assert "took over the pinned table" in one.log
        assert (N, 0, BOTH) == (len(one.table()), buckets(ns), guarded(ns, "lo"))
        assert one.stop() == 0
        assert before == buckets(ns)


@pytest.fixture(scope="module")
def guarding() -> Iterator[tuple[Namespace, Daemon]]:
    """A daemon that tests leave running, with the guard on lo."""
    with namespace() as ns, daemon(ns, mode="vestigial") as one:
        yield ns, one


def test_another_guard_takes_the_place_of_the_last(guarding: tuple[Namespace, Daemon]) -> None:
    """Of another version: its programs are exchanged on each device, and are not counted as taken away."""
    ns, one = guarding
    before = programs(ns)
    one.kill()
    Table(one.pins / "current", writable=True).guard = 1
    one.start()
    after = programs(ns)
    assert (2, 2, set()) == (len(before), len(after), before & after)
    assert BOTH == guarded(ns, "lo")
    assert one.metric("twctl_guard_reattached_total") == 0


def test_a_new_device_gets_the_guard(guarding: tuple[Namespace, Daemon]) -> None:
    """As soon as it is there, also one without Ethernet headers; ports of a bridge leave it to the bridge."""
    ns, one = guarding
    reattached, delayed = one.metric("twctl_guard_reattached_total"), one.metric("twctl_guard_delay_seconds_count")
    ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    ns.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    for device in ("veth0", "veth1", "tun0"):
        wait_until(lambda name=device: guarded(ns, name) == BOTH, what=device)  # type: ignore[misc]
    assert one.metric("twctl_guard_devices") == 4
    assert one.metric("twctl_guard_delay_seconds_count") == delayed + 3
    assert one.metric("twctl_guard_late_devices_total") == 0
    ns.ip("link", "del", "veth0")
    wait_until(lambda: one.metric("twctl_guard_devices") == 2, what="veth0 and veth1 are gone")
    assert one.metric("twctl_guard_reattached_total") == reattached


def test_a_device_that_becomes_a_port_of_a_bridge_leaves_the_guard_to_that(guarding: tuple[Namespace, Daemon]) -> None:
    """Frames of others pass a port; when it is none any more, it has the guard again."""
    ns, _ = guarding
    ns.ip("link", "add", "veth2", "type", "veth", "peer", "name", "veth3")
    ns.ip("link", "add", "br0", "type", "bridge")
    wait_until(lambda: [BOTH, BOTH] == [guarded(ns, each) for each in ("veth2", "br0")], what="both have it")
    ns.ip("link", "set", "veth2", "master", "br0")
    wait_until(lambda: [[], BOTH] == [guarded(ns, each) for each in ("veth2", "br0")], what="the bridge has it")
    ns.ip("link", "set", "veth2", "nomaster")
    wait_until(lambda: guarded(ns, "veth2") == BOTH, what="the port that was has it")
    ns.ip("link", "del", "veth2")
    ns.ip("link", "del", "br0")


def test_the_class_id_tells_namespace_and_kind_of_device() -> None:
    """Index 0 and no Ethernet headers; the highest index; lo; a VRF, which is the lo of its ports, and one of them."""
    kinds = {
        (0, Device(7, "tun0", 65534, "tun", "", xdp=False)): 0b1_0000,
        (255, Device(7, "eth0", 1, "", "", xdp=False)): 256 << 4 | 0b0001,
        (0, Device(1, "lo", 772, "", "", xdp=False)): 0b1_0011,
        (0, Device(7, "blue", 1, "vrf", "", xdp=False)): 0b1_0011,
        (0, Device(7, "eth0", 1, "veth", "vrf", xdp=False)): 0b1_0101,
    }
    assert kinds == {key: class_id_of(*key) for key in kinds}


def test_a_device_that_carried_packets_before_its_guard_is_counted(guarding: tuple[Namespace, Daemon]) -> None:
    """Both ends of a link on which IPv6 said that it is there; not one that was only made."""
    ns, one = guarding
    assert one.process
    late = one.metric("twctl_guard_late_devices_total")
    one.process.send_signal(signal.SIGSTOP)
    ns.ip("tuntap", "add", "dev", "quiet", "mode", "tun")
    ns.ip("link", "add", "veth2", "type", "veth", "peer", "name", "veth3")
    for device in ("veth2", "veth3"):
        ns.ip("link", "set", device, "up")
    wait_until(lambda: sent(ns, "veth2") and sent(ns, "veth3"), what="packets")
    one.process.send_signal(signal.SIGCONT)
    wait_until(lambda: one.metric("twctl_guard_late_devices_total") == late + 2, what="counted")
    assert [BOTH] * 3 == [guarded(ns, device) for device in ("quiet", "veth2", "veth3")]
    for device in ("quiet", "veth2"):
        ns.ip("link", "del", device)


def sent(ns: Namespace, device: str) -> bool:
    """Whether it has sent a packet."""
    line = next(line for line in ns.read("dev").splitlines() if line.strip().startswith(f"{device}:"))
    return int(line.split()[10]) > 0


@pytest.mark.parametrize(("type_", "taken"), [(24, False), (280, True)])
def test_a_device_of_a_type_that_the_guard_cannot_read_is_refused(ns: Namespace, type_: int, *, taken: bool) -> None:
    """IEEE 1394 carries TCP with headers of its own; CAN carries none, and needs no guard."""
    before = buckets(ns)
    with ns.entered(), tun(type_):
        if taken:
            with daemon(ns, mode="vestigial") as one:
                assert ([], 1) == (guarded(ns, "tun7"), one.metric("twctl_guard_devices"))
        else:
            with pytest.raises(AssertionError, match=r"cannot read what passes tun7: it is of type 24"):
                ExitStack().enter_context(daemon(ns, mode="vestigial"))
    assert (before, []) == (buckets(ns), guarded(ns, "lo"))


@contextmanager
def tun(type_: int) -> Iterator[None]:
    """A device tun7 that says it is of a type of linux/if_arp.h."""
    with Path("/dev/net/tun").open("r+b", buffering=0) as file:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"tun7", IFF_TUN_NO_PI))
        fcntl.ioctl(file, TUNSETLINK, type_)
        yield


def test_the_second_twctl_in_a_namespace_is_refused(ns: Namespace) -> None:
    """Its filters would take the place of the first one's; to release it takes nothing away from that one."""
    with daemon(ns, mode="vestigial") as one:
        before = programs(ns)
        second = Daemon((ns,), mode="vestigial")
        with pytest.raises(AssertionError, match=f"lo has the guard of another twctl, which pins at {one.pins}"):
            second.start()
        assert not second.pins.exists()
        shutil.rmtree(second.folder)
        assert (before, 0) == (programs(ns), buckets(ns))
        assert 0 == one.metric("twctl_guard_reattached_total")
        one.kill()
        assert 0 == twctl("release", "--pins", "/sys/fs/bpf/twctl-test-none").returncode
        assert (before, 0) == (programs(ns), buckets(ns))


def test_a_qdisc_that_somebody_else_made_stays(ns: Namespace) -> None:
    """Empty, as it was; what is on it besides the guard stays, too."""
    subprocess.run(ns.command("tc", "qdisc", "add", "dev", "lo", "clsact"), check=True)
    before = qdiscs(ns, "lo")
    with daemon(ns, mode="vestigial", prefix=clsact.PREFIX):
        assert guarded(ns, "lo") == BOTH
    assert (before, []) == (qdiscs(ns, "lo"), guarded(ns, "lo"))


def test_release_finds_the_guard_without_its_table(ns: Namespace) -> None:
    """The pins were removed by hand: the filters tell whose they are, the journal what the sysctls were."""
    before = buckets(ns), qdiscs(ns, "lo")
    with daemon(ns, mode="vestigial", prefix=clsact.PREFIX) as one:
        one.kill()
        subprocess.run(["rm", "-r", str(one.pins)], check=True)
        assert (0, BOTH) == (buckets(ns), guarded(ns, "lo"))
        assert 0 == twctl("release", "--pins", str(one.pins)).returncode
        assert (*before, []) == (buckets(ns), qdiscs(ns, "lo"), guarded(ns, "lo"))


def test_release_finds_the_guard_of_a_namespace_that_was_not_enrolled(ns: Namespace) -> None:
    """As after a crash between the one and the other; the namespace has lost its name, and a process is in it."""
    with namespace() as other, daemon(ns, mode="vestigial") as one:
        inside = other.popen("sh", "-c", "echo; exec sleep infinity")
        try:
            assert inside.stdout
            inside.stdout.readline()
            one.kill()
            one.namespaces = (other,)
            one.start()
            one.kill()
            withdraw(Table(one.pins / "current", writable=True), 1, cookie(other.name))
            assert BOTH == guarded(other, "lo")
            assert 0 == twctl("release", "--pins", str(one.pins)).returncode
            assert ([], []) == (guarded(other, "lo"), guarded(ns, "lo"))
        finally:
            inside.kill()
            inside.communicate()


def test_what_holds_a_lock_is_not_released(ns: Namespace) -> None:
    """Nothing is put back before the lock is had: a daemon that is just starting has it."""
    with daemon(ns, mode="vestigial") as one:
        done = twctl("release", "--pins", str(one.pins))
        assert (1, f"twctl: another twctl uses {one.pins}") == (done.returncode, done.stderr.split(" (")[0])
        assert (0, BOTH) == (buckets(ns), guarded(ns, "lo"))


@pytest.fixture(scope="module")
def filtering() -> Iterator[tuple[Namespace, Daemon]]:
    """As guarding, where the kernel has no TCX."""
    with namespace() as ns, daemon(ns, mode="vestigial", prefix=clsact.PREFIX) as one:
        yield ns, one


@pytest.mark.parametrize("what", [["filter", "del", "dev", "lo", "ingress"], ["qdisc", "del", "dev", "lo", "clsact"]])
def test_a_filter_that_is_taken_away_comes_back(filtering: tuple[Namespace, Daemon], what: list[str]) -> None:
    """By `tc` in other hands: put back at once, and counted."""
    ns, one = filtering
    reattached = one.metric("twctl_guard_reattached_total")
    subprocess.run(ns.command("tc", *what), check=True)
    wait_until(lambda: sorted(guarded(ns, "lo")) == sorted(BOTH), what="the guard is back")
    wait_until(lambda: one.metric("twctl_guard_reattached_total") > reattached, what="counted")
    assert buckets(ns) == 0
    wait_until(lambda: one.metric("twctl_guard_missing_devices") == 1, what="the next look tells", timeout=LOOK)
    wait_until(lambda: one.metric("twctl_guard_missing_devices") == 0, what="it stays there", timeout=2 * LOOK)


@pytest.mark.skipif(not tcx.is_available(), reason="the kernel has no TCX (Linux 6.6)")
def test_a_link_that_is_taken_away_comes_back(guarding: tuple[Namespace, Daemon]) -> None:
    """By somebody who has no business in that folder: put back at the next look, and counted."""
    ns, one = guarding
    reattached = one.metric("twctl_guard_reattached_total")
    assert 0 == one.metric("twctl_guard_missing_devices")
    for pin in (one.pins / "guard" / "links").iterdir():
        pin.unlink()
    # the kernel takes a link off some time after its last pin has gone
    wait_until(lambda: one.metric("twctl_guard_reattached_total") > reattached, what="counted", timeout=LOOK)
    assert 1 <= one.metric("twctl_guard_missing_devices")  # lo, and who else is there
    wait_until(lambda: sorted(guarded(ns, "lo")) == sorted(BOTH), what="the guard is back")
    assert buckets(ns) == 0
    wait_until(lambda: 0 == one.metric("twctl_guard_missing_devices"), what="it stays there", timeout=LOOK)


def test_where_the_guard_cannot_be_put_back_the_sysctl_goes_back(ns: Namespace) -> None:
    """Another kind of qdisc has taken the place of clsact: the daemon ends, and the kernel does its duty again."""
    before = buckets(ns)
    with daemon(ns, mode="vestigial", prefix=clsact.PREFIX) as one:
        assert one.process
        one.process.send_signal(signal.SIGSTOP)  # or it would be faster
        for what in (["del", "dev", "lo", "clsact"], ["add", "dev", "lo", "ingress"]):
            subprocess.run(ns.command("tc", "qdisc", *what), check=True)
        one.process.send_signal(signal.SIGCONT)
        assert one.process.wait(30) == 1
        assert before == buckets(ns)
        assert "the guard cannot be attached to lo" in one.log.splitlines()[-1]
        assert "Traceback" not in one.log


def test_what_hides_packets_from_the_guard_is_refused(ns: Namespace) -> None:
    """IPsec: refused with the reason, and taken with --force."""
    add_ipsec(ns)
    before = buckets(ns)
    with ExitStack() as stack:
        with pytest.raises(AssertionError) as refused:
            stack.enter_context(daemon(ns, mode="vestigial"))
        assert SAID in str(refused.value)
        assert before == buckets(ns)
        assert [] == guarded(ns, "lo")
        with daemon(ns, mode="vestigial", config="force = true\n"):
            assert buckets(ns) == 0


def test_back_to_observe_the_guard_stays_as_long_as_its_vestiges(ns: Namespace) -> None:
    """SIGHUP: the kernel makes sockets again, the guard's sessions expire by their time, and then the guard goes."""
    times = "reconcile_interval = 0.2\n[time_wait]\nloopback = 2\nlocal = 2\nremote = 2\n"
    times += "[fin_wait2]\nloopback = 2\nlocal = 2\nremote = 2\n"
    before = buckets(ns)
    with daemon(ns, mode="vestigial", config=times) as one:
        run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1")
        reload(one, f"mode = 'observe'\n{times}")
        wait_until(lambda: "observing" in one.log, what="mode observe")
        one.port = int(re.findall(r"port (\d+)", one.log)[-1])
        assert before == buckets(ns)
        assert BOTH == guarded(ns, "lo")
        run(ns, "--count", "29", "--close", "client", "--inline", "--threads", "1", "--port", "21000")
        assert counters.time_wait_count(ns) == 29
        wait_until(lambda: not guarded(ns, "lo"), what="the guard goes", timeout=20)
        wait_until(lambda: len(one.table()) == 29, what="the kernel's sessions are left")
        assert one.metric("twctl_time_wait_ended_total", reason="unknown") == 0


def test_sockets_from_before_are_left_to_the_kernel(ns: Namespace) -> None:
    """They are in the table, and stay the kernel's: after the start they are still there."""
    paths.fin_wait2(paths.over_lo(ns), N, CLIENT)
    with daemon(ns, mode="vestigial") as one:
        assert (N, N) == (len(one.table()), counters.time_wait_count(ns))


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Link, Daemon]]:
    """A client whose sessions are vestiges, and its server, whose RSTs end none of them."""
    with (
        link({"net.ipv4.tcp_rfc1337": 1}) as both,
        daemon(both.client, mode="vestigial", config="[time_wait]\nlocal = 60\n") as one,
    ):
        yield both, one


def test_a_tuple_is_used_again_at_once(pair: tuple[Link, Daemon]) -> None:
    """23 tuples closed and opened five times over: no connect() fails, the client sends no RST, each ends as reused.

    The server may send one: where its acknowledgement of the FIN is overtaken by its own FIN, the answer finds it gone.
    """
    both, one = pair
    address = ("--close", "client", "--address", both.server_ipv4)
    with serving(both.server, *address), capture(both.client, both.device) as wire:
        for _ in range(5):
            report = run(
                both.client,
                "--connect",
                "--count",
                "23",
                "--source",
                both.client_ipv4,
                *PORTS,
                "--threads",
                "1",
                *address,
            )
            assert (23, 0) == (report["closed"], report["failed"])
        assert not [each for each in wire.segments() if each.flags & RST and each.source == both.client_ipv4]
    assert one.metric("twctl_guard_segments_total", action="reused") == 4 * N
    assert one.metric("twctl_time_wait_ended_total", reason="reused") == 4 * N


def test_bind_does_not_see_vestiges(pair: tuple[Link, Daemon]) -> None:
    """A port whose sessions are vestiges is free, with and without SO_REUSEADDR: the guard protects each tuple."""
    both, one = pair
    port = one.table()[0].local_port
    for reuse in (0, 1):
        with both.client.socket(socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            sock.bind((both.client_ipv4, port))


def failing(one: Daemon, *words: str) -> str:
    """The last line of a start that fails."""
    done = twctl("run", *one.options, "--netns", one.namespaces[0].name, "--mode", "vestigial", *words)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_start_that_fails_puts_back_what_a_crash_left(ns: Namespace) -> None:
    """Its port is in use, its configuration is bad, or NAT is in the way: the sysctls are as before the crash."""
    before = buckets(ns), ns.sysctl("net.ipv4.tcp_fin_timeout")

    def now() -> tuple[int, str]:
        return buckets(ns), ns.sysctl("net.ipv4.tcp_fin_timeout")

    with daemon(ns, mode="vestigial") as one, socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another twctl uses" in failing(one, "--listen", "127.0.0.1:0")
        assert 0 == buckets(ns)
        one.kill()
        assert 0 == buckets(ns)
        port = taken.getsockname()[1]
        assert "cannot serve metrics" in failing(one, "--listen", f"127.0.0.1:{port}")
        assert before == now()
        one.start()
        one.kill()
        assert 0 == buckets(ns)
        (one.folder / "twctl.toml").write_text("mood = [\n")
        assert "not TOML" in failing(one, "--listen", "127.0.0.1:0")
        assert before == now()
        one.start()
        one.kill()
        add_ipsec(ns)
        assert "the guard may not see here" in failing(one, "--listen", "127.0.0.1:0")
        assert before == now()
