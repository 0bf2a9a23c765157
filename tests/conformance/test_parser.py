"""Packets that are unusual, wrong or random: what the stack would take for a segment, and nothing else."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.load.duty import FIN_WAIT2, TIME_WAIT, After, Duty, Reply, Sent, Subject
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED, connected, over_lo
from tests.load.peer import Connection
from tests.load.segments import ACK, FIN, PSH, RST, SYN, build, checksum, pseudo_header, with_header_checksum

Duties = Callable[..., Duty]
Wrap = Callable[[bytes], list[bytes]]
N = 23
EXAMPLES = 503
JUMBO = 65_000  # MTU
FAMILIES = (IPV4, IPV6, MAPPED)
AGAIN = Sent(FIN | ACK, seq=-1)  # the repeated FIN: all who take it answer it
HOP_BY_HOP, FRAGMENT, NO_NEXT_HEADER, DESTINATION = 0, 44, 59, 60


def write(subject: Subject, *packets: bytes) -> list[Reply]:
    """Send packets; the device itself refuses those that are of no IP version."""
    for packet in packets:
        with suppress(OSError):
            subject.duty.peer.write(packet)
    return subject.write()


# ---- IPv4 ----


def ipv4(packet: bytes, **fields: int | bytes) -> bytes:
    """The packet with some fields of its header changed, and the right header checksum."""
    places = {"first": (0, 1), "tos": (1, 1), "total": (2, 2), "identification": (4, 2), "fragment": (6, 2)}
    places |= {"ttl": (8, 1), "protocol": (9, 1), "source": (12, 4), "destination": (16, 4)}
    header, rest = packet[:20], packet[20:]
    for name, value in fields.items():
        at, size = places[name]
        header = (
            header[:at] + (value if isinstance(value, bytes) else value.to_bytes(size, "big")) + header[at + size :]
        )
    return with_header_checksum(header) + rest


def with_ipv4_options(options: bytes) -> Wrap:
    """The packet with IP options."""

    def wrap(packet: bytes) -> list[bytes]:
        header = ipv4(packet, first=0x45 + len(options) // 4, total=len(packet) + len(options))[:20]
        return [with_header_checksum(header + options) + packet[20:]]

    return wrap


def ipv4_fragments(packet: bytes, at: int = 16) -> list[bytes]:
    """The packet in two, cut inside the TCP header."""
    own = ipv4(packet, identification=4711)
    head, tail = own[: 20 + at], own[:20] + own[20 + at :]
    return [ipv4(head, total=len(head), fragment=0x2000), ipv4(tail, total=len(tail), fragment=at // 8)]


# ---- IPv6 ----


def with_ipv6_headers(*kinds: int, options: bytes = b"\1\4\0\0\0\0") -> Wrap:
    """The packet with extension headers of eight bytes each, that hold `options` (PadN)."""

    def wrap(packet: bytes) -> list[bytes]:
        following = [*kinds[1:], socket.IPPROTO_TCP]
        extra = b"".join(bytes([after, 0]) + options for after in following)
        return [ipv6(packet[:40] + extra + packet[40:], following=kinds[0])]

    return wrap


def ipv6(packet: bytes, following: int | None = None, length: int | None = None) -> bytes:
    """The packet with another next header, and its length set right (unless `length` is given)."""
    size = len(packet) - 40 if length is None else length
    kind = packet[6] if following is None else following
    return packet[:4] + struct.pack("!HB", size, kind) + packet[7:]


def ipv6_fragments(packet: bytes, at: int = 24) -> list[bytes]:
    """The packet in two, cut inside the TCP options: RFC 8200, 4.5, wants all headers in the first fragment."""
    parts = ((0, 1, packet[40 : 40 + at]), (at, 0, packet[40 + at :]))
    extra = (struct.pack("!BBHI", socket.IPPROTO_TCP, 0, start | more, 4711) + part for start, more, part in parts)
    return [ipv6(packet[:40] + each, following=FRAGMENT) for each in extra]


# ---- TCP ----


def tcp(packet: bytes, **fields: int) -> bytes:
    """The packet with some bytes of its TCP header changed (`b12=...` and so on), cut (`size`), and checksums right."""
    start, family = (20, socket.AF_INET) if packet[0] >> 4 == 4 else (40, socket.AF_INET6)
    part = bytearray(packet[start:][: fields.pop("size", None)])
    for name, value in fields.items():
        part[int(name[1:])] = value
    addresses = packet[12:20] if family == socket.AF_INET else packet[8:40]
    part[16:18] = bytes(2)[: max(len(part) - 16, 0)]
    half = len(addresses) // 2
    right = checksum(pseudo_header(addresses[:half], addresses[half:], len(part)) + bytes(part))
    part[16:18] = right.to_bytes(2, "big")[: max(len(part) - 16, 0)]
    whole = packet[:start] + bytes(part)
    return ipv4(whole, total=len(whole)) if family == socket.AF_INET else ipv6(whole)


@dataclass(frozen=True)
class Odd:
    """A way to send the repeated FIN, and whether it is answered."""

    name: str
    wrap: Wrap
    answered: bool
    families: tuple[str, ...]


def odd(name: str, wrap: Callable[[bytes], bytes], *, answered: bool, families: tuple[str, ...]) -> Odd:
    """One packet for one packet."""
    return Odd(name, lambda packet: [wrap(packet)], answered, families)


BOTH, V4, V6 = (IPV4, IPV6), (IPV4,), (IPV6,)
ODD = (
    odd("as it is", lambda p: p, answered=True, families=BOTH),
    odd("with bytes behind it", lambda p: p + b"behind", answered=True, families=BOTH),
    odd("one byte short", lambda p: p[:-1], answered=False, families=BOTH),
    odd("data offset 4", lambda p: tcp(p, b12=0x40), answered=False, families=BOTH),
    odd("data offset 0", lambda p: tcp(p, b12=0x00), answered=False, families=BOTH),
    odd("data offset beyond the end", lambda p: tcp(p, b12=0xF0), answered=False, families=BOTH),
    odd("options taken for data", lambda p: tcp(p, b12=0x50), answered=True, families=BOTH),
    odd("reserved bits, ECE and CWR", lambda p: tcp(p, b12=0x8F, b13=0xD1), answered=True, families=BOTH),
    odd("window 0, urgent pointer", lambda p: tcp(p, b14=0, b15=0, b18=1), answered=True, families=BOTH),
    Odd("NOPs", with_ipv4_options(b"\1\1\1\1"), answered=True, families=V4),
    Odd("40 bytes of options", with_ipv4_options(b"\1" * 39 + b"\0"), answered=True, families=V4),
    Odd("router alert", with_ipv4_options(b"\x94\4\0\0"), answered=True, families=V4),
    Odd("record route", with_ipv4_options(b"\7\7\4\0\0\0\0\0"), answered=True, families=V4),
    Odd("loose source route", with_ipv4_options(b"\x83\7\x08\x0a\x4e\0\1\0"), answered=False, families=V4),
    Odd("strict source route", with_ipv4_options(b"\x89\7\x08\x0a\x4e\0\1\0"), answered=False, families=V4),
    Odd("an option longer than the header", with_ipv4_options(b"\7\x27\4\0"), answered=False, families=V4),
    odd("another protocol", lambda p: ipv4(p, protocol=17), answered=False, families=V4),
    odd("time to live 1", lambda p: ipv4(p, ttl=1), answered=True, families=V4),
    odd("another destination", lambda p: ipv4(p, destination=b"\x0a\x4e\0\3"), answered=False, families=V4),
    odd("another source", lambda p: ipv4(p, source=b"\x0a\x4e\0\3"), answered=False, families=V4),
    odd("total length too long", lambda p: ipv4(p, total=len(p) + 1), answered=False, families=V4),
    odd("total length of the header", lambda p: ipv4(p, total=20), answered=False, families=V4),
    odd("total length below the header", lambda p: ipv4(p, total=19), answered=False, families=V4),
    odd("header length below the header", lambda p: ipv4(p, first=0x44), answered=False, families=V4),
    odd("header length beyond the packet", lambda p: ipv4(p[:40], first=0x4F, total=40), answered=False, families=V4),
    odd("the evil bit", lambda p: ipv4(p, fragment=0x8000), answered=True, families=V4),
    Odd("in two fragments", ipv4_fragments, answered=True, families=V4),
    Odd("the first fragment", lambda p: ipv4_fragments(p)[:1], answered=False, families=V4),
    Odd("the last fragment", lambda p: ipv4_fragments(p)[1:], answered=False, families=V4),
    odd("whole, more to come", lambda p: ipv4(p, fragment=0x2000, identification=1), answered=False, families=V4),
    odd("not the first", lambda p: ipv4(p, fragment=0x0001, identification=2), answered=False, families=V4),
    Odd("hop-by-hop options", with_ipv6_headers(HOP_BY_HOP), answered=True, families=V6),
    Odd("destination options", with_ipv6_headers(DESTINATION), answered=True, families=V6),
    Odd("both", with_ipv6_headers(HOP_BY_HOP, DESTINATION), answered=True, families=V6),
    Odd("destination options twice", with_ipv6_headers(DESTINATION, DESTINATION), answered=True, families=V6),
    Odd("an atomic fragment", with_ipv6_headers(FRAGMENT, options=b"\0\0\0\0\0\1"), answered=True, families=V6),
    Odd(
        "dropped by its options",
        with_ipv6_headers(DESTINATION, options=b"\x41\4\0\0\0\0"),
        answered=False,
        families=V6,
    ),
    Odd("hop-by-hop second", with_ipv6_headers(DESTINATION, HOP_BY_HOP), answered=False, families=V6),
    Odd("in two fragments", ipv6_fragments, answered=True, families=V6),
    Odd("cut in the TCP header", lambda p: ipv6_fragments(p, 16), answered=False, families=V6),
    Odd("the first fragment", lambda p: ipv6_fragments(p)[:1], answered=False, families=V6),
    Odd("the last fragment", lambda p: ipv6_fragments(p)[1:], answered=False, families=V6),
    odd("nothing follows", lambda p: ipv6(p, following=NO_NEXT_HEADER), answered=False, families=V6),
    odd("length too long", lambda p: ipv6(p, length=len(p) - 39), answered=False, families=V6),
    odd("length 0", lambda p: ipv6(p, length=0), answered=False, families=V6),
    odd("cut after the ports", lambda p: tcp(p, size=4), answered=False, families=BOTH),
    odd("cut before the options", lambda p: tcp(p, size=20), answered=False, families=BOTH),
)


@pytest.mark.parametrize(
    ("how", "family"),
    [(each, family) for each in ODD for family in each.families],
    ids=lambda value: getattr(value, "name", value),
)
def test_odd_packets(duties: Duties, how: Odd, family: str) -> None:
    """A repeated FIN that the stack takes gets the ACK and restarts the timer; one that it drops does nothing."""
    subject = duties().aged(family=family)
    before = subject.fires()
    replies = write(subject, *how.wrap(build(subject.segment(AGAIN))))
    if how.name == "in two fragments" and subject.duty.watch:
        # the guard does not put fragments together: the stack does, and knows no such connection
        assert [RST] == [each.flags for each in replies]
        assert not subject.restarted(before)
        return
    assert ([subject.acknowledgment()] if how.answered else []) == replies
    assert After(TIME_WAIT) == subject.after()
    assert how.answered == subject.restarted(before)


@pytest.fixture
def jumbo(duties: Duties) -> Iterator[Duty]:
    """A duty whose device takes packets of any size; nobody has looked at their checksums."""
    made = duties()
    made.ns.ip("link", "set", made.peer.device, "mtu", str(JUMBO))
    yield made
    made.ns.ip("link", "set", made.peer.device, "mtu", "1500")


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("length", [511, 16_000, 17_001, JUMBO - 60])
def test_a_segment_may_have_any_length(jumbo: Duty, length: int, family: str) -> None:
    """Late data and FIN: all of it is summed up."""
    subject = jumbo.session(family=family, timestamps=False)
    sent = Sent(FIN | ACK, seq=-length - 1, length=length)
    assert [subject.acknowledgment()] == subject.send(sent)
    wrong = flipped(subject.packet(sent), 8 * (length + 30))
    assert [] == write(subject, wrong)


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_packets_cut_anywhere_do_nothing(duties: Duties, family: str) -> None:
    """Of any length below its own, with the old length in its header or the new one, a packet is not a segment."""
    subject = duties().aged(family=family)
    before = subject.fires()
    whole = build(subject.segment(AGAIN))
    header = 20 if family == IPV4 else 40
    cut = [whole[:size] for size in range(len(whole))]
    cut += [tcp(whole, size=size) for size in range(len(whole) - header)]
    assert [[]] * len(cut) == [write(subject, packet) for packet in cut]
    assert After(TIME_WAIT) == subject.after()
    assert not subject.restarted(before)


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_every_single_bit_is_looked_at(duties: Duties, family: str, flags: int) -> None:
    """With one bit wrong a packet does nothing, but in what no checksum of IPv6 covers: class, label and hop limit."""
    subject = duties().aged(family=family)
    before = subject.fires()
    sent = Sent(flags, seq=-1 if flags & FIN else 0)
    whole = build(subject.segment(sent))
    free = set() if family == IPV4 else {*range(4, 32), *range(56, 64)}
    bits = [bit for bit in range(8 * len(whole)) if bit not in free]
    assert [[]] * len(bits) == [write(subject, flipped(whole, bit)) for bit in bits]
    assert After(TIME_WAIT) == subject.after()
    assert not subject.restarted(before)
    if flags & FIN:
        assert [[subject.acknowledgment()]] * len(free) == [write(subject, flipped(whole, bit)) for bit in free]


def flipped(packet: bytes, bit: int) -> bytes:
    """The packet with one bit wrong."""
    return packet[: bit // 8] + bytes([packet[bit // 8] ^ 0x80 >> bit % 8]) + packet[bit // 8 + 1 :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_a_wrong_checksum_does_nothing(duties: Duties, state: str, family: str) -> None:
    """No reply, no end and no new timer or timestamp by a segment whose TCP checksum is wrong."""
    subject = duties().aged(state, family)
    before = subject.fires()
    for sent in (
        *(Sent(RST), Sent(RST | ACK), Sent(FIN | ACK), AGAIN, Sent(ACK, ts=1000), Sent(SYN, seq=1), Sent(SYN)),
        *(Sent(ACK | PSH, length=10), Sent(ACK, seq=-1), Sent(0), Sent(SYN | ACK)),
    ):
        assert [] == write(subject, build(replace(subject.segment(sent), intact=False)))
    assert After(state) == subject.after()
    assert not subject.restarted(before)


@pytest.fixture(scope="module")
def target(duties: Duties) -> Subject:
    """One session for all random packets, which must not end it."""
    return duties().session()


fixed = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@fixed
@given(packet=st.binary(min_size=1, max_size=120), version=st.sampled_from([0x40, 0x45, 0x46, 0x4F, 0x60]))
def test_random_packets_do_nothing(target: Subject, packet: bytes, version: int) -> None:
    """Random bytes behind a version of IP get no reply, and the session is still there."""
    assert [] == write(target, bytes([version]) + packet)
    assert After(TIME_WAIT) == target.after()


@fixed
@given(part=st.binary(min_size=14, max_size=80))
def test_random_segments_with_a_wrong_checksum_do_nothing(target: Subject, part: bytes) -> None:
    """Random bytes behind the session's own addresses and ports get no reply, and the session is still there."""
    own = build(target.segment(AGAIN))
    packet = bytearray(tcp(own[:24] + part, b17=0))
    packet[37] ^= 0x01
    assert [] == write(target, bytes(packet))
    assert After(TIME_WAIT) == target.after()


