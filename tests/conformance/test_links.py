"""The same duty on devices that have link headers and unfinished checksums: veth and lo, with real sockets as peers."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.load import wait_until
from tests.load.counters import CLOSE, LAST_ACK, TIME_WAIT
from tests.load.duty import on_duty
from tests.load.netns import Link, Namespace, link
from tests.load.paths import (
    CLIENT,
    IPV4,
    IPV6,
    MAPPED,
    Route,
    Session,
    await_state,
    connected,
    deafen,
    fin_wait2,
    over_link,
    over_lo,
    state_of,
    undeafen,
)
from tests.load.segments import ACK, FIN, RST, Capture, Segment, build, capture, inject

N = 23
# A RST of the peer's kernel, which knows nothing of what a test injects, must not end the session.
QUIET = {"net.ipv4.tcp_rfc1337": 1}
CLOSED_PORT = 9
ETHERTYPE = {IPV4: 0x0800, IPV6: 0x86DD}


@pytest.fixture(scope="module")
def wire(kind: str) -> Iterator[Link]:
    """Two namespaces on one link, the client's with somebody on duty."""
    with ExitStack() as stack:
        made = stack.enter_context(link(QUIET))
        stack.enter_context(on_duty(kind, made.client))
        yield made


@pytest.mark.parametrize("where", ["veth", "lo"])
@pytest.mark.parametrize("family", [IPV4, IPV6, MAPPED])
def test_a_fin_whose_ack_was_lost_is_acknowledged(wire: Link, where: str, family: str) -> None:
    """23 peers lose the ACK of their FIN, retransmit it, and get the same ACK again, with a right checksum."""
    assert_fins_are_acknowledged(over_link(wire, family) if where == "veth" else over_lo(wire.client, family))


def assert_fins_are_acknowledged(route: Route) -> None:
    """The passive ends lose the ACK of their FIN."""
    with capture(route.server, route.device) as seen, connected(route, N, CLIENT) as pairs:
        sessions = [pair.session(TIME_WAIT) for pair in pairs]
        for pair in pairs:
            pair.active.shutdown(socket.SHUT_WR)
            assert b"" == pair.passive.recv(1)
            deafen(pair.passive)
            pair.passive.shutdown(socket.SHUT_WR)
            await_state(pair.active, CLOSE)
            assert LAST_ACK == state_of(pair.passive)
            undeafen(pair.passive)
        for pair, session in zip(pairs, sessions, strict=True):
            await_state(pair.passive, CLOSE)
            assert_acknowledged_alike(session, seen.segments())


def assert_acknowledged_alike(session: Session, segments: list[Segment]) -> None:
    """Each FIN of the passive end got one ACK, all alike."""
    got, sent = session.client.tuple, session.server.tuple
    fins = [one for one in segments if one.tuple == sent and one.has(FIN)]
    assert 2 <= len(fins)
    acks = [one for one in segments if one.tuple == got and one.ack == fins[0].end]
    assert [(ACK, acks[0].seq, acks[0].window, b"", True)] * len(fins) == [
        (one.flags, one.seq, one.window, one.payload, one.intact) for one in acks
    ]
    assert not [one for one in segments if one.has(RST) and one.tuple in {sent, got}]


# ---- frames ----


@dataclass(frozen=True)
class Frame:
    """How a packet is framed: `destination` None is the device's own address; tags are (ethertype, VLAN)."""

    name: str
    answered: bool
    destination: bytes | None = None
    tags: tuple[tuple[int, int], ...] = ()
    ethertype: int | None = None
    padding: int = 0
    cut: int = 0
    families: tuple[str, ...] = (IPV4, IPV6)


