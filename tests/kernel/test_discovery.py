"""Network namespaces that come and go while the daemon works in all of them, or in those that are named."""

import contextlib
import html
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import clsact, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.guards import BOTH, guarded
from tests.load.host import Host, host
from tests.load.netns import Namespace
from tests.load.obstacles import add_ipsec, remove_ipsec
from tests.load.peer import tun_peer
from tests.load.scripts import assert_fins_acknowledged, scripted
from twctl.linux import netns
from twctl.table.enrolments import enrol
from twctl.table.layout import NAMESPACES
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
ALL = "all_netns = true\nreconcile_interval = 0\ncapacity = 1021\n"
MODES = ("observe", "truncate", "vestigial")
BUCKETS = "net.ipv4.tcp_max_tw_buckets"
SOON = 1.0  # s, in which one that comes has joined
LOOK = 30.0  # s: a look each 10 s


@pytest.fixture
def machine() -> Iterator[Host]:
    """Where the daemon runs."""
    with host() as made:
        yield made


def close(ns: Namespace, port: int = 20000) -> None:
    """23 sessions over lo."""
    run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1", "--port", str(port))


def states(machine: Host, one: Daemon) -> tuple[float, ...]:
    """Enrolled, refused and beyond capacity."""
    with machine.own.entered():
        return tuple(
            one.metric("twctl_network_namespaces", state=state) for state in ("enrolled", "refused", "beyond_capacity")
        )


def enrolled(one: Daemon) -> set[str]:
    """Names of the namespaces that the probes watch."""
    return {name for _, name in Table(one.pins / "current").enrolments().values()}


def has_guard(ns: Namespace) -> bool:
    """Whether lo has the guard on both sides."""
    return guarded(ns, "lo") == BOTH


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_joins_and_what_goes_is_freed(machine: Host, mode: str) -> None:
    """In each mode: sessions of one that came later are recorded under its name; its peer's device goes with it."""
    early = machine.add()
    with daemon(mode=mode, config=ALL, prefix=machine.prefix) as one:
        assert enrolled(one) == {"", early.path.name}
        late = machine.add("late")
        machine.own.ip("link", "add", "to-late", "type", "veth", "peer", "name", "eth0", "netns", late.name)
        wait_until(lambda: "late" in enrolled(one), what="it joins", timeout=SOON)
        guarded = mode == "vestigial"
        if guarded:
            wait_until(lambda: late.sysctl(BUCKETS) == "0", what="the sysctl is set", timeout=SOON)
        assert [guarded] * 2 == [has_guard(ns) for ns in (early, late)]
        close(early)
        close(late)
        names = [each.netns for each in one.table()]
        assert [N, N] == [names.count(ns.path.name) for ns in (early, late)]
        machine.delete(late)
        wait_until(lambda: "to-late" not in machine.own.read("dev"), what="the namespace is freed")
        assert enrolled(one) == {"", early.path.name}
        assert states(machine, one) == (2, 0, 0)
        assert one.stop() == 0
        assert early.sysctl(BUCKETS) != "0"


def test_a_crash_changes_nothing_and_the_next_start_picks_up(machine: Host) -> None:
    """Guard and sysctl stay; of one that went meanwhile nothing is left, one that came meanwhile joins."""
    stays, goes = machine.add("stays"), machine.add("goes")
    with daemon(mode="vestigial", config=f"{ALL}[time_wait]\nloopback = 60\n", prefix=machine.prefix) as one:
        close(stays)
        one.kill()
        assert (True, "0") == (has_guard(stays), stays.sysctl(BUCKETS))
        machine.delete(goes)
        comes = machine.add("comes")
        one.start()
        assert enrolled(one) == {"", "stays", "comes"}
        assert (True, "0") == (has_guard(comes), comes.sysctl(BUCKETS))
        close(comes)
        names = [each.netns for each in one.table()]
        assert [N, N] == [names.count(name) for name in ("stays", "comes")]


def test_release_puts_every_namespace_back(machine: Host) -> None:
    """Also after a crash: the sysctls are what they were, and no filter is left."""
    pods = [machine.add() for _ in range(3)]
    before = [ns.sysctl(BUCKETS) for ns in (machine.own, *pods)]
    with daemon(mode="vestigial", config=ALL, prefix=machine.prefix) as one:
        one.kill()
        done = twctl("release", *one.options, prefix=machine.prefix)
        assert (0, "") == (done.returncode, done.stderr)
        assert before == [ns.sysctl(BUCKETS) for ns in (machine.own, *pods)]
        assert not any(map(has_guard, (machine.own, *pods)))