@pytest.fixture
def neighbours(duties: Duties) -> Iterator[tuple[Subject, Connection, socket.socket]]:
    """A session in TIME_WAIT, and a live connection that differs from it in the peer's port alone."""
    duty = duties()
    with duty.served() as (subject, listener):
        live = duty.peer.connect(subject.connection.remote, subject.connection.remote_port)
        with listener.accept()[0] as sock:
            yield subject, live, sock


def test_live_connections_are_not_disturbed(
    duties: Duties, neighbours: tuple[Subject, Connection, socket.socket]
) -> None:
    """While their neighbour answers for TIME_WAIT, bytes go both ways, in and out of the namespace and over lo."""
    subject, live, sock = neighbours
    with connected(over_lo(duties().ns), 1, CLIENT) as pairs:
        for i in range(N):
            word = f"{i:04}".encode()
            assert [subject.acknowledgment()] == subject.send(AGAIN)
            write(subject, build(replace(subject.segment(Sent(RST)), intact=False)))
            assert [subject.acknowledgment()] == subject.send(Sent(ACK | PSH, length=10))
            live.send(ACK | PSH, word)
            assert word == sock.recv(64)
            sock.sendall(word)
            while live.expect(ACK).payload != word:
                pass
            live.send(ACK)
            pairs[0].active.sendall(word)
            assert word == pairs[0].passive.recv(64)
    assert [] == subject.send(Sent(RST))
    live.send(ACK | PSH, b"the neighbour is gone")
    assert b"the neighbour is gone" == sock.recv(64)


def test_wrong_segments_of_a_live_connection_do_it_no_harm(
    neighbours: tuple[Subject, Connection, socket.socket],
) -> None:
    """What nobody takes for a segment of the connection changes nothing in it either."""
    _subject, live, sock = neighbours
    last = live.segments[-1]
    for i in range(N):
        for flags in (RST, RST | ACK, FIN | ACK, SYN, ACK | PSH):
            wrong = replace(last, flags=flags, seq=live.snd_nxt, ack=live.rcv_nxt, payload=b"wrong", intact=False)
            live.peer.write(build(wrong))
        word = f"{i:04}".encode()
        live.send(ACK | PSH, word)
        assert word == sock.recv(64)
