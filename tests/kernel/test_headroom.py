"""The ports that are left toward a destination, on the real kernel: what is held, and when connect() fails."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.load import wait_until
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, link

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

PORTS = 1009
RATE = 101.0
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@pytest.fixture
def both() -> Iterator[Link]:
    """A client with 1,009 ports besides 7 that are reserved, and a server; TIME_WAIT is not reused."""
    with link({"net.ipv4.tcp_tw_reuse": 0}) as made:
        made.client.sysctl("net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS + 7 - 1}")
        made.client.sysctl("net.ipv4.ip_local_reserved_ports", "40023-40029,80")
        yield made


class Target:
    """A listening socket at the server, and connections to it from the client, which closes first."""

    def __init__(self, both: Link, family: int, opened: ExitStack) -> None:
        address = both.server_ipv4 if family == socket.AF_INET else both.server_ipv6
        self._client, self._family = both.client, family
        self._listener = opened.enter_context(both.server.socket(family))
        self._listener.bind((address, 0))
        self._listener.listen(64)
        self.address = self._listener.getsockname()[:2]

    def open(self) -> tuple[socket.socket, socket.socket] | None:
        """Both ends of a connection; None where the client finds no port."""
        sock = self._client.socket(self._family)
        if error := sock.connect_ex(self.address):
            assert error == errno.EADDRNOTAVAIL
            sock.close()
            return None
        return sock, self._listener.accept()[0]

    def close(self) -> bool:
        """One session; False where there is no port."""
        if (ends := self.open()) is None:
            return False
        for end in ends:
            end.close()
        return True


def foreseen(one: Daemon, target: Target) -> dict[str, float]:
    """What `twctl blame` says of it."""
    done = twctl("blame", *one.options, "--by", "remote", "--json")
    assert (0, "") == (done.returncode, done.stderr)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    [row] = [row for row in rows if row["by"] == "ports" and row["remote_port"] == target.address[1]]
    return dict(row)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forecast_is_within_a_fifth_of_the_moment_when_connect_fails(both: Link, family: int) -> None:
    """At 101 sessions a second the range lasts 10 s: a third of the way it is known when the end comes."""
    with ExitStack() as opened, daemon(both.client) as one:
        target = Target(both, family, opened)
        began, made, asked = time.monotonic(), 0, 0.0
        forecast: dict[str, float] = {}
        while target.close():
            made += 1
            if not forecast and made > PORTS / 3:
                asked, forecast = time.monotonic(), foreseen(one, target)
                began += time.monotonic() - asked  # the sessions go on where they were
            time.sleep(max(0.0, began + made / RATE - time.monotonic()))
        failed = time.monotonic()
        assert (PORTS, PORTS) == (made, forecast["ports"])
        assert forecast["live"] == 0
        # Asking has taken time in which nothing came: what counts is the time at the pace.
        assert forecast["seconds_left"] == pytest.approx((PORTS - forecast["time_wait"]) / RATE, rel=0.2)
        assert failed > asked
        assert 1 == one.metric("twctl_connects_without_port_total")


def test_live_connections_hold_ports_too_and_the_daemon_tells_of_the_worst(both: Link) -> None:
    """101 live ones and 503 in TIME_WAIT are 60 % of the range; a destination with few is not told of."""
    with ExitStack() as opened, daemon(both.client) as one:
        target, other = Target(both, socket.AF_INET, opened), Target(both, socket.AF_INET, opened)
        kept = [ends for _ in range(101) if (ends := target.open())]
        for end in (end for ends in kept for end in ends):
            opened.callback(end.close)
        assert all(target.close() for _ in range(503))
        assert other.close()
        found = foreseen(one, target)
        assert (503, 101) == (found["time_wait"], found["live"])
        port = {"remote_port": str(target.address[1])}
        expected = pytest.approx(604 / PORTS)
        wait_until(lambda: one.metric("twctl_ephemeral_ports_used_ratio", **port) == expected, what="60 %", timeout=15)
        assert 1 == sum(name.startswith("twctl_ephemeral_ports_used_ratio") for name in one.metrics())


def test_in_mode_truncate_ports_come_back_in_time(both: Link) -> None:
    """With 5 s of TIME_WAIT 101 sessions a second need 505 ports: there is no end."""
    config = "[time_wait]\nlocal = 5\n"
    with ExitStack() as opened, daemon(both.client, mode="truncate", config=config) as one:
        target = Target(both, socket.AF_INET, opened)
        began = time.monotonic()
        for made in range(303):
            assert target.close()
            time.sleep(max(0.0, began + made / RATE - time.monotonic()))
        assert foreseen(one, target)["seconds_left"] is None