FRAMES = (
    Frame("plain", answered=True),
    Frame("padded", answered=True, padding=18),
    Frame("cut short", answered=False, cut=1),
    Frame("cut in the TCP header", answered=False, cut=30),
    Frame("cut in the ports", answered=False, cut=50),
    Frame("for another host", answered=False, destination=b"\2\0\0\0\0\1"),
    Frame("broadcast", answered=False, destination=b"\xff" * 6),
    Frame("multicast", answered=False, destination=b"\x33\x33\0\0\0\1"),
    Frame("with a priority tag", answered=True, tags=((0x8100, 0),)),
    Frame("of VLAN 5", answered=False, tags=((0x8100, 5),)),
    Frame("of service VLAN 5", answered=False, tags=((0x88A8, 5),)),
    Frame("of VLAN 5 in service VLAN 6", answered=False, tags=((0x88A8, 6), (0x8100, 5))),
    Frame("IPv4 called IPv6", answered=False, ethertype=0x86DD, families=(IPV4,)),
    Frame("IPv6 called IPv4", answered=False, ethertype=0x0800, families=(IPV6,)),
    Frame("of a protocol nobody speaks", answered=False, ethertype=0x88B5),
)


@pytest.mark.parametrize(
    ("frame", "family"), [(f, family) for f in FRAMES for family in f.families], ids=lambda v: getattr(v, "name", v)
)
def test_only_frames_for_this_host_are_answered(wire: Link, frame: Frame, family: str) -> None:
    """What the stack would not take for a segment of the session gets no ACK; what it would take gets one."""
    route = over_link(wire, family)
    with capture(wire.client, wire.device) as client, capture(wire.server, wire.device) as server:
        end = fin_wait2(route, 1, CLIENT)[0].client
        known = client.seen(*end.tuple)
        fin = Segment(
            *(end.remote, end.remote_port, end.local, end.local_port),
            seq=(known.rcv_nxt - 1) % 2**32,
            ack=known.snd_nxt,
            flags=FIN | ACK,
            tsval=((known.ts_recent or 0) + 1) % 2**32,
            tsecr=known.last_tsval or 0,
        )
        before = len(acks(server, end.tuple))
        send(wire, framed(wire, frame, ETHERTYPE[family], build(fin)))
        settle(wire, server, route)
        after = acks(server, end.tuple)
        assert frame.answered == (len(after) > before)
        assert all(one.intact and one.ack == known.rcv_nxt for one in after[before:])


def acks(wire: Capture, tuple_: tuple[str, int, str, int]) -> list[Segment]:
    """The pure ACKs that an end sent until now."""
    return [one for one in wire.segments() if one.tuple == tuple_ and one.flags == ACK and not one.payload]


def framed(wire: Link, frame: Frame, ethertype: int, packet: bytes) -> bytes:
    """The frame, from the server's device to the client's."""
    head = (frame.destination or address(wire.client, wire.device)) + address(wire.server, wire.device)
    tags = b"".join(kind.to_bytes(2, "big") + vlan.to_bytes(2, "big") for kind, vlan in frame.tags)
    body = packet[: len(packet) - frame.cut] + bytes(frame.padding)
    return head + tags + (frame.ethertype or ethertype).to_bytes(2, "big") + body


def address(ns: Namespace, device: str) -> bytes:
    """The hardware address of a device."""
    with ns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock, ns.entered():
        sock.bind((device, 0))
        raw: bytes = sock.getsockname()[4]
        return raw


def send(wire: Link, frame: bytes) -> None:
    """Send it on the server's device, as it is."""
    with wire.server.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        with wire.server.entered():
            sock.bind((wire.device, 0))
        sock.send(frame)


def settle(wire: Link, server: Capture, route: Route) -> None:
    """Return when the client is done with all frames: one more is sent, and what answers it comes behind the rest."""
    fence = Segment(route.server_address, CLOSED_PORT, route.client_address, CLOSED_PORT, 0, 0, ACK)
    marked = replace(fence, ack=len(server.segments()))
    inject(wire.server, marked)
    back = (*fence.tuple[2:], *fence.tuple[:2])
    wait_until(
        lambda: [s for s in server.segments() if s.tuple == back and s.seq == marked.ack], what="RST of the fence"
    )
