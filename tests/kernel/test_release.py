"""`twctl release`, and another start, elsewhere than in the namespace that a daemon was killed in."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.load.daemon import Daemon, daemon, twctl
from tests.load.guards import BOTH, guarded
from tests.load.netns import Namespace, namespace
from twctl.linux import sysctl
from twctl.linux.sysctl import VITAL
from twctl.modes.sysctls import FIN_TIMEOUT

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

READ_ONLY = ("unshare", "--mount", "sh", "-c", 'mount --bind -o ro /proc/sys /proc/sys && exec "$@"', "sh")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Where a daemon is started, which takes it for its own."""
    with namespace() as made:
        yield made


@pytest.fixture
def killed(ns: Namespace) -> Iterator[Daemon]:
    """It guarded its own namespace, and was killed."""
    with daemon(mode="vestigial", prefix=tuple(ns.command())) as one:
        one.kill()
        assert in_force(ns)
        yield one


def in_force(ns: Namespace) -> bool:
    """Whether the guard does TIME_WAIT's duty; it must be there, or the kernel has to."""
    found = ns.sysctl(VITAL) == "0"
    assert BOTH == guarded(ns, "lo") or not found
    return found


def state(ns: Namespace) -> tuple[str, str, list[str]]:
    """What a release gives back."""
    return ns.sysctl(VITAL), ns.sysctl(FIN_TIMEOUT), guarded(ns, "lo")


def release(one: Daemon, *prefix: str) -> tuple[int, str, str]:
    """Exit status, and what it says."""
    done = twctl("release", "--pins", str(one.pins), prefix=prefix)
    return done.returncode, done.stdout, done.stderr


def test_release_finds_the_namespace_that_the_daemon_was_started_in(ns: Namespace) -> None:
    """Here that is another one."""
    before = state(ns)
    with daemon(mode="vestigial", prefix=tuple(ns.command())) as one:
        one.kill()
        assert (0, f"removed {one.pins}\n", "") == release(one)
        assert (before, False) == (state(ns), one.pins.exists())


@pytest.mark.parametrize("mode", ["observe", "vestigial"])
def test_a_start_elsewhere_puts_it_back(ns: Namespace, mode: str) -> None:
    """Before it takes the guard away; the next start there raises tcp_fin_timeout from what it was."""
    before = state(ns)
    with namespace() as other, daemon(mode="vestigial", prefix=tuple(ns.command())) as one:
        one.kill()
        one.prefix, one.mode = tuple(other.command()), mode
        one.start()
        assert before[:2] == state(ns)[:2]
        one.stop()
        one.prefix, one.mode = tuple(ns.command()), "vestigial"
        one.start()
        assert str(int(before[1]) + 60) == ns.sysctl(FIN_TIMEOUT)
        one.stop()
        assert before[:2] == state(ns)[:2]


def test_a_refused_start_elsewhere_puts_it_back(ns: Namespace, tmp_path: Path) -> None:
    """The guard stays, and `release` takes it away."""
    before = state(ns)
    (tmp_path / "bad.toml").write_text("mode = 7\n")
    with namespace() as other, daemon(mode="vestigial", prefix=tuple(ns.command())) as one:
        one.kill()
        words = ("run", "--pins", str(one.pins), "--config", str(tmp_path / "bad.toml"))
        assert 1 == twctl(*words, prefix=tuple(other.command())).returncode
        assert (*before[:2], BOTH) == state(ns)
        assert (0, before) == (release(one)[0], state(ns))


def test_where_sysctls_cannot_be_written_the_guard_stays(ns: Namespace, killed: Daemon) -> None:
    """One line, exit status 1, and the next try finds all; so it is with a start in another mode."""
    inside = (*ns.command(), *READ_ONLY)
    status, out, told = release(killed, *inside)
    assert (1, "", 1) == (status, out, len(told.splitlines()))
    assert told.startswith(f"twctl: {VITAL} of network namespace (own, cookie "), told
    assert "is not put back: [Errno 30] Read-only file system" in told
    assert in_force(ns)
    done = twctl("run", "--pins", str(killed.pins), "--listen", "127.0.0.1:0", prefix=inside)
    assert (1, True) == (done.returncode, f"{VITAL} of network namespace" in done.stderr.splitlines()[-1])
    assert (True, True) == (in_force(ns), killed.pins.exists())
    assert (0, "") == release(killed)[::2]
    assert not in_force(ns)


