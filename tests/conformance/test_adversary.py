"""An adversary sends segments of every kind, true and spoofed, from everywhere, to a stock host and to a guarded one.

What comes of it must be the same: nobody else's session ends, nobody is told a number that the kernel would not have
told, and what a segment costs is bounded. With --long it is tried again and again, with other numbers.
"""

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest

from tests.load import wait_until
from tests.load.crossing import FAR, NEAR, Crossing, crossing, fin_again, rst_of
from tests.load.daemon import Daemon
from tests.load.duty import CONFIG, NO_VESTIGIAL, STOCK, VESTIGIAL, on_duty
from tests.load.frames import addressed, framed, hardware_address, packet_socket
from tests.load.netns import Namespace
from tests.load.paths import CLIENT, IPV4, IPV6, Route, fin_wait2
from tests.load.segments import ACK, RST, Seen, Segment, build, capture, inject, with_header_checksum
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import libbpf
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(NO_VESTIGIAL is not None, reason=f"{NO_VESTIGIAL}")

# No limit of answers, so that each is comparable; and no RST of the peers' kernels ends what it gets an answer for.
SYSCTLS = {
    "net.ipv4.tcp_rfc1337": 1,
    "net.ipv4.tcp_invalid_ratelimit": 0,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}
# Room for all sessions of a minute.
ROOMY = CONFIG.replace("257", "509")
EACH = 3
SOMEBODY = b"\2\0\0\0\0\x99"  # hardware address of a neighbour on the peer's link
HALF = 2**31
FLOOD_FRAMES, LONG_FLOOD_FRAMES = 60_000, 1_000_000
LONG_TURNS = 23


@dataclass(frozen=True)
class Victim:
    """A session of the host's: where its peer is, its FIN, and what the host knows."""

    place: str
    route: Route
    fin: Segment
    known: Seen

    @property
    def back(self) -> tuple[str, int, str, int]:
        """From the host to the peer."""
        return (*self.fin.tuple[2:], *self.fin.tuple[:2])

    def answer(self, one: Segment) -> tuple[int, ...]:
        """What a segment of the host's says, relative to what it knows."""
        assert one.tsecr is not None
        differences = (
            one.seq - self.known.snd_nxt,
            one.ack - self.known.rcv_nxt,
            one.tsecr - (self.known.ts_recent or 0),
        )
        return one.flags, *(difference % 2**32 for difference in differences), one.window, len(one.payload)


@dataclass(frozen=True)
class Attacked:
    """A host, its victims, and the daemon that guards it."""

    cross: Crossing
    victims: tuple[Victim, ...]
    watch: Daemon | None


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Attacked]]:
    """A stock host and a guarded one; sessions come later, for they last a minute."""
    with ExitStack() as stack:
        made = {}
        for kind in (STOCK, VESTIGIAL):
            cross = stack.enter_context(crossing(SYSCTLS))
            made[kind] = Attacked(cross, (), stack.enter_context(on_duty(kind, cross.host, config=ROOMY)))
        yield made


@pytest.fixture
def turns(*, long: bool) -> range:
    """How often a test is done."""
    return range(LONG_TURNS if long else 1)


def with_victims(host: Attacked) -> Attacked:
    """The host with fresh sessions, alike for each host."""
    return replace(host, victims=tuple(_victims(host.cross)))


def _victims(cross: Crossing) -> Iterator[Victim]:
    for family in (IPV4, IPV6):
        routes = {place: cross.route(family, place) for place in (NEAR, FAR)}
        routes |= {"loopback": cross.within(family, own=False), "own": cross.within(family, own=True)}
        for place, route in routes.items():
            with capture(route.client, route.device) as wire:
                for session in fin_wait2(route, EACH, CLIENT):
                    local = session.client.tuple
                    yield Victim(place, route, fin_again(wire, local), wire.seen(*local))


# ---- what the adversary sends ----


def guesses(victim: Victim, chance: random.Random) -> Iterator[bytes]:
    """A segment with each combination of flags, in the victim's name, by somebody who does not see its numbers.

    Whoever has the exact next sequence number can end a session (RFC 9293, 3.10.7.4), and so is left out.
    """
    for flags in range(256):
        sent = replace(
            victim.fin,
            flags=flags,
            seq=victim.fin.end + chance.choice((-HALF, -70_000, -100, -2, -1, 1, 2, 100, 70_000, HALF - 1)),
            ack=victim.fin.ack + chance.choice((-HALF, -1, 0, 1, 100_000)),
            payload=bytes(chance.choice((0, 0, 1, 700))),
            tsval=chance.choice((None, (victim.known.ts_recent or 0) + chance.choice((-HALF, -1, 0, 1, 1000, HALF)))),
        )
        how = chance.random()
        yield _mangled(build(sent), chance) if how < 0.2 else build(replace(sent, intact=how < 0.9))


