"""twctl is killed at a call that changes the host: no host is ever without TIME_WAIT sockets and without a guard.

And what comes next, another start or `twctl release`, finds all that was done and undoes it.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.test_guard import buckets
from tests.load import counters, wait_until
from tests.load.closes import run
from tests.load.crashes import Crashes
from tests.load.daemon import START_SECONDS, Daemon, twctl
from tests.load.guards import BOTH, guarded, standing
from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 7
DEVICES = ("lo", "veth0", "veth1")
SYSCTLS = ("net.ipv4.tcp_max_tw_buckets", "net.ipv4.tcp_fin_timeout")
TIMES = "loopback = 0.3\nlocal = 0.3\nremote = 0.3\n"
LIVES = f"[time_wait]\n{TIMES}[fin_wait2]\n{TIMES}"


@dataclass(frozen=True)
class Place:
    """A namespace with three devices, on one of which somebody else has an empty clsact; twctl, and how it dies."""

    ns: Namespace
    one: Daemon
    crashes: Crashes
    before: str

    @property
    def one_runs(self) -> bool:
        """Whether the daemon does."""
        return self.one.process is not None and self.one.process.poll() is None

    def state(self) -> str:
        """All that twctl changes on a host."""
        qdiscs = subprocess.run(self.ns.command("tc", "qdisc", "show"), capture_output=True, check=True).stdout
        shown = [qdiscs, *(standing(self.ns, name) for name in DEVICES)]
        files = [path for path in (self.one.pins, *Path("/run/twctl").glob(f"*{self.one.pins.name}*")) if path.exists()]
        return repr((shown, files, [self.ns.sysctl(name) for name in SYSCTLS]))

    def assert_safe(self) -> None:
        """Either the kernel keeps TIME_WAIT sockets, or the probe makes vestiges and the guard answers for them."""
        kept = -1
        while kept != buckets(self.ns):  # what still lives may change it meanwhile
            kept, resets = buckets(self.ns), counters.tcp(self.ns)["OutRsts"]
            overflow, entered = self._overflow(), self._entered()
            run(self.ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
            assert resets == counters.tcp(self.ns)["OutRsts"]
        if kept:
            assert overflow == self._overflow()
        else:
            assert [BOTH] * len(DEVICES) == [guarded(self.ns, name) for name in DEVICES]
            assert overflow + N == self._overflow()
            assert entered < self._entered()

    def _overflow(self) -> int:
        """TIME_WAIT sockets that the kernel did not make."""
        return counters.tcpext(self.ns)["TCPTimeWaitOverflow"]

    def _entered(self) -> int:
        """Entries that the probe saw; 0 where nothing is pinned, or not all any more."""
        with contextlib.suppress(TwctlError):
            return sum(Table(self.one.pins / "current").counters().values["entered"])
        return 0

    def assert_guarding(self) -> None:
        """All of mode vestigial is in force."""
        wait_until(lambda: buckets(self.ns) == 0, what="guarding", timeout=START_SECONDS)
        self.assert_safe()

    def died(self, done: Callable[[], bool]) -> bool:
        """Wait for the daemon's death; False if what it was asked for is done instead."""
        assert self.one.process
        wait_until(lambda: self.one.process.poll() is not None or done(), timeout=START_SECONDS)  # type: ignore[union-attr]
        assert self.one.process.poll() in {None, 0, -signal.SIGKILL}, self.one.log
        return self.one.process.poll() == -signal.SIGKILL

    def restart(self) -> None:
        """The next start finds what the crash left."""
        self.crashes.begin()
        self.one.start()
        self.assert_guarding()

    def release(self) -> None:
        """`twctl release` finds it, and leaves the host as it was."""
        self.crashes.begin()
        released = twctl("release", "--pins", str(self.one.pins), prefix=self.one.prefix)
        assert (0, "") == (released.returncode, released.stderr)
        assert self.before == self.state()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A host that twctl comes to."""
    with ExitStack() as stack:
        ns, crashes = stack.enter_context(namespace({"net.ipv4.tcp_rfc1337": 1})), Crashes(tmp_path)
        ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        subprocess.run(ns.command("tc", "qdisc", "add", "dev", "veth0", "clsact"), check=True)
        one = Daemon((ns,), mode="vestigial", config=f"capacity = 1021\n{LIVES}", prefix=crashes.prefix)
        made = Place(ns, one, crashes, "")
        made = Place(ns, one, crashes, made.state())
        try:
            yield made
        finally:
            if made.one_runs:
                one.kill()
            crashes.begin()
            assert 0 == twctl("release", "--pins", str(one.pins), prefix=one.prefix).returncode
            shutil.rmtree(one.folder)


# Each phase begins to do what it is named after and returns whether twctl died of it; it was guarding before, but at a
# start and a release.


def start(place: Place) -> bool:
    """A host that has nothing of twctl."""
    try:
        place.one.start()
    except AssertionError:
        return place.died(lambda: False)
    return False


def another_capacity(place: Place) -> bool:
    """SIGHUP, until the guard of the new table is there."""
    return _reload(place, f'mode = "vestigial"\ncapacity = 1031\n{LIVES}', "guarding with")


def another_mode(place: Place) -> bool:
    """SIGHUP, until the guard is gone."""
    return _reload(place, f'mode = "observe"\ncapacity = 1021\n{LIVES}', "the earlier guard is gone")


def _reload(place: Place, config: str, done: str) -> bool:
    before = len(place.one.log)
    (place.one.folder / "twctl.toml").write_text(config)
    place.one.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    return place.died(lambda: done in place.one.log[before:])


def stop(place: Place) -> bool:
    """SIGTERM."""
    place.one.process.terminate()  # type: ignore[union-attr]
    return place.died(lambda: False)


def release(place: Place) -> bool:
    """Of a daemon that was killed: all of mode vestigial is in force."""
    place.one.kill()
    done = twctl("release", "--pins", str(place.one.pins), prefix=place.one.prefix)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode != 0


@pytest.mark.parametrize(
    ("phase", "step"), [(start, 37), (another_capacity, 53), (another_mode, 7), (stop, 2), (release, 31)]
)
def test_a_crash_at_any_change_leaves_a_host_that_works(
    place: Place, phase: Callable[[Place], bool], step: int, *, long: bool
) -> None:
    """At each change (in the short form at each `step`-th) until the phase ends alive; a start or release follows."""
    for turn, number in enumerate(itertools.count(1, 1 if long else step)):
        if phase is not start and not place.one_runs:
            place.restart()
        place.crashes.begin(number)
        died = phase(place)
        print(f"{phase.__name__} {number}: {place.crashes.changes()[-1:]}")  # noqa: T201 - what a failure is told by
        place.assert_safe()
        if not died:
            assert turn
            return
        if turn % 2:
            place.release()
        else:
            place.restart()
            if phase is start:
                place.one.kill()
                place.release()
