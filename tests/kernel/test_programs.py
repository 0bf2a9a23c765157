"""Real programs over mode vestigial, with segments lost on the way: nothing that they would not see on stock."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.load import wait_until
from tests.load.daemon import daemon
from tests.load.netns import Link, Namespace, link
from tests.load.segments import RST, Segment, capture

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

NGINX = Path("build/programs/nginx")  # deploy/setup --test puts it there
REDIS = ("bash", "-c", 'exec -a redis-server redis-check-rdb "$@"', "bash")  # one program; its name says which
LOST = 0.01  # share of packets, each way
REQUESTS = 1009
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_timeout 0;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen {address}:8080 reuseport backlog=4096; location / {{ return 200 "well"; }} }}
}}
"""


@pytest.fixture(params=["stock", "vestigial"])
def both(request: pytest.FixtureRequest) -> Iterator[Link]:
    """A client and a server of one link on which segments are lost, both with the guard or neither."""
    with link({"net.ipv4.tcp_rfc1337": 1}) as made:
        for ns in (made.client, made.server):
            rules = f"table inet t {{ chain c {{ type filter hook input priority 0; {LOSE} drop; }}; }}"
            subprocess.run(ns.command("nft", rules), check=True)
        if request.param == "stock":
            yield made
            return
        with daemon(made.client, made.server, mode="vestigial"):
            yield made


LOSE = f"meta l4proto tcp numgen random mod 1000 < {int(LOST * 1000)}"


@contextmanager
def served(ns: Namespace, *command: str) -> Iterator[None]:
    """A server that runs until the end of the block."""
    process = ns.popen(*command)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def reset_flows(segments: list[Segment], closer: str) -> list[str]:
    """What passed on each tuple on which the end that closed first sent a RST, a line each segment.

    The other end has no TIME_WAIT: on a busy machine it answers a FIN that was sent again too soon with a RST.
    """
    resets = [each for each in segments if each.has(RST) and each.source == closer]
    tuples = [{each.source_port, each.destination_port} for each in resets]
    return [
        f"{each.monotonic_ns / 1e9:.6f} {each.source}:{each.source_port} > {each.destination_port} "
        f"flags {each.flags:#x} seq {each.seq} ack {each.ack} length {len(each.payload)}"
        for each in segments
        if {each.source_port, each.destination_port} in tuples
    ]


def test_curl_against_nginx(both: Link, tmp_path: Path) -> None:
    """1,009 requests, a connection each, the server closing first: all answered, and no RST from the server."""
    (tmp_path / "conf").write_text(CONFIGURATION.format(folder=tmp_path, address=both.server_ipv4))
    urls = f"http://{both.server_ipv4}:8080/[1-{REQUESTS}]"
    with served(both.server, str(NGINX), "-c", str(tmp_path / "conf")), capture(both.client, both.device) as wire:
        wait_until(lambda: listening(both.server, 8080), what="nginx listens")
        command = both.client.command("curl", "--no-progress-meter", "-Z", "--parallel-max", "50", urls)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (0, REQUESTS) == (done.returncode, done.stdout.count("well"))
        assert "curl:" not in done.stderr
        time.sleep(0.5)  # what was lost last is sent again
        assert not reset_flows(wire.segments(), both.server_ipv4)


def test_a_connection_for_each_query_against_redis(both: Link, tmp_path: Path) -> None:
    """1,009 queries, a connection each, the client closing first: all answered, the last one says so."""
    options = (
        "--bind",
        both.server_ipv4,
        "--port",
        "7379",
        "--save",
        "",
        "--dir",
        str(tmp_path),
        "--protected-mode",
        "no",
    )
    with served(both.server, *REDIS, *options):
        wait_until(lambda: listening(both.server, 7379), what="redis listens")
        where = ("-h", both.server_ipv4, "-p", "7379")
        command = ("redis-benchmark", *where, "-n", str(REQUESTS), "-c", "20", "-k", "0", "-t", "incr", "--csv")
        done = subprocess.run(both.client.command(*command), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0
        assert [] == [line for line in done.stderr.splitlines() if "Keepalive disabled" not in line]
        ask = ("redis-cli", *where, "get", "counter:__rand_int__")
        told = subprocess.run(both.client.command(*ask), capture_output=True, text=True, timeout=60, check=True)
        assert int(told.stdout) >= REQUESTS


def listening(ns: Namespace, port: int) -> bool:
    """Somebody listens on this port."""
    return any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in ns.read("tcp").splitlines()
    )
