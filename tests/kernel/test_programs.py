"""Real programs over mode vestigial, with segments lost on the way: nothing that they would not see on stock."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.daemon import daemon
from tests.load.netns import Link, link
from tests.load.segments import RST, Segment, capture
from tests.load.servers import NGINX_PORT, REDIS_PORT, nginx, redis

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

LOST = 0.01  # share of packets, each way
REQUESTS = 1009


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
    urls = f"http://{both.server_ipv4}:{NGINX_PORT}/[1-{REQUESTS}]"
    with nginx(both.server, both.server_ipv4, tmp_path), capture(both.client, both.device) as wire:
        command = both.client.command("curl", "--no-progress-meter", "-Z", "--parallel-max", "50", urls)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (0, REQUESTS) == (done.returncode, done.stdout.count("well"))
        assert "curl:" not in done.stderr
        time.sleep(0.5)  # what was lost last is sent again
        assert not reset_flows(wire.segments(), both.server_ipv4)


def test_a_connection_for_each_query_against_redis(both: Link, tmp_path: Path) -> None:
    """1,009 queries, a connection each, the client closing first: all answered, the last one says so."""
    with redis(both.server, both.server_ipv4, tmp_path):
        where = ("-h", both.server_ipv4, "-p", str(REDIS_PORT))
        command = ("redis-benchmark", *where, "-n", str(REQUESTS), "-c", "20", "-k", "0", "-t", "incr", "--csv")
        done = subprocess.run(both.client.command(*command), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0
        assert [] == [line for line in done.stderr.splitlines() if "Keepalive disabled" not in line]
        ask = ("redis-cli", *where, "get", "counter:__rand_int__")
        told = subprocess.run(both.client.command(*ask), capture_output=True, text=True, timeout=60, check=True)
        assert int(told.stdout) >= REQUESTS