def test_where_the_guard_cannot_see_is_left_alone_and_said_once(machine: Host) -> None:
    """IPsec in one: it keeps its TIME_WAIT sockets, the others are guarded, and looking again says nothing new."""
    good, bad = machine.add("good"), machine.add("bad")
    add_ipsec(bad)
    with daemon(mode="vestigial", config=ALL, prefix=machine.prefix) as one:
        assert states(machine, one) == (2, 1, 0)
        machine.add("another")
        wait_until(lambda: "another" in enrolled(one), what="it has looked")
        assert one.log.count("network namespace bad is left alone") == 1
        assert [(True, True), (False, False)] == [(has_guard(ns), ns.sysctl(BUCKETS) == "0") for ns in (good, bad)]


def test_where_all_are_left_alone_the_page_does_not_say_that_the_guard_is_missing(machine: Host) -> None:
    """The kernel does its duty in the only one there is; that it is left alone is told."""
    add_ipsec(machine.own)
    with daemon(mode="vestigial", config=ALL, prefix=machine.prefix) as one:
        assert states(machine, one) == (0, 1, 0)
        with machine.own.entered():
            told = one.get("/")
    assert "TIME_WAIT's duty" not in html.unescape(told)
    assert "Network namespaces that are left alone: 1 (the log says why)." in told


def test_an_obstacle_from_before_is_exported_and_its_end_is_noticed(machine: Host) -> None:
    """IPsec in the namespace that the daemon calls its own: the others are guarded, and this one is once it goes."""
    other, before = machine.add(), machine.own.sysctl(BUCKETS)
    add_ipsec(machine.own)
    with daemon(mode="vestigial", config=ALL, prefix=machine.prefix) as one, machine.own.entered():
        assert (True, False) == (has_guard(other), has_guard(machine.own))
        assert ((1, 1, 0), before) == (states(machine, one), machine.own.sysctl(BUCKETS))
        assert 1 == one.metric("twctl_guard_obstacles", kind="ipsec")
        remove_ipsec(machine.own)
        wait_until(lambda: machine.own.sysctl(BUCKETS) == "0", what="it has joined", timeout=LOOK)
        assert (True, (2, 0, 0)) == (has_guard(machine.own), states(machine, one))
        assert 0 == one.metric("twctl_guard_obstacles")
        assert 1 == one.log.count("(own) is left alone")


def lives(seconds: float) -> str:
    """Of every class, in TIME_WAIT and FIN_WAIT2."""
    times = "".join(f"{class_} = {seconds}\n" for class_ in ("loopback", "local", "remote"))
    return f"[time_wait]\n{times}[fin_wait2]\n{times}"


def replace_clsact(ns: Namespace, one: Daemon, device: str) -> None:
    """By another kind of qdisc, on which the guard has no place; it is said."""
    assert one.process
    one.process.send_signal(signal.SIGSTOP)  # or it would be faster
    for what in (["del", "dev", device, "clsact"], ["add", "dev", device, "ingress"]):
        subprocess.run(ns.command("tc", "qdisc", *what), check=True)
    one.process.send_signal(signal.SIGCONT)
    wait_until(lambda: f"the guard cannot be attached to {device}" in one.log, what="it is said")


@pytest.fixture
def two_devices(machine: Host) -> Namespace:
    """Which has veth0 besides lo; a RST of the peer's ends no session there."""
    ns = machine.add("two")
    ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    ns.sysctl("net.ipv4.tcp_rfc1337", 1)
    return ns


def test_a_device_that_cannot_be_guarded_leaves_the_others_the_guard_until_their_sessions_are_over(
    machine: Host, two_devices: Namespace
) -> None:
    """The sysctls go back at once; the guard does with its last vestige, and nothing of it is left."""
    ns, before = two_devices, two_devices.sysctl(BUCKETS)
    with daemon(mode="vestigial", config=ALL + lives(7), prefix=(*machine.prefix, *clsact.PREFIX)) as one:
        close(ns)
        replace_clsact(ns, one, "veth0")
        wait_until(lambda: ns.sysctl(BUCKETS) == before, what="the kernel's again")
        assert ((1, 1, 0), True) == (states(machine, one), has_guard(ns))
        assert N == [each.netns for each in one.table()].count("two")
        wait_until(lambda: not has_guard(ns), what="the guard goes", timeout=LOOK)
        wait_until(lambda: enrolled(one) == {""}, what="its index is free")
        assert has_guard(machine.own)


