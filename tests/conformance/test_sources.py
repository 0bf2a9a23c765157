"""From where a segment is believed, and where its answer goes: as the kernel's own routes and filters have it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.load import wait_until
from tests.load.crossing import FAR, NEAR, Crossing, crossing, fin_again, rst_of
from tests.load.daemon import Daemon
from tests.load.duty import VESTIGIAL, on_duty
from tests.load.frames import addressed, hardware_address
from tests.load.netns import Namespace
from tests.load.paths import CLIENT, IPV4, IPV6, Route, fin_wait2
from tests.load.peer import TunPeer, tun_peer
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, SYN, Capture, Segment, build, capture, inject

FAMILIES = (IPV4, IPV6)
# A RST of the peer's kernel, which knows nothing of what a test sends, must not end the session.
SYSCTLS = {"net.ipv4.tcp_rfc1337": 1, "net.ipv4.conf.default.rp_filter": 0, "net.ipv4.conf.all.rp_filter": 0}


@pytest.fixture(scope="module")
def place(kind: str) -> Iterator[tuple[Crossing, Daemon | None]]:
    """The host between peer and stranger, with somebody on duty."""
    with ExitStack() as stack:
        made = stack.enter_context(crossing(SYSCTLS))
        yield made, stack.enter_context(on_duty(kind, made.host))


@pytest.fixture
def cross(place: tuple[Crossing, Daemon | None]) -> Iterator[Crossing]:
    """As every test finds it: no filter of sources, no RST that is not wanted."""
    made, _ = place
    yield made
    for name, value in {**SYSCTLS, "net.ipv4.conf.veth1.rp_filter": 0}.items():
        made.host.sysctl(name, value)


@pytest.fixture(scope="module")
def tun(place: tuple[Crossing, Daemon | None]) -> Iterator[TunPeer]:
    """A tunnel's end on the host, which has the guard, too."""
    crossed, watch = place
    with tun_peer(crossed.host) as made:
        if watch:
            wait_until(lambda: watch.metric("twctl_guard_devices") == 4, what="the guard on the tunnel")
        yield made


def session(route: Route) -> Segment:
    """A session that the host closed first, and the FIN that it acknowledges again."""
    with capture(route.client, route.device) as wire:
        return fin_again(wire, fin_wait2(route, 1, CLIENT)[0].client.tuple)


def answers(wire: Capture, fin: Segment) -> list[Segment]:
    """What the host sent to a FIN."""
    return [one for one in wire.segments() if one.tuple == (*fin.tuple[2:], *fin.tuple[:2])]


def is_on_duty(ns: Namespace, device: str, fin: Segment) -> bool:
    """The session is there: its FIN, injected on its own way, is acknowledged."""
    with capture(ns, device) as wire:
        inject(ns, fin)
        wait_until(lambda: bool(answers(wire, fin)), what="an answer")
        return answers(wire, fin)[0].flags == ACK


# ---- addresses of the host ----