@pytest.mark.parametrize("mode", ["observe", "vestigial"])
def test_without_the_journal_the_guard_stays(ns: Namespace, killed: Daemon, mode: str) -> None:
    """Nobody knows what the sysctl was: a start and `release` say so in a line, and go once the journal is there."""
    (journal,) = (each for each in sysctl.FOLDER.iterdir() if killed.pins.name in each.name)
    kept, killed.mode = shutil.move(journal, killed.folder), mode
    said = f"twctl: {VITAL} is 0 in network namespace"
    try:
        before = len(killed.log)
        with pytest.raises(AssertionError, match=said):
            killed.start()
        assert 1 == len(killed.log[before:].splitlines())
        status, out, told = release(killed, *ns.command())
        assert (1, "", 1) == (status, out, len(told.splitlines()))
        assert told.startswith(said)
        assert (True, True) == (in_force(ns), killed.pins.exists())
    finally:
        shutil.move(kept, journal)
    assert (0, "") == release(killed)[::2]
    assert not in_force(ns)


def test_what_the_journal_knows_is_put_back_where_another_namespace_is_lost() -> None:
    """The guard stays in both, for it would go from both."""
    with namespace() as one, namespace() as other, daemon(one, other, mode="vestigial") as killed:
        killed.kill()
        (journal,) = (each for each in sysctl.FOLDER.iterdir() if killed.pins.name in each.name)
        kept = journal.read_text()
        journal.write_text(json.dumps([each for each in json.loads(kept) if each["namespace"] == one.name]))
        status, _, told = release(killed)
        assert (1, True) == (status, told.startswith(f"twctl: {VITAL} is 0 in network namespace"))
        assert [(False, BOTH), (True, BOTH)] == [
            (each.sysctl(VITAL) == "0", guarded(each, "lo")) for each in (one, other)
        ]
        journal.write_text(kept)
        assert (0, "") == release(killed)[::2]
        assert not in_force(other)


def test_who_had_no_time_wait_before_is_not_asked_for_a_journal(ns: Namespace) -> None:
    """After a stop there is none, and the sysctl is 0 as it was: the guard that has stayed does not do its duty."""
    ns.sysctl(VITAL, 0)
    with daemon(ns, mode="vestigial") as one:
        assert one.stop() == 0
        assert ("0", BOTH) == (ns.sysctl(VITAL), guarded(ns, "lo"))
        one.mode = "observe"
        one.start()
        assert one.stop() == 0


def test_a_namespace_that_cannot_be_found_keeps_its_guard() -> None:
    """It has neither name nor process, but something keeps it. The line says which it is; inside `release` works."""
    with ExitStack() as stack:
        ns = Namespace(f"twl-{os.getpid()}-lost")
        subprocess.run(["ip", "netns", "add", ns.name], check=True)
        ns.ip("link", "set", "lo", "up")
        keeper = stack.enter_context(ns.path.open())
        inode = os.fstat(keeper.fileno()).st_ino
        inside = ("nsenter", f"--net=/proc/{os.getpid()}/fd/{keeper.fileno()}")
        one = stack.enter_context(daemon(mode="vestigial", prefix=inside))
        one.kill()
        subprocess.run(["ip", "netns", "del", ns.name], check=True)
        status, out, told = release(one)
        assert (1, "", 1) == (status, out, len(told.splitlines()))
        assert told.endswith(f"(run 'twctl release' inside that network namespace (inode {inode}))\n"), told
        kept = Namespace(f"/proc/{os.getpid()}/fd/{keeper.fileno()}")
        assert in_force(kept)
        assert (0, "") == release(one, *inside)[::2]
        assert not in_force(kept)


def test_a_namespace_that_is_gone_keeps_nothing_from_being_released() -> None:
    """One line says so, once, and no journal is left."""
    with namespace() as ns:
        one = Daemon((), mode="vestigial", prefix=tuple(ns.command()))
        one.start()
        one.kill()
    try:
        status, out, told = release(one)
        assert (0, f"removed {one.pins}\n", 1) == (status, out, len(told.splitlines())), told
        assert "is gone, and with it what was set there" in told
        assert not [each for each in sysctl.FOLDER.iterdir() if one.pins.name in each.name]
    finally:
        shutil.rmtree(one.folder)
        assert (0, f"nothing to remove at {one.pins}\n", "") == release(one)


def test_a_bad_configuration_keeps_nothing_from_being_released(ns: Namespace) -> None:
    """Neither after a crash nor at the end of `run --release`, nor where it alone names the pins."""
    before = state(ns)
    with daemon(ns, mode="vestigial") as one:
        file = one.folder / "twctl.toml"
        one.kill()
        file.write_text(f'pins = "{one.pins}"\nmode = 7\n')
        done = twctl("release", "--config", str(file))
        assert (0, f"removed {one.pins}\n", before) == (done.returncode, done.stdout, state(ns))
        assert done.stderr.startswith(f"twctl: {file}: mode = 7 is not valid")
        one.words = ("--release",)
        one.start()
        file.write_text("[\n")
        assert (0, before, False) == (one.stop(), state(ns), one.pins.exists())