def test_the_same_over_a_reload_and_until_the_device_can_be_guarded_again(
    machine: Host, two_devices: Namespace
) -> None:
    """What only the guard knows is answered for all the time."""
    ns, config = two_devices, f'mode = "vestigial"\n{ALL}{lives(60)}'
    with (
        tun_peer(ns) as peer,
        daemon(mode="vestigial", config=ALL + lives(60), prefix=(*machine.prefix, *clsact.PREFIX)) as one,
    ):
        sessions = scripted(peer, "fin_wait2", N)
        replace_clsact(ns, one, "veth0")
        wait_until(lambda: ns.sysctl(BUCKETS) != "0", what="the kernel's again")
        assert_fins_acknowledged(peer, sessions)
        one.reload(config)
        assert ((1, 1, 0), True) == (states(machine, one), has_guard(ns))
        assert_fins_acknowledged(peer, sessions)
        subprocess.run(ns.command("tc", "qdisc", "del", "dev", "veth0", "ingress"), check=True)
        one.reload(config)
        assert ((2, 0, 0), "0") == (states(machine, one), ns.sysctl(BUCKETS))
        assert_fins_acknowledged(peer, sessions)


def test_what_is_beyond_the_capacity_is_counted_and_said_once(machine: Host) -> None:
    """Indexes of namespaces that have just left are not free: their vestiges still have them."""
    pods = [machine.add() for _ in range(5)]
    with daemon(config=ALL, prefix=machine.prefix) as one:
        one.stop()
        table = Table(one.pins / "current", writable=True)
        for index in range(len(pods) + 1, NAMESPACES - 2):
            enrol(table, index, 1 << 40 | index, f"gone-{index}")
        one.start()
        assert states(machine, one) == (6, 0, 0)
        for _ in range(5):
            machine.add()
        wait_until(lambda: states(machine, one) == (8, 0, 3), what="two of five join")
        assert one.log.count("no room") == 1
        assert enrolled(one) >= {ns.path.name for ns in pods}


def test_a_named_one_may_go_and_come_again(machine: Host) -> None:
    """It is not kept meanwhile; another of the same name joins anew."""
    ns = machine.add("blue")
    with daemon(config='netns = ["blue"]\nreconcile_interval = 0\ncapacity = 1021\n', prefix=machine.prefix) as one:
        close(ns)
        machine.delete(ns)
        wait_until(lambda: enrolled(one) == set(), what="it is left")
        ns = machine.add("blue")
        wait_until(lambda: enrolled(one) == {"blue"}, what="it joins again")
        close(ns)
        # those of the one that went have its number until they expire
        names = [each.netns for each in one.table()]
        assert (N, 2 * N) == (names.count("blue"), len(names))


def test_one_that_is_named_and_not_there_is_an_error_at_the_start(machine: Host) -> None:
    """One line, and nothing is pinned."""
    one = Daemon((), config='netns = ["blue"]\n', prefix=machine.prefix)
    with pytest.raises(AssertionError, match="cannot enter network namespace blue"):
        one.start()
    assert not (one.pins / "current").exists()
    assert twctl("release", *one.options, prefix=machine.prefix).returncode == 0


def test_docker_s_are_known_by_their_path(machine: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace with two names is one, our own is none, and a file without one on it neither."""
    ns, other = machine.add(), tmp_path / "0123456789ab"
    with contextlib.ExitStack() as undo:
        for path, source in ((other, ns.path), (tmp_path / "again", ns.path), (tmp_path / "own", netns.OWN)):
            path.touch()
            subprocess.run(["mount", "--bind", source, path], check=True)
            undo.callback(os.system, f"umount {path}")
        (tmp_path / "empty").touch()
        monkeypatch.setattr(netns, "FOLDERS", (tmp_path,))
        assert {str(other): ns.path.stat().st_ino} == netns.present()
        assert netns.cookie(str(other)) == netns.cookie(str(ns.path))
