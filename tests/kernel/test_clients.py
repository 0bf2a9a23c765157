"""The daemon under clients of its metrics that mean no good: it answers the others, stays small, stops when asked."""

import os
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from tests.load.clients import certificate, client_hello, crowd
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Namespace, namespace

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

SECONDS = 8.0  # that an answer may take, or a stop: half a second, and many times as long where others work
MOST_MB = 10.0  # that a thousand connections may cost; with TLS each of those that stay takes 65 kB
BUCKETS = "net.ipv4.tcp_max_tw_buckets"


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Where the daemon works."""
    with namespace() as made:
        yield made


def status(one: Daemon, field: str) -> int:
    """A number of /proc/PID/status."""
    assert one.process
    lines = Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def get(one: Daemon, path: str, context: ssl.SSLContext | None) -> float:
    """Seconds that an answer took."""
    started = time.monotonic()
    place = ("127.0.0.1", one.port)
    connection = HTTPSConnection(*place, timeout=10, context=context) if context else HTTPConnection(*place, timeout=10)
    with closing(connection) as client:
        client.request("GET", path)
        answer = client.getresponse()
        assert (200, True) == (answer.status, b"twctl_build_info" in answer.read() or path != "/metrics")
    return time.monotonic() - started


def check(one: Daemon, context: ssl.SSLContext | None) -> None:
    """Among a thousand connections, idle ones and slow ones: it answers, and needs little more memory and no thread."""
    get(one, "/metrics", context)
    resident, threads = status(one, "VmRSS"), status(one, "Threads")
    with crowd(one.port, 1009, client_hello()[:100] if context else b"GET /metrics HTTP/1.0\r\n"):
        for path in ("/healthy", "/metrics") * 5:
            assert get(one, path, context) <= SECONDS, path
        assert status(one, "Threads") <= threads + 1  # one that enters a namespace, for a moment
        assert status(one, "VmRSS") - resident <= MOST_MB * 1024


def test_clients_take_nothing_from_others(ns: Namespace, tmp_path: Path) -> None:
    """Plain, after a reload with TLS, and when it stops: what the start changed is then put back in time."""
    cert, key = certificate(tmp_path)
    before = ns.sysctl(BUCKETS)
    with daemon(ns, mode="vestigial") as one:
        check(one, None)
        with crowd(one.port, 1009, b"G"):
            one.reload(f'mode = "vestigial"\n[tls]\ncertfile = "{cert}"\nkeyfile = "{key}"\n')
        check(one, ssl.create_default_context(cafile=cert))
        with crowd(one.port, 1009, client_hello()):
            started = time.monotonic()
            assert one.stop() == 0
            assert time.monotonic() - started <= SECONDS
        assert before == ns.sysctl(BUCKETS)


def test_a_flood_of_scrapes_leaves_health_and_stop_alone(ns: Namespace) -> None:
    """Many clients that scrape without a pause share what is read; the loop goes on, and hears SIGTERM."""
    with daemon(ns) as one, ThreadPoolExecutor(20) as clients:
        scrapes = [clients.submit(get, one, "/metrics", None) for _ in range(499)]
        for _ in range(5):
            assert get(one, "/healthy", None) <= SECONDS
        started = time.monotonic()
        assert one.stop() == 0
        assert time.monotonic() - started <= SECONDS
        done = [each for each in scrapes if each.exception() is None]
        assert done
        assert max(each.result() for each in done) <= 10