@pytest.mark.parametrize("own", [False, True], ids=["loopback", "own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loopback_session_is_nobody_else_s(cross: Crossing, family: str, own: bool) -> None:  # noqa: FBT001
    """Frames in its name, from a neighbour on either link, learn nothing; its numbers in a RST do not end it."""
    fin = session(cross.within(family, own=own))
    # of IPv6 the kernel drops ::1 alone (ip6_rcv_core): from an own address it takes both, and answers to itself
    taken = (family, own) == (IPV6, True)
    cross.host.sysctl("net.ipv4.tcp_rfc1337", int(taken))
    spoofed = [fin] if taken else [fin, rst_of(fin)]
    with capture(cross.peer, "veth0") as peer, capture(cross.stranger, "veth0") as stranger:
        cross.from_peer(*map(build, spoofed))
        cross.from_stranger(*map(build, spoofed))
        assert [] == answers(peer, fin) + answers(stranger, fin)
    assert is_on_duty(cross.host, "lo", fin)


# ---- where an answer goes ----


@pytest.mark.parametrize("where", [NEAR, FAR])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_goes_to_the_peer_and_not_to_the_sender(cross: Crossing, family: str, where: str) -> None:
    """A balancer forwards a segment (L2-DSR), or a neighbour sends one in the peer's name: the route decides."""
    fin = session(cross.route(family, where))
    somebody, peer = b"\2\0\0\0\0\x99", hardware_address(cross.peer, "veth0")
    with addressed(cross.peer, "veth0") as seen:
        cross.from_peer(build(fin), source=somebody)
        back = (*fin.tuple[2:], *fin.tuple[:2])
        assert [(peer, ACK)] == [(to, one.flags) for to, one in seen.found() if one.tuple == back]


@pytest.mark.parametrize("where", [NEAR, FAR])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_leaves_by_the_route(cross: Crossing, family: str, where: str) -> None:
    """What comes in by another link (a balancer's, a tunnel's) is answered by that of the peer, for the peer alone."""
    fin = session(cross.route(family, where))
    with capture(cross.peer, "veth0") as peer, capture(cross.stranger, "veth0") as stranger:
        cross.from_stranger(build(fin))
        wait_until(lambda: bool(answers(peer, fin)), what="the answer")
        assert [ACK] == [one.flags for one in answers(peer, fin)]
        assert [] == answers(stranger, fin)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_next_hop_that_is_not_known_is_asked_for(cross: Crossing, family: str) -> None:
    """Without an entry among the neighbours the answer waits for one."""
    fin = session(cross.route(family, FAR))
    with capture(cross.peer, "veth0") as peer:
        cross.host.ip("neighbour", "flush", "dev", "veth0")
        cross.from_stranger(build(fin))
        wait_until(lambda: bool(answers(peer, fin)), what="the answer")


@pytest.mark.parametrize("where", [NEAR, FAR])
def test_a_router_s_answer_leaves_by_the_route_that_it_has_now(cross: Crossing, where: str) -> None:
    """IPv6: where the host forwards, the guard asks for the route as with IPv4."""
    fin = session(cross.route(IPV6, where))
    cross.host.sysctl("net.ipv6.conf.all.forwarding", 1)
    with capture(cross.peer, "veth0") as peer:
        cross.from_stranger(build(fin))
        wait_until(lambda: bool(answers(peer, fin)), what="the answer")
    cross.host.sysctl("net.ipv6.conf.all.forwarding", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_device_without_link_headers_is_left_for_one_that_has_them(
    cross: Crossing, tun: TunPeer, family: str
) -> None:
    """A balancer's segment comes out of a tunnel, and the answer goes over the link."""
    fin = session(cross.route(family, FAR))
    with capture(cross.peer, "veth0") as peer:
        tun.write(build(fin))
        wait_until(lambda: bool(answers(peer, fin)), what="the answer")
        assert [(ACK, True)] == [(one.flags, one.intact) for one in answers(peer, fin)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_device_with_link_headers_is_left_for_one_without(cross: Crossing, tun: TunPeer, family: str) -> None:
    """The peer is behind a tunnel, and its segment came over a link."""
    sock, connection = tun.dial(family)
    with sock:
        SCRIPTS["fin_wait2"][0](sock, connection)
    known = connection.seen()
    fin = Segment(*connection.tuple, (known.rcv_nxt - 1) % 2**32, known.snd_nxt, FIN | ACK)
    cross.from_stranger(build(fin))
    wait_until(lambda: bool(found := tun.received(connection)) and found[0].flags == ACK, what="the answer")


# ---- rp_filter ----


@pytest.mark.parametrize(("everywhere", "there"), [(1, 0), (0, 1), (1, 1)])
def test_what_the_route_would_not_take_has_no_effect(
    place: tuple[Crossing, Daemon | None], cross: Crossing, kind: str, everywhere: int, there: int
) -> None:
    """rp_filter 1, of all devices or of this one: no answer to anybody, and the session's own RST does not end it."""
    fin = session(cross.route(IPV4, FAR))
    cross.host.sysctl("net.ipv4.tcp_rfc1337", 0)
    cross.host.sysctl("net.ipv4.conf.all.rp_filter", everywhere)
    cross.host.sysctl("net.ipv4.conf.veth1.rp_filter", there)
    before = martians(place[1])
    with capture(cross.peer, "veth0") as peer, capture(cross.stranger, "veth0") as stranger:
        cross.from_stranger(build(fin), build(rst_of(fin)))
        assert [] == answers(peer, fin) + answers(stranger, fin)
        cross.from_peer(build(fin))
        assert [ACK] == [one.flags for one in answers(peer, fin)]
    assert (kind == VESTIGIAL) * 2 == martians(place[1]) - before


def martians(watch: Daemon | None) -> float:
    """Segments that the guard left to the kernel for where they came from."""
    return watch.metric("twctl_guard_segments_total", action="martian") if watch else 0


@pytest.mark.parametrize(("everywhere", "there"), [(2, 0), (1, 2)])
def test_the_loose_filter_asks_for_any_route(cross: Crossing, everywhere: int, there: int) -> None:
    """rp_filter 2 takes a segment from any device, if there is a route to its source; without one it has no effect."""
    fin = session(cross.route(IPV4, FAR))
    cross.host.sysctl("net.ipv4.tcp_rfc1337", 0)
    cross.host.sysctl("net.ipv4.conf.all.rp_filter", everywhere)
    cross.host.sysctl("net.ipv4.conf.veth1.rp_filter", there)
    with capture(cross.peer, "veth0") as peer:
        cross.host.ip("route", "del", "10.55.0.0/24")
        cross.from_stranger(build(fin), build(rst_of(fin)))
        cross.host.ip("route", "add", "10.55.0.0/24", "via", cross.link.server_ipv4)
        cross.from_stranger(build(fin))
        wait_until(lambda: bool(answers(peer, fin)), what="an answer to the last")
        assert [ACK] == [one.flags for one in answers(peer, fin)]


# ---- what is not the host's ----


def test_a_syn_that_is_only_forwarded_ends_nothing(cross: Crossing) -> None:
    """An IPv6 router passes on what comes from a stranger in its own name: its session is not the stranger's."""
    fin = session(cross.route(IPV6))
    cross.host.sysctl("net.ipv6.conf.all.forwarding", 1)
    syn = Segment(*fin.tuple[2:], *fin.tuple[:2], seq=(fin.ack + 1_000_000) % 2**32, ack=0, flags=SYN)
    try:
        with capture(cross.peer, "veth0") as peer:
            cross.from_stranger(build(syn))
            wait_until(lambda: SYN in {one.flags for one in peer.segments() if one.tuple == syn.tuple}, what="the SYN")
        with capture(cross.peer, "veth0") as peer:
            cross.from_peer(build(fin))
            assert [ACK] == [one.flags for one in answers(peer, fin)]
    finally:
        cross.host.sysctl("net.ipv6.conf.all.forwarding", 0)
