"""What comes between wire and sockets while the daemon runs, and goes again: in between the kernel does its duty."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.load import counters, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon
from tests.load.guards import BOTH, guarded
from tests.load.host import host
from tests.load.netns import Namespace, namespace
from tests.load.obstacles import SAID, add_ipsec, remove_ipsec
from tests.load.peer import tun_peer
from tests.load.scripts import assert_fins_acknowledged, scripted
from twctl.linux.netlink import RouteNetlink
from twctl.table.shared import bpf_folder

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
OF_LO = ("forwarding", "accept_local", "route_localnet")
SYSCTLS = (
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_fin_timeout",
    *(f"net.ipv4.conf.lo.{name}" for name in OF_LO),
)
TIMES = "[time_wait]\nloopback = 60\n"
ALL = "all_netns = true\nreconcile_interval = 0\ncapacity = 1021\n[time_wait]\nlocal = 60\n[fin_wait2]\nlocal = 60\n"
LOOK = 30  # s: a look each 10 s


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace() as made:
        yield made


def sysctls(ns: Namespace) -> list[str]:
    """Those that mode vestigial sets."""
    return [ns.sysctl(name) for name in SYSCTLS]


def close(ns: Namespace, port: int) -> None:
    """23 connections over lo, from their own ports."""
    run(ns, "--count", "23", "--close", "client", "--inline", "--threads", "1", "--port", str(port))


def test_ipsec_that_comes_later_suspends_the_guard_until_it_goes(ns: Namespace) -> None:
    """The kernel keeps TIME_WAIT sockets meanwhile, and the guard its vestiges; it is said once, and exported."""
    before = sysctls(ns)
    with daemon(ns, mode="vestigial", config=TIMES) as one:
        ours = sysctls(ns)
        assert ours[0] == "0"
        close(ns, 20000)
        add_ipsec(ns)
        what = "the kernel's again, but for the guard's routes"
        wait_until(lambda: sysctls(ns) == [*before[:2], *["1"] * len(OF_LO)], what=what, timeout=LOOK)
        assert one.metric("twctl_guard_obstacles", kind="ipsec") == 1
        close(ns, 21000)
        assert (2 * N, N, BOTH) == (len(one.table()), counters.time_wait_count(ns), guarded(ns, "lo"))
        remove_ipsec(ns)
        wait_until(lambda: sysctls(ns) == ours, what="the guard's again", timeout=LOOK)
        assert one.metric("twctl_guard_obstacles") == 0
        close(ns, 22000)
        assert (3 * N, N) == (len(one.table()), counters.time_wait_count(ns))
        assert one.log.count(SAID) == 1
        assert one.stop() == 0
        assert before == sysctls(ns)


def reload(one: Daemon) -> None:
    """SIGHUP, and the same configuration."""
    one.reload(f'mode = "vestigial"\n{one.config}')


def crash(one: Daemon) -> None:
    """And start again."""
    one.kill()
    one.start()


@pytest.mark.parametrize("again", [reload, crash])
def test_a_new_start_finds_the_guard_suspended_and_leaves_it_so(again: Callable[[Daemon], None]) -> None:
    """Where it works in all namespaces: its vestiges are answered for, and when the obstacle has gone, it goes on."""
    with host() as machine:
        ns = machine.add()
        ns.sysctl("net.ipv4.tcp_rfc1337", 1)  # a RST of the peer's ends no session
        before = sysctls(ns)
        suspended = [*before[:2], *["1"] * len(OF_LO)]
        with tun_peer(ns) as peer, daemon(mode="vestigial", config=ALL, prefix=machine.prefix) as one:
            ours, sessions = sysctls(ns), scripted(peer, "fin_wait2", N)
            add_ipsec(ns)
            wait_until(lambda: sysctls(ns) == suspended, what="the kernel's again", timeout=LOOK)
            again(one)
            assert (suspended, BOTH, N) == (sysctls(ns), guarded(ns, "lo"), len(one.table()))
            assert_fins_acknowledged(peer, sessions)
            with machine.own.entered():
                wait_until(lambda: one.metric("twctl_guard_obstacles", kind="ipsec") == 1, what="it is exported")
                assert one.metric("twctl_network_namespaces", state="enrolled") == 2
            remove_ipsec(ns)
            wait_until(lambda: sysctls(ns) == ours, what="the guard's again", timeout=LOOK)
            assert_fins_acknowledged(peer, sessions)
            assert one.stop() == 0
            assert before == sysctls(ns)


def test_whoever_turns_forwarding_off_leaves_the_guard_its_own(ns: Namespace) -> None:
    """Writing ip_forward writes lo's, too; the guard, which asks for routes by that, has it again soon."""
    with daemon(ns, mode="vestigial", config=TIMES) as one:
        for value in (1, 0):
            ns.sysctl("net.ipv4.ip_forward", value)
        assert "0" == ns.sysctl(SYSCTLS[2])
        wait_until(lambda: "1" == ns.sysctl(SYSCTLS[2]), what="lo forwards again", timeout=20)
        assert one.stop() == 0
        assert "0" == ns.sysctl(SYSCTLS[2])


def test_what_comes_before_the_guard_in_its_own_namespace_suspends_it(ns: Namespace) -> None:
    """XDP on lo, in the namespace that the daemon was started in; and it stops as it always does."""
    before = sysctls(ns)
    with ExitStack() as stack:
        one = stack.enter_context(daemon(mode="vestigial", prefix=tuple(ns.command())))
        attach_xdp(stack, ns)
        wait_until(
            lambda: sysctls(ns) == [*before[:2], *["1"] * len(OF_LO)],
            what="the kernel's again, but for the guard's routes",
        )
        wait_until(lambda: "XDP on lo" in one.log, what="it is said")
        assert one.stop() == 0
        assert (before, BOTH) == (sysctls(ns), guarded(ns, "lo"))


def attach_xdp(stack: ExitStack, ns: Namespace) -> None:
    """A program that lets everything pass, on lo."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    loaded = bcc.BPF(text=b"int pass_all(struct xdp_md *context) { return 2; }")
    stack.callback(loaded.cleanup)
    netlink = RouteNetlink(ns.name)
    stack.callback(netlink.close)
    requests = stack.enter_context(netlink.requests())
    requests.link("set", index=1, xdp_fd=loaded.load_func(b"pass_all", bcc.BPF.XDP).fd)


def test_who_forces_it_is_not_asked_again(ns: Namespace) -> None:
    """With force an obstacle changes nothing, and no series says anything of it."""
    with daemon(ns, mode="vestigial", config="force = true\n") as one:
        add_ipsec(ns)
        ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        wait_until(lambda: one.metric("twctl_guard_devices") == 3, what="it has followed")
        assert (ns.sysctl(SYSCTLS[0]), False) == ("0", series(one))


def series(one: Daemon) -> bool:
    """Whether it exports obstacles."""
    return any(name.startswith("twctl_guard_obstacles") for name in one.metrics())
