"""What people come with, made for real: `twctl advise` names the cause first; with its remedy applied it is gone.

With TWCTL_TEST_RECORD set each scene writes its snapshot to tests/advise/, for the tests of the rules.
"""

import ipaddress
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.kernel.test_headroom import QUIET, client, drive
from tests.load import wait_until
from tests.load.closes import run, serving
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, Namespace, link, namespace
from tests.load.paths import over_link, over_lo

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

PORTS = 1009  # that QUIET leaves
IP_BIND_ADDRESS_NO_PORT = 24  # not in the socket module
COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_max")


def advised(one: Daemon, name: str = "") -> list[dict[str, Any]]:
    """What `twctl advise --json` says. name: of the file in which the snapshot is kept, if it is recorded."""
    done = twctl("advise", *one.options, "--json")
    assert (0, "") == (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    if name and os.environ.get("TWCTL_TEST_RECORD"):
        (ROOT / f"tests/advise/{name}.json").write_text(json.dumps(found["snapshot"], indent=1) + "\n")
    advice: list[dict[str, Any]] = found["advice"]
    return advice


def anchors(advice: list[dict[str, Any]]) -> list[str]:
    """The sections that they name, in their order."""
    return [each["anchor"] for each in advice]


@pytest.fixture
def both() -> Iterator[Link]:
    """A client with 1,009 ports, and a server."""
    with link(QUIET) as made:
        yield made


def test_a_load_test_to_one_server_uses_the_ports_up(both: Link) -> None:
    """The first advice is about them, with since when connect() fails; with tcp_tw_reuse=1 the same load goes on."""
    with daemon(both.client) as one, client(over_link(both), 500) as load:
        drive([load], lambda: load.failed, 30)
        first, *others = advised(one, "used_up")
        assert ("ports-are-used-up-by-sessions-in-time_wait", "now") == (first["anchor"], first["urgency"])
        assert "of 1,009 ports toward it are held" in first["evidence"]
        assert "connect() has found no port for" in first["evidence"]
        assert f"twctl drain --remote {both.server_ipv4}/32" in first["remedy"]
        assert {"a-connection-for-each-request", "tcp_tw_reuse-helps-or-does-not", "which-mode-fits"} <= {
            *anchors(others)
        }

        text = twctl("advise", *one.options).stdout.splitlines()
        assert text[0].startswith("now:      connect() to ")
        assert max(map(len, text)) <= 80

        both.client.sysctl("net.ipv4.tcp_tw_reuse", 1)
        load.failed, load.rate, before = None, 100, load.made
        time.sleep(1.1)  # what tcp_tw_reuse_delay asks for
        drive([load], lambda: load.made >= before + 211 or load.failed, 30)
        assert load.failed is None
        after = advised(one, "reused")
        assert "now" not in {each["urgency"] for each in after}
        assert not {"ports-are-used-up-by-sessions-in-time_wait", "tcp_tw_reuse-helps-or-does-not"} & {*anchors(after)}


def test_a_search_for_a_port_that_is_long_is_told_and_ends_with_what_holds_them(both: Link) -> None:
    """Sessions hold all ports of one parity, which the kernel tries first; once drained they are free again."""
    both.client.sysctl("net.ipv4.ip_local_port_range", "20000 36001")  # 16,002
    with daemon(both.client) as one, serving(both.server, *(ways := ("--address", both.server_ipv4))):
        run(both.client, "--connect", "--count", "8501", *ways)
        with ThreadPoolExecutor(1) as beside:
            going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "101", *ways)
            found = advised(one, "searching")
            going_on.result()
        long = next(each for each in found if each["anchor"] == "connect-looks-long-for-a-port")
        assert "of 16,002 ports toward it are held" in long["evidence"]
        assert 0 == twctl("drain", *one.options, "--all").returncode
        with ThreadPoolExecutor(1) as beside:
            going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "101", *ways)
            assert "connect-looks-long-for-a-port" not in anchors(advised(one))
            going_on.result()


