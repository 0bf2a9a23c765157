"""The daemon under a service manager: ready when all is in force, alive in between, and told of a reload."""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import wait_until
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.guards import BOTH, guarded
from tests.load.netns import Namespace, namespace
from twctl.daemon.main import REFUSED
from twctl.linux.capabilities import RARE, Capability
from twctl.table.compiled import running_release

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

TOLD_SECONDS = 120.0  # 2 s; under emulation a minute
WATCHDOG_SECONDS = 2.0
READ_ONLY = ("unshare", "--mount", "sh", "-c", 'mount --bind -o ro /proc/sys /proc/sys && exec "$@"', "sh")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager; what is started meanwhile finds it in its environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(round(WATCHDOG_SECONDS * 1e6)))
        yield sock


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Where the daemon works."""
    with namespace() as made:
        yield made


def await_line(manager: socket.socket, line: str) -> str:
    """The datagram that has this line, as soon as it comes."""
    end = time.monotonic() + TOLD_SECONDS
    while select.select([manager], [], [], max(0.0, end - time.monotonic()))[0]:
        told = manager.recv(4096).decode()
        if line in told.split("\n"):
            return told
    pytest.fail(f"{line} was not told")


def has_guard(ns: Namespace) -> bool:
    """Whether lo has the guard on both sides."""
    return guarded(ns, "lo") == BOTH


def hang_up(one: Daemon) -> None:
    """Ask it to read its configuration again."""
    assert one.process
    one.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("mode", ["observe", "truncate", "vestigial"])
def test_ready_means_in_force(manager: socket.socket, ns: Namespace, mode: str) -> None:
    """READY=1 has the probes attached and, in mode vestigial, guard and sysctl; STOPPING=1 begins the end."""
    before = ns.sysctl("net.ipv4.tcp_max_tw_buckets")
    with daemon(ns, mode=mode) as one:
        told = await_line(manager, "READY=1")
        assert "STATUS=" in told
        assert "with the tracepoint probe" in told
        assert any((one.pins / "current/links").iterdir())
        guarded = mode == "vestigial"
        assert (guarded, guarded) == (has_guard(ns), ns.sysctl("net.ipv4.tcp_max_tw_buckets") == "0")
        assert one.stop() == 0
        await_line(manager, "STOPPING=1")
        assert before == ns.sysctl("net.ipv4.tcp_max_tw_buckets")


def test_the_watchdog_hears_of_the_loop_in_time(manager: socket.socket, ns: Namespace) -> None:
    """Three times in a row, each within the time it gives."""
    with daemon(ns):
        await_line(manager, "READY=1")
        for _ in range(3):
            before = time.monotonic()
            await_line(manager, "WATCHDOG=1")
            assert time.monotonic() - before < WATCHDOG_SECONDS


def test_a_reload_ends_with_ready(manager: socket.socket, ns: Namespace) -> None:
    """SIGHUP: RELOADING=1 with the time, then READY=1, also where the new configuration cannot be used."""
    with daemon(ns) as one:
        await_line(manager, "READY=1")
        (one.folder / "twctl.toml").write_text('mode = "truncate"\n')
        hang_up(one)
        assert "MONOTONIC_USEC=" in await_line(manager, "RELOADING=1")
        assert "truncating" in await_line(manager, "READY=1")
        (one.folder / "twctl.toml").write_text('mode = "nothing"\n')
        hang_up(one)
        await_line(manager, "RELOADING=1")
        assert "refused" in await_line(manager, "READY=1")


def test_a_reload_that_fails_on_its_way_ends_with_ready_too(manager: socket.socket, ns: Namespace) -> None:
    """The state says that what is in force is not what was asked for, until something else is."""
    with daemon(ns, prefix=READ_ONLY) as one:
        await_line(manager, "READY=1")
        for config, refused in (("[sysctl]\ntcp_tw_reuse = 1\n", True), ("reconcile_interval = 31\n", False)):
            (one.folder / "twctl.toml").write_text(config)
            hang_up(one)
            await_line(manager, "RELOADING=1")
            told = await_line(manager, "READY=1")
            assert ("observing" in told, REFUSED in told) == (True, refused)


def in_force(one: Daemon) -> set[Capability]:
    """What any thread of the daemon has of them."""
    assert one.process
    effective = 0
    for status in Path(f"/proc/{one.process.pid}/task").glob("*/status"):
        [words] = [line.split() for line in status.read_text().splitlines() if line.startswith("CapEff")]
        effective |= int(words[1], 16)
    return {capability for capability in RARE if effective >> capability & 1}


def test_what_only_the_start_needs_is_out_of_force_afterwards(manager: socket.socket, ns: Namespace) -> None:
    """No thread has it, a reload that loads the guard has, and the guard follows new devices without it."""
    kept = {Capability.BPF} if running_release() < (5, 19) else set()
    with daemon(ns) as one:
        await_line(manager, "READY=1")
        assert kept == in_force(one)
        (one.folder / "twctl.toml").write_text('mode = "vestigial"\n')
        hang_up(one)
        assert "guarding" in await_line(manager, "READY=1")
        assert kept == in_force(one)
        one.port = int(re.findall(r"metrics on port (\d+)", one.log)[-1])
        assert 1 == one.metric("twctl_guard_devices")
        ns.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
        ns.ip("link", "set", "veth7", "up")
        wait_until(lambda: one.metric("twctl_guard_devices") == 3, what="the new devices have the guard")


def test_a_start_that_fails_is_never_ready(manager: socket.socket, ns: Namespace) -> None:
    """The manager is told why; READY=1 is not."""
    with daemon(ns) as one:
        await_line(manager, "READY=1")
        second = Daemon((ns,), pins=one.pins)
        with pytest.raises(AssertionError, match="another twctl uses"):
            second.start()
        manager.setblocking(False)  # noqa: FBT003 - socket's own signature
        told = []
        while select.select([manager], [], [], 0)[0]:
            told.append(manager.recv(4096).decode())
        assert not any("READY=1" in each for each in told)
        assert any("another twctl uses" in each for each in told)


def test_a_reload_that_cannot_be_had_changes_nothing(ns: Namespace) -> None:
    """It is tried before anything is given up: mode, sysctl, guard and connections to the metrics stay."""
    with daemon(ns, mode="vestigial") as one, socket.create_connection(("127.0.0.1", one.port)) as scraper:
        tls = '[tls]\ncertfile = "/none/cert"\nkeyfile = "/none/key"\n'
        (one.folder / "twctl.toml").write_text(f'mode = "observe"\n{tls}')
        hang_up(one)
        wait_until(lambda: "the configuration stays as it was: cannot serve metrics with TLS: /none/cert" in one.log)
        scraper.sendall(b"GET /healthy HTTP/1.0\r\n\r\n")
        assert scraper.recv(100).startswith(b"HTTP/1.0 200 OK")
        assert (1, "0", True) == (one.log.count("guarding"), ns.sysctl("net.ipv4.tcp_max_tw_buckets"), has_guard(ns))
        assert 1 == one.metric("twctl_mode", mode="vestigial")


def test_a_stop_may_release(ns: Namespace) -> None:
    """`run --release`: the exit status is 0, nothing is pinned, no filter is left, and the sysctl is what it was."""
    before = ns.sysctl("net.ipv4.tcp_max_tw_buckets")
    with daemon(ns, mode="vestigial", options=("--release",)) as one:
        assert has_guard(ns)
        assert one.get("/healthy") == "healthy\n"
        assert one.stop() == 0
        assert f"removed {one.pins}" in one.log
        assert (False, False) == (one.pins.exists(), has_guard(ns))
        assert before == ns.sysctl("net.ipv4.tcp_max_tw_buckets")


@pytest.mark.parametrize("mode", ["observe", "vestigial"])
def test_a_start_that_fails_leaves_nothing_that_it_has_loaded(ns: Namespace, mode: str) -> None:
    """A sysctl that cannot be set is found last of all; a table that was there before stays."""
    before = ns.sysctl("net.ipv4.tcp_max_tw_buckets")
    refused = Daemon((ns,), mode=mode, config="[sysctl]\ntcp_tw_reuse = 1\n", prefix=READ_ONLY)
    try:
        with pytest.raises(AssertionError, match="cannot set"):
            refused.start()
        assert (False, False) == (refused.pins.exists(), has_guard(ns))
        assert before == ns.sysctl("net.ipv4.tcp_max_tw_buckets")
        with daemon(ns) as one:
            one.stop()
            refused.pins = one.pins
            with pytest.raises(AssertionError, match="cannot set"):
                refused.start()
            assert any((one.pins / "current/links").iterdir())
            assert not has_guard(ns)
    finally:
        assert 0 == twctl("release", "--pins", str(refused.pins)).returncode
        shutil.rmtree(refused.folder)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.parametrize("moment", ["twctl.daemon.main", "twctl.table.loader"])
def test_a_start_that_is_interrupted_says_stopped(ns: Namespace, moment: str, asked: signal.Signals) -> None:
    """By Ctrl-C, which its whole process group hears, or a service manager: while it imports, and while it loads."""
    pins = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-interrupted")
    words = ["run", "--pins", str(pins), "--netns", ns.name, "--listen", "127.0.0.1:0", "--probe", "tracepoint"]
    command = [sys.executable, "-m", "twctl", *words]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            wait_until(lambda: moment in _commands(process.pid), what=moment, timeout=TOLD_SECONDS)
            os.killpg(process.pid, asked)
            told = process.communicate(timeout=TOLD_SECONDS)[1]
        assert (0, "twctl: stopped") == (process.returncode, told.splitlines()[-1].partition(";")[0]), told
        assert "Traceback" not in told
    finally:
        assert twctl("release", "--pins", str(pins)).returncode == 0


def test_a_start_that_is_killed_leaves_nothing_that_loads(ns: Namespace) -> None:
    """Its loader goes with it: else that pins while another start does, and neither gets through."""
    pins = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-killed")
    words = ["run", "--pins", str(pins), "--netns", ns.name, "--listen", "127.0.0.1:0", "--probe", "tracepoint"]
    try:
        with subprocess.Popen([sys.executable, "-m", "twctl", *words], stderr=subprocess.PIPE, text=True) as process:
            wait_until((pins / "next").exists, what="it loads", timeout=TOLD_SECONDS)
            wait_until(lambda: "twctl.table.loader" in _commands(process.pid), what="the loader", timeout=TOLD_SECONDS)
            (loader,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.kill()
            process.wait()
            wait_until(lambda: not Path(f"/proc/{loader}/exe").exists(), what="the loader ends", timeout=1)
            assert not (pins / "current").exists()
    finally:
        assert twctl("release", "--pins", str(pins)).returncode == 0


def _commands(pid: int) -> str:
    """The command lines of a process and of its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = [Path(f"/proc/{each}/cmdline") for each in (pid, *children)]
    return " ".join(line.read_text() for line in lines if line.exists())


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a line for each Python that starts: its arguments."""
    line = "import sys; open({!r}, 'a').write(' '.join(sys.orig_argv) + chr(10))"
    (tmp_path / "sitecustomize.py").write_text(line.format(str(tmp_path / "started")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "started"


def test_a_busy_address_costs_no_compilation(manager: socket.socket, ns: Namespace, started: Path) -> None:
    """Exit status 75 (EX_TEMPFAIL) with one line, which the manager is told as well. The compiler is not started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        pins = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-busy")
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ("run", "--pins", str(pins), "--netns", ns.name, "--listen", address)
        try:
            done = twctl(*words)
            reason = f"cannot serve metrics on {address}: Address already in use"
            assert (75, f"twctl: {reason}") == (done.returncode, done.stderr.partition(" (")[0])
            assert manager.recv(4096).decode().startswith(f"STATUS={reason}")
            assert not (pins / "current").exists()
            assert "twctl.daemon.main" in started.read_text()
            assert "twctl.table.loader" not in started.read_text()
        finally:
            assert twctl("release", "--pins", str(pins)).returncode == 0
    with daemon(ns):
        assert "twctl.table.loader" in started.read_text()


def test_an_address_that_is_none_is_wrong_usage() -> None:
    """Exit status 2, and one line; in a file it is 1."""
    for given in ("foo", ""):
        done = twctl("run", "--listen", given, "--pins", f"/sys/fs/bpf/twctl-test-{os.getpid()}-usage")
        assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
        assert done.stderr.startswith(f'twctl: command line: listen = "{given}" is not valid')
