"""What a service manager hears: over a path and over an abstract name, and nothing where nobody listens."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twctl.linux.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd makes it, and its address as systemd writes it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@twctl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        sock.settimeout(1)
        yield sock, name


def test_ready_comes_with_a_status_and_starts_the_watchdog_anew(manager: tuple[socket.socket, str]) -> None:
    """One datagram, a line each; a status never breaks into two."""
    sock, name = manager
    Notifier({"NOTIFY_SOCKET": name}).ready("observing,\nport 9815")
    assert sock.recv(4096) == b"READY=1\nSTATUS=observing, port 9815\nWATCHDOG=1"


def test_reloading_carries_the_time(manager: tuple[socket.socket, str]) -> None:
    """MONOTONIC_USEC is the clock's, in microseconds, as a reload that systemd waits for must have it."""
    sock, name = manager
    before = time.monotonic_ns() // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    first, second, _ = sock.recv(4096).decode().split("\n")
    key, _, value = second.partition("=")
    assert (first, key) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_the_rest_is_told_in_order(manager: tuple[socket.socket, str]) -> None:
    """Watchdog, status and stop, each a datagram."""
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.alive()
    notifier.status("23 sessions")
    notifier.stopping("stopped")
    assert [sock.recv(4096) for _ in range(3)] == [b"WATCHDOG=1", b"STATUS=23 sessions", b"STOPPING=1\nSTATUS=stopped"]


def test_without_a_manager_nothing_is_told() -> None:
    """No $NOTIFY_SOCKET, or nobody behind it: no error."""
    Notifier({}).ready("observing")
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).ready("observing")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_this_process(environment: dict[str, str], seconds: float) -> None:
    """Its time counts where it names no process, or this one."""
    assert Notifier({"NOTIFY_SOCKET": "/nowhere/notify", **environment}).watchdog == seconds