def _mangled(packet: bytes, chance: random.Random) -> bytes:
    """The packet, cut short, with other options of TCP, or (IPv4) with options of IP."""
    header = 20 if packet[0] >> 4 == 4 else 40
    how = chance.randrange(3)
    if how == 0:
        return packet[: chance.randrange(header, len(packet))]
    if how == 1 or header == 40:  # the checksum is wrong then
        return packet[: header + 12] + bytes([chance.randrange(256)]) + packet[header + 13 :]
    options = chance.choice((b"\1\1\1\1", b"\x94\4\0\0", b"\x83\7\x08\x0a\x4e\0\1\0"))
    first = struct.pack("!BBH", 0x45 + len(options) // 4, packet[1], len(packet) + len(options))
    return with_header_checksum(first + packet[4:20] + options) + packet[20:]


def _fragments(packet: bytes) -> list[bytes]:
    """An IPv4 packet in two; of IPv6 the first half of one."""
    if packet[0] >> 4 == 6:
        first = struct.pack("!BBHI", packet[6], 0, 1, 7)
        return [packet[:4] + struct.pack("!HB", 32, 44) + packet[7:40] + first + packet[40:64]]
    head = [
        packet[:2] + struct.pack("!HHH", 20 + size, 7, where) + packet[8:20] for size, where in ((16, 0x2000), (24, 2))
    ]
    return [with_header_checksum(head[0]) + packet[20:36], with_header_checksum(head[1]) + packet[36:60]]


# ---- from where ----

Sender = Callable[[Crossing, list[bytes]], None]
SENDERS: dict[str, Sender] = {
    "neighbour": lambda cross, packets: cross.from_peer(*packets, source=SOMEBODY),
    "stranger": lambda cross, packets: cross.from_stranger(*packets),
    "outsider": lambda cross, packets: cross.from_outsider(*packets),
}


def attacked(host: Attacked, sender: str, packets: Callable[[Victim], list[bytes]]) -> Counter[tuple[int, ...]]:
    """Send packets in the name of each victim; what their peers get, by the victim's number.

    Nobody but the peers gets a segment of a session of theirs, and of sessions within the host nobody does.
    """
    cross = host.cross
    with (
        capture(cross.peer, "veth0") as link,
        addressed(cross.peer, "veth0") as frames,
        capture(cross.stranger, "veth0") as stranger,
        capture(cross.outsider, "veth0") as outsider,
    ):
        for victim in host.victims:
            SENDERS[sender](cross, packets(victim))
        by_tuple = {victim.back: number for number, victim in enumerate(host.victims)}
        others = stranger.segments() + outsider.segments() + [one for to, one in frames.found() if to == SOMEBODY]
        assert [] == [one for one in others if one.tuple in by_tuple]
        found = [(by_tuple[one.tuple], one) for one in link.segments() if one.tuple in by_tuple]
    assert {host.victims[number].place for number, _ in found} <= {NEAR, FAR}
    return Counter((number, *host.victims[number].answer(one)) for number, one in found)


def assert_on_duty(host: Attacked) -> None:
    """Each session is there as it was: its peer's FIN gets the ACK with all numbers as they were."""
    for victim in host.victims:
        ns, device = victim.route.server, "lo" if victim.route.device == "lo" else "veth0"
        with capture(ns, device) as wire:
            inject(ns, victim.fin)
            wait_until(lambda: [one for one in wire.segments() if one.tuple == victim.back], what="an answer")  # noqa: B023
            one = next(one for one in wire.segments() if one.tuple == victim.back)
        assert (ACK, 0, 0, 0, victim.known.window, 0) == victim.answer(one), victim


@pytest.mark.parametrize("sender", SENDERS)
def test_who_guesses_gets_nothing_and_causes_what_the_kernel_does(
    hosts: dict[str, Attacked], sender: str, turns: range
) -> None:
    """Every combination of flags, around the window and far from it: the peers get the same from both hosts."""
    for turn in turns:
        stock, guarded = (answers_to_guesses(with_victims(host), sender, turn) for host in hosts.values())
        assert stock == guarded
        assert sum(stock.values()) > 500


def answers_to_guesses(host: Attacked, sender: str, turn: int) -> Counter[tuple[int, ...]]:
    """What the peers get."""
    chance = random.Random(f"{sender} {turn}")  # noqa: S311 - repeatable
    found = attacked(host, sender, lambda victim: list(guesses(victim, chance)))
    assert_on_duty(host)
    return found


@pytest.mark.parametrize("sender", SENDERS)
def test_who_knows_the_numbers_of_a_session_within_the_host_has_no_use_for_them(
    hosts: dict[str, Attacked], sender: str
) -> None:
    """Its FIN and its RST, exact: no answer, and no end. Of IPv6 the kernel takes those from an own address."""
    for kind, host in ((kind, with_victims(host)) for kind, host in hosts.items()):
        taken = set() if kind == VESTIGIAL else {("own", IPV6)}
        within = (one for one in host.victims if one.route.device == "lo")
        victims = tuple(one for one in within if (one.place, one.route.family) not in taken)
        with _assassinable(host):
            assert not attacked(replace(host, victims=victims), sender, exact)
        assert_on_duty(host)


@pytest.mark.vm("tracepoint")
def test_a_peer_ends_its_own_session_alone(hosts: dict[str, Attacked]) -> None:
    """Its RST does that; all others are as they were."""
    for host in map(with_victims, hosts.values()):
        with capture(host.cross.host, "veth0") as wire:
            local = fin_wait2(host.cross.route(IPV4), 1, CLIENT)[0].client.tuple
            fin = fin_again(wire, local)
        with _assassinable(host):
            host.cross.from_peer(build(rst_of(fin)))
        with capture(host.cross.peer, "veth0") as link:
            host.cross.from_peer(build(fin))
            assert [RST] == [one.flags for one in link.segments() if one.tuple == local]
        assert_on_duty(host)


def exact(victim: Victim) -> list[bytes]:
    """The FIN and the RST that the victim's peer could send."""
    return [build(victim.fin), build(rst_of(victim.fin))]


@contextmanager
def _assassinable(host: Attacked) -> Iterator[None]:
    """A RST with the next sequence number ends a session meanwhile."""
    host.cross.host.sysctl("net.ipv4.tcp_rfc1337", 0)
    yield
    host.cross.host.sysctl("net.ipv4.tcp_rfc1337", 1)


# ---- at line rate ----


def test_a_flood_ends_nothing_and_takes_no_room(hosts: dict[str, Attacked], turns: range) -> None:
    """Fragments, too, and with the usual limit of answers: each segment is dealt with once, and costs no vestige."""
    watch = hosts[VESTIGIAL].watch
    assert watch
    table = Table(watch.pins / "current")
    for turn in turns:
        host = with_victims(hosts[VESTIGIAL])
        host.cross.host.sysctl("net.ipv4.tcp_invalid_ratelimit", 500)
        frames = list(_flood(host, turn))
        heads, kept, actions = _heads(table), _kept(table), sum(table.actions().values())
        sent = _send(frames, FLOOD_FRAMES if len(turns) == 1 else LONG_FLOOD_FRAMES)
        assert (heads, kept) == (_heads(table), _kept(table))
        assert sent / 2 < sum(table.actions().values()) - actions <= sent
        assert_on_duty(host)


def _send(frames: list[tuple[Namespace, bytes]], least: int) -> int:
    """All of them again and again, as fast as can be; how many were sent."""
    sent = 0
    with ExitStack() as stack:
        sockets = {ns: stack.enter_context(packet_socket(ns, "veth0", protocol=0)) for ns in {ns for ns, _ in frames}}
        while sent < least:
            for ns, frame in frames:
                sockets[ns].send(frame)
            sent += len(frames)
        return sent


def _flood(host: Attacked, turn: int) -> Iterator[tuple[Namespace, bytes]]:
    """Who sends what, one after the other."""
    cross, chance = host.cross, random.Random(turn)  # noqa: S311 - repeatable
    ends = (
        (cross.peer, hardware_address(cross.host, "veth0"), SOMEBODY),
        (cross.stranger, hardware_address(cross.host, "veth1"), hardware_address(cross.stranger, "veth0")),
        (cross.outsider, hardware_address(cross.peer, "veth1"), hardware_address(cross.outsider, "veth0")),
    )
    for victim in host.victims:
        for packet in (*guesses(victim, chance), *(part for whole in exact(victim) for part in _fragments(whole))):
            ns, destination, source = chance.choice(ends)
            yield ns, framed(destination, source, packet)


def _heads(table: Table) -> list[int]:
    """How far the rings have turned."""
    return [table.ring(class_, family)[0] for class_ in Class for family in FAMILIES]


def _kept(table: Table) -> tuple[int, int]:
    """How many sessions have ended, and how many have a TOS."""
    return sum(table.counters().values["ended"]), len(libbpf.map_items(table.fd("tos")))