def test_what_drain_frees_is_not_advised_any_more(both: Link) -> None:
    """The remedy that is named for at once."""
    with daemon(both.client) as one, client(over_link(both), 500) as load:
        drive([load], lambda: load.failed, 30)
        assert "now" == advised(one)[0]["urgency"]
        assert 0 == twctl("drain", *one.options, "--remote", f"{both.server_ipv4}/32").returncode
        load.failed = None
        load.connect(closes=True)
        assert load.failed is None
        assert "now" not in {each["urgency"] for each in advised(one, "drained")}


def test_a_load_on_loopback_needs_nothing() -> None:
    """More sessions than there are ports, and no connect() fails."""
    with namespace(QUIET) as ns, daemon(ns) as one, client(over_lo(ns), 401) as load:
        drive([load], lambda: load.failed or load.made >= 2 * PORTS, 30)
        assert load.failed is None
        advice = advised(one, "loopback")
        assert ["a-load-on-loopback"] == [each for each in anchors(advice) if each != "which-mode-fits"]
        assert "fine" == advice[0]["urgency"]
        assert twctl("advise", *one.options).stdout.startswith("Nothing has to be done.\n")


def test_a_load_on_loopback_without_timestamps_is_like_any_other() -> None:
    """Its ports are used up; that timestamps are off is named as the reason why tcp_tw_reuse does not help."""
    with namespace(QUIET | {"net.ipv4.tcp_timestamps": 0}) as ns, daemon(ns) as one, client(over_lo(ns), 900) as load:
        drive([load], lambda: load.failed, 30)
        first, *others = advised(one, "no_timestamps")
        assert "ports-are-used-up-by-sessions-in-time_wait" == first["anchor"]
        assert [each for each in others if "have no timestamps" in each["what"]]
        assert "a-load-on-loopback" not in anchors(others)


def test_a_peer_that_closes_first_has_it(both: Link) -> None:
    """Nothing to do at the client; at the server, whose port it is, tcp_tw_reuse is not for it."""
    both.client.sysctl("net.ipv4.ip_local_port_range", "30000 60999")
    ways = ("--close", "server", "--address", both.server_ipv4, "--port", "20000")
    with ExitStack() as stack:
        near, far = (stack.enter_context(daemon(each)) for each in (both.client, both.server))
        stack.enter_context(serving(both.server, *ways))
        beside = stack.enter_context(ThreadPoolExecutor(1))
        going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "400", *ways)
        wait_until(lambda: near.metric("twctl_closed_without_time_wait_total", how="passive") > 401, timeout=20)
        assert ["the-far-side-closes-first"] == anchors(advised(near, "peer_closes"))
        going_on.result()
        assert "a-server-here-closes-first" == anchors(advised(far, "server_closes"))[0]
        assert ["all-is-well"] == anchors(advised(near))


def test_connections_that_are_not_closed_are_told_apart(both: Link) -> None:
    """Live ones toward one destination; once they are closed all is well."""
    with daemon(both.client) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 701, 30)
        first = advised(one, "leak")[0]
        assert "connections-are-not-closed" == first["anchor"]
        assert f"{load.made} by connections" in first["evidence"]
        for near, far in zip(load.kept[::2], load.kept[1::2], strict=True):
            far.close()  # first, so that TIME_WAIT is not here
            near.recv(1)
            near.close()
        load.kept.clear()
        assert ["all-is-well"] == anchors(advised(one))


def test_connections_that_the_peer_has_closed_are_forgotten_ones(both: Link) -> None:
    """CLOSE_WAIT says so however few ports they have."""
    with daemon(both.client) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 101, 30)
        for far in load.kept[1::2]:
            far.close()
        first = advised(one, "close_wait")[0]
        assert "connections-are-not-closed" == first["anchor"]
        assert f"{load.made} of them (CLOSE_WAIT)" in first["evidence"]


def test_connections_that_a_server_does_not_close_are_told_by_owner(both: Link) -> None:
    """CLOSE_WAIT on a port that is no client's; once they are closed all is well."""
    with daemon(both.server) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 101, 30)
        for near in load.kept[::2]:
            near.close()
        first = advised(one, "unclosed")[0]
        assert "connections-stay-in-close_wait" == first["anchor"]
        assert f"{load.made} sockets of it are in CLOSE_WAIT" in first["evidence"]
        for far in load.kept[1::2]:
            far.close()
        load.kept.clear()
        assert ["all-is-well"] == anchors(advised(one))


