"""Translated connections with both ends on the host: the end in TIME_WAIT answers the other, as on a stock host."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import counters, wait_until
from tests.load.daemon import Daemon
from tests.load.duty import on_duty
from tests.load.netns import Namespace, namespace
from tests.load.paths import (
    CLIENT,
    IPV4,
    IPV6,
    MAPPED,
    SERVER,
    Pair,
    Route,
    await_state,
    connected,
    deafen,
    drops,
    state_of,
    undeafen,
)
from tests.load.peer import tun_peer
from tests.load.translations import ADDRESSES, OUTPUT, add_addresses, iptables, nft_kube_proxy, nftables

pytestmark = pytest.mark.alone("it waits for retransmissions")

N = 3


@dataclass(frozen=True)
class Within:
    """What is put into the namespace; where the server listens, and what the client dials (ports 0: any)."""

    install: Callable[[Namespace], None]
    server: str = "loopback"
    port: int = 0
    dialled: tuple[str, int] = ("service", 0)
    client: str = "host"

    def route(self, ns: Namespace, family: str) -> Route:
        """In a family."""
        names = ADDRESSES[IPV6 if family == IPV6 else IPV4]
        dialled = names[self.dialled[0]], self.dialled[1]
        return Route(ns, ns, names[self.client], names[self.server], family, dialled=dialled, port=self.port)


WITHIN = {
    "dnat to an own address": Within(nftables(OUTPUT % "{ip} daddr {service_} dnat to {host}"), "host"),
    "dnat to loopback": Within(nftables(OUTPUT % "{ip} daddr {service_} dnat to {loopback}")),
    "dnat on loopback": Within(
        nftables(OUTPUT % "{ip} daddr {loopback_} tcp dport 80 dnat to {loopback}:8080"),
        port=8080,
        dialled=("loopback", 80),
        client="loopback",
    ),
    "redirect": Within(nftables(OUTPUT % "{ip} daddr {service_} meta l4proto tcp redirect to :8080"), port=8080),
    "a service whose endpoint is the node": Within(iptables("kube-proxy"), "host", 9090, ("node's service", 80)),
    "the same with nftables": Within(nft_kube_proxy, "host", 9090, ("node's service", 80)),
    "mesh outbound": Within(iptables("istio"), "any", 15001, ("peer", 80)),
}


@dataclass(frozen=True)
class Place:
    """A namespace with a translation, and who is on duty."""

    ns: Namespace
    watch: Daemon | None
    within: Within


@pytest.fixture(scope="module")
def places(kind: str) -> Iterator[dict[str, Place]]:
    """Stock or guarded. A RST to an answer that came twice ends nothing."""
    with ExitStack() as stack:
        made: dict[str, Namespace] = {}
        for name, within in WITHIN.items():
            made[name] = ns = stack.enter_context(namespace({"net.ipv4.tcp_rfc1337": 1}))
            stack.enter_context(tun_peer(ns))
            add_addresses(ns, "tun0")
            within.install(ns)
        watch = stack.enter_context(on_duty(kind, *made.values()))
        yield {name: Place(ns, watch, WITHIN[name]) for name, ns in made.items()}


@pytest.fixture(params=WITHIN)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    """One of them."""
    return places[request.param]


def lose_the_last_ack(pair: Pair) -> None:
    """The active end is in TIME_WAIT, and the passive one has not heard so; it hears again."""
    pair.active.shutdown(socket.SHUT_WR)
    assert pair.passive.recv(1) == b""
    before = drops(pair.passive)
    deafen(pair.passive)
    pair.passive.shutdown(socket.SHUT_WR)
    await_state(pair.active, counters.CLOSE)
    wait_until(lambda: drops(pair.passive) > before, what="the ACK of the FIN is lost")
    assert state_of(pair.passive) == counters.LAST_ACK
    undeafen(pair.passive)


@pytest.mark.parametrize("closer", [CLIENT, SERVER])
@pytest.mark.parametrize("family", [IPV4, IPV6, MAPPED])
def test_a_fin_that_comes_again_is_acknowledged(place: Place, family: str, closer: str) -> None:
    """The other end is a socket whose FIN was not acknowledged: it comes again, and is, without a RST."""
    route = place.within.route(place.ns, family)
    before = counters.tcp(place.ns)["OutRsts"]
    with connected(route, N, closer) as pairs:
        sessions = [pair.session(counters.TIME_WAIT) for pair in pairs]
        for pair, ends in zip(pairs, sessions, strict=True):
            assert ends.client.tuple != ends.server.tuple[2:] + ends.server.tuple[:2]
            lose_the_last_ack(pair)
        for pair in pairs:
            wait_until(lambda: state_of(pair.passive) == counters.CLOSE, what="its FIN is acknowledged")  # noqa: B023
            assert pair.passive.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        if place.watch:
            rows = [v for v in place.watch.table() if v.netns == place.ns.name]
            known = {(str(v.local), v.local_port, str(v.remote), v.remote_port) for v in rows}
            assert known >= {each.end(closer).tuple for each in sessions}
    assert before == counters.tcp(place.ns)["OutRsts"]
