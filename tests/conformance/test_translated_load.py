"""Thousands of connections through a Service, over a link that loses packets and mixes up their order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.load import counters, wait_until
from tests.load.closes import run, serving
from tests.load.daemon import Daemon
from tests.load.duty import on_duty
from tests.load.netns import Namespace, namespace
from tests.load.paths import IPV4, IPV6
from tests.load.relay import Relay, relay
from tests.load.translations import ADDRESSES, add_addresses, iptables

pytestmark = pytest.mark.alone("it makes connections as fast as it can")

COUNT, LONG_COUNT = 3001, 200_003
BYTES = 4099  # several segments
LOST, HELD = 300, 3000  # of 100,000 packets
# A session lasts as long as on stock, and each has room, which is two slots: no RST comes of one that ended early.
CONFIG = "[time_wait]\nlocal = 60\n[capacity.ipv4]\nlocal = {0}\n[capacity.ipv6]\nlocal = {0}\n"
# An ACK that comes twice finds the other end gone; the RST that answers it must end no session: what came later would
# be answered with a RST of the host's.
SYSCTLS = {"net.ipv4.tcp_rfc1337": 1}


@dataclass(frozen=True)
class Node:
    """A node with kube-proxy's rules, and the one behind the link that has the service's endpoints."""

    host: Namespace
    peer: Namespace
    link: Relay
    watch: Daemon | None


@contextmanager
def node(kind: str, count: int) -> Iterator[Node]:
    """Stock or guarded, with room for so many sessions."""
    with ExitStack() as stack:
        host, peer = (stack.enter_context(namespace(SYSCTLS)) for _ in range(2))
        between = stack.enter_context(relay(host, peer, lost=LOST, held=HELD))
        add_addresses(host, "tun0")
        peer.ip("address", "add", "10.78.0.3/24", "dev", "tun0")
        peer.ip("address", "add", "fd78::3/64", "dev", "tun0", "nodad")
        iptables("kube-proxy")(host)
        # as [sysctl] nf_conntrack_tcp_timeout_time_wait has it: else the host's own translation has no ports left
        host.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 10)
        watch = stack.enter_context(on_duty(kind, host, config=CONFIG.format(2 * count + 1)))
        yield Node(host, peer, between, watch)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_every_byte_arrives_and_nobody_is_reset(kind: str, family: str, *, long: bool) -> None:
    """The host closes first, and its answers to what comes late are those of TIME_WAIT."""
    count = LONG_COUNT if long and kind != "stock" else COUNT
    how = ("--family", family, "--bytes", str(BYTES), "--close", "client")
    with node(kind, count) as made:
        endpoints = "10.78.0.2,10.78.0.3" if family == IPV4 else "fd78::2,fd78::3"
        with serving(made.peer, *how, "--address", endpoints, "--port", "8080") as served:
            target = ("--address", ADDRESSES[family]["service"], "--port", "80")
            words = ("--connect", *how, *target, "--threads", "32", "--count", str(count))
            report = run(made.host, *words, timeout=1200)
            wait_until(lambda: counters.all_closed(made.host), what="both ends have closed", timeout=60)
        host, peer = counters.tcp(made.host), counters.tcp(made.peer)
    assert (count, 0) == (report["made"], report["failed"])
    assert (count, count * BYTES) == (served["made"], served["taken"])
    assert min(made.link.counts["lost"]) > 0
    assert min(made.link.counts["held"]) > 0
    assert (0, 0) == made.link.counts["refused"]
    assert (0, 0) == (host["EstabResets"], peer["EstabResets"])
    # A SYN that comes late leaves the peer with half of a connection. If the tuple is used again before it gives that
    # up it says so, and the host's SYN_SENT answers as anywhere. The peer's own answer what comes twice for an end that
    # is gone.
    assert peer["AttemptFails"] == made.link.counts["resets"][0]