def test_ports_that_bind_holds_are_told_apart(both: Link) -> None:
    """All ports are free toward the server, and connect() fails; with IP_BIND_ADDRESS_NO_PORT it does not."""
    with ExitStack() as stack:
        one = stack.enter_context(daemon(both.client))
        load = stack.enter_context(client(over_link(both), 100))
        bound = [stack.enter_context(both.client.socket(socket.AF_INET)) for _ in range(PORTS)]
        for port, sock in enumerate(bound, 40000):
            sock.bind((both.client_ipv4, port))
        load.connect(closes=True)
        assert load.failed
        first = advised(one, "bound")[0]
        assert ("ports-are-held-by-bind", "now") == (first["anchor"], first["urgency"])
        for sock in bound:
            sock.close()
        for _ in range(PORTS):
            sock = stack.enter_context(both.client.socket(socket.AF_INET))
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((both.client_ipv4, 0))
        load.failed = None
        load.connect(closes=True)
        assert load.failed is None
        assert ["all-is-well"] == anchors(advised(one, "unbound"))


def test_all_is_well_where_nothing_is_wrong(both: Link) -> None:
    """With a few sessions, and with none."""
    with daemon(both.client) as one, client(over_link(both), 10) as load:
        assert ["all-is-well"] == anchors(advised(one, "idle"))
        for _ in range(23):
            load.connect(closes=True)
        assert ["all-is-well"] == anchors(advised(one, "well"))


@contextmanager
def tracked(ns: Namespace) -> Iterator[None]:
    """Conntrack works in the namespace, and forgets UDP after ten seconds."""
    ns.sysctl("net.netfilter.nf_conntrack_udp_timeout", 10)
    subprocess.run(ns.command("nft", RULES), check=True)
    yield


RULES = "table ip t { chain c { type filter hook output priority 0; ct state new counter; }; }"
NOTRACK = "table ip n { chain c { type filter hook output priority raw; udp dport 9 notrack; }; }"


def send(ns: Namespace, count: int) -> None:
    """A datagram to each of so many addresses of loopback, where nobody listens."""
    with ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for i in range(count):
            sock.sendto(b"", (str(ipaddress.IPv4Address(0x7F000100 + i)), 9))


@pytest.mark.skipif(not COUNT.exists(), reason="this kernel has no nf_conntrack: modprobe nf_conntrack")
def test_a_full_conntrack_is_named() -> None:
    """Traffic that conntrack is told to leave alone no longer fills it."""
    room = int(COUNT.read_text())
    with namespace() as ns, daemon(ns) as one, tracked(ns):
        send(ns, int(room * 0.95))
        first = advised(one, "conntrack")[0]
        assert "conntrack-is-nearly-full" == first["anchor"]
        subprocess.run(ns.command("nft", NOTRACK), check=True)
        before = int(ns.sysctl("net.netfilter.nf_conntrack_count"))
        send(ns, 1009)
        assert int(ns.sysctl("net.netfilter.nf_conntrack_count")) <= before


def test_a_limit_of_buckets_that_is_reached_is_named(both: Link) -> None:
    """Sessions find no place; with room for them none is lost."""
    both.client.sysctl("net.ipv4.tcp_max_tw_buckets", 23)
    with daemon(both.client) as one, client(over_link(both), 100) as load, ThreadPoolExecutor(1) as beside:
        for _ in range(30):
            load.connect(closes=True)
        load.begin()
        going_on = beside.submit(advised, one, "buckets")
        while not going_on.done():
            load.step()
            time.sleep(0.001)
        assert "tcp_max_tw_buckets-is-reached" == going_on.result()[0]["anchor"]
        both.client.sysctl("net.ipv4.tcp_max_tw_buckets", 65536)
        load.connect(closes=True)
        assert "tcp_max_tw_buckets-is-reached" not in anchors(advised(one))


def test_errors_are_told_in_a_line() -> None:
    """Where no table is."""
    done = twctl("advise", "--pins", "/sys/fs/bpf/twctl-test-none")
    assert 1 == done.returncode
    assert "no table is pinned" in done.stderr
