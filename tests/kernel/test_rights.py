"""The daemon with the rights that its unit gives it and no others: every mode works; and what root has to give up."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.load import counters, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, twctl
from tests.load.guards import BOTH, guarded
from tests.load.netns import Namespace, namespace
from tests.load.peer import TunPeer, tun_peer
from tests.load.scripts import scripted
from tests.load.segments import ACK, FIN
from twctl.daemon.rights import ALWAYS
from twctl.linux.capabilities import RARE, Capability
from twctl.table.compiled import running_release

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
BUCKETS = "net.ipv4.tcp_max_tw_buckets"
SHORT = "[time_wait]\nloopback = 1\n"
LONG = "[time_wait]\nloopback = 60\nlocal = 60\n"


def bounding_set(file: str) -> list[str]:
    """The capabilities that a file of deploy/systemd gives, as setpriv writes them."""
    found = re.findall(r"^CapabilityBoundingSet=(.*)$", (ROOT / "deploy/systemd" / file).read_text(), re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for line in found for name in line.split()]


UNIT = bounding_set("twctl.service")
LIMITED = ("setpriv", "--no-new-privs", "--bounding-set=-all," + ",".join(f"+{name}" for name in UNIT))


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Where sessions are closed."""
    with namespace({"net.ipv4.tcp_rfc1337": 1}) as made:
        yield made


def clean(one: Daemon) -> None:
    """With its own rights, whatever has become of it: nothing is left."""
    if one.process and one.process.poll() is None:
        one.kill()
    released = twctl("release", "--pins", str(one.pins), prefix=one.prefix)
    assert (0, False) == (released.returncode, one.pins.exists()), released.stderr
    shutil.rmtree(one.folder)


def rights(process: int | str, which: str) -> set[int]:
    """What any thread of a process has of them: CapEff, CapPrm."""
    found = 0
    for status in Path(f"/proc/{process}/task").glob("*/status"):
        [words] = [line.split() for line in status.read_text().splitlines() if line.startswith(which)]
        found |= int(words[1], 16)
    return {number for number in range(64) if found >> number & 1}


def close(ns: Namespace) -> None:
    """23 sessions over lo that the client closes first."""
    run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")


def check_observe(ns: Namespace, one: Daemon) -> None:
    """Kernel and table have the same sessions."""
    close(ns)
    assert (N, N) == (counters.time_wait_count(ns), len(one.table()))


def check_truncate(ns: Namespace, one: Daemon) -> None:
    """All sessions are over after a second, those of before among them."""
    assert "truncating" in one.log
    close(ns)
    wait_until(lambda: counters.time_wait_count(ns) == 0, what="they are destroyed", timeout=10)


def check_vestigial(ns: Namespace, one: Daemon, peer: TunPeer) -> None:
    """The kernel has none, a FIN that comes again is answered, and a device that comes later gets the guard."""
    assert (ns.sysctl(BUCKETS), guarded(ns, "lo")) == ("0", BOTH)
    before, kept = len(one.table()), counters.time_wait_count(ns)
    close(ns)
    (session,) = scripted(peer, "fin_wait2", 1)
    assert before + N + 1 == len(one.table())
    assert counters.time_wait_count(ns) <= kept  # those of before, where no truncate has come between
    assert session.seen
    connection = peer.connection(session.server.tuple)
    connection.send(FIN | ACK, seq=session.seen.rcv_nxt - 1, ack=session.seen.snd_nxt)
    assert session.seen.snd_nxt == connection.expect(ACK).seq
    ns.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
    wait_until(lambda: guarded(ns, "veth7") == BOTH, what="the new device has the guard")


@pytest.mark.vm
def test_the_unit_s_rights_are_enough_for_every_mode(probe: str, ns: Namespace) -> None:
    """One after the other, so that reloads load with them, too; then a stop and a release leave nothing.

    Before Linux 6.0 mode truncate is refused.
    """
    before = ns.sysctl(BUCKETS)
    one = Daemon((), probe=probe, config=SHORT, prefix=(*ns.command(), *LIMITED))
    try:
        with tun_peer(ns) as peer:
            one.start()
            check_observe(ns, one)
            if running_release() >= (6, 0):
                one.reload(f'mode = "truncate"\n{SHORT}')
                check_truncate(ns, one)
            one.reload(f'mode = "vestigial"\n{LONG}')
            check_vestigial(ns, one, peer)
            assert one.process
            unit = {Capability[name.upper()] for name in UNIT} & rights("self", "CapBnd")
            assert unit == rights(one.process.pid, "CapPrm")
            rare = set(RARE) & rights(one.process.pid, "CapEff")
            assert ({Capability.BPF} if running_release() < (5, 19) else set()) == rare
            assert (0, before) == (one.stop(), ns.sysctl(BUCKETS))
    finally:
        clean(one)


def test_root_keeps_no_right_that_it_has_no_use_for(ns: Namespace) -> None:
    """Started with all; a reload that names a namespace would need one that was given up, and changes nothing."""
    one = Daemon((), prefix=tuple(ns.command()))
    try:
        one.start()
        assert one.process
        assert set(ALWAYS) & rights("self", "CapPrm") == rights(one.process.pid, "CapPrm")
        (one.folder / "twctl.toml").write_text(f'netns = ["{ns.name}"]\n')
        one.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the configuration stays as it was: other network namespaces need CAP_SYS_ADMIN" in one.log)
        assert one.stop() == 0
    finally:
        clean(one)
