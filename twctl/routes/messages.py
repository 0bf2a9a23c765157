"""The kernel's messages about routes, links and nexthop objects, decoded from raw bytes (rtnetlink(7)).

pyroute2 takes 50 us and more to decode one route, which is a minute for the 1,000,000 routes of a BGP host. Here the
`Screen` looks at the bytes and lets through only messages that can change a class; the rest costs about a microsecond.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from twctl.addresses import Address, Network
from twctl.linux.netlink import HEADER, Message, ask, part_of

with part_of("pyroute2"):
    from pyroute2.netlink import NLM_F_DUMP_INTR
    from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, rt_type

# Newer than pyroute2's lists: include/uapi/linux/rtnetlink.h and nexthop.h.
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
RTNLGRP_NEXTHOP = 32
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH = 1, 4, 5, 6, 7, 9
RTA_TABLE, RTA_VIA, RTA_NH_ID = 15, 18, 30
NHA_ID, NHA_GROUP, NHA_BLACKHOLE, NHA_OIF, NHA_GATEWAY = 1, 2, 4, 5, 6
IFLA_IFNAME, IFLA_EXT_MASK = 3, 29
RTEXT_FILTER_SKIP_STATS = 8
RTM_F_CLONED, RTM_F_FIB_MATCH = 0x200, 0x2000
UNICAST, LOCAL = rt_type["unicast"], rt_type["local"]
_ABOUT_ROUTES = frozenset((RTM_NEWROUTE, RTM_DELROUTE))
_VIA = frozenset((RTA_GATEWAY, RTA_VIA))
BLOCKED = frozenset(rt_type[name] for name in ("blackhole", "unreachable", "prohibit"))

RTMSG = struct.Struct("=8BI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_MESSAGE = struct.Struct("=IHH8xBB5xBI")  # both at once: length, type, flags, family, dst_len, route type, route flags
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_WORDS: dict[int, struct.Struct] = {socket.AF_INET: struct.Struct(">I"), socket.AF_INET6: struct.Struct(">QQ")}
_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}


class Hop(NamedTuple):
    """A next hop: interface index (0: none) and gateway address in network order (empty: none)."""

    link: int
    gateway: bytes


class RouteMessage(NamedTuple):
    """A route as the kernel identifies it: equal messages are the same route."""

    family: int
    destination: int
    length: int
    table: int
    tos: int
    metric: int
    type: int
    protocol: int
    source: bytes
    nexthop: int
    hops: tuple[Hop, ...]

    @property
    def slot(self) -> tuple[int, ...]:
        """What NLM_F_REPLACE replaces: everything but where the route leads to."""
        return self[:6]

    @property
    def prefix(self) -> Network:
        """Destination as a network."""
        packed = self.destination.to_bytes(_BITS[self.family] // 8, "big")
        return ipaddress.ip_network((packed, self.length))


class Nexthop(NamedTuple):
    """A nexthop object (ip-nexthop(8)); a group has members (their ids) instead of a hop."""

    hop: Hop
    members: tuple[int, ...]
    blackhole: bool


class Link(NamedTuple):
    """An interface: name and IFF_ flags."""

    name: str
    flags: int


class Screen:
    """Tells from raw bytes which messages can matter.

    prefixes: those on-link, as (family, address, length). onlink_nexthops: ids of nexthop objects without a gateway.
    seen: messages looked at so far. interrupted: the kernel said that a dump was inconsistent.

    A route without a gateway always matters, a route to elsewhere only inside one of the prefixes.
    """

    def __init__(
        self, prefixes: Iterable[tuple[int, int, int]] = (), onlink_nexthops: frozenset[int] = frozenset()
    ) -> None:
        self.prefixes = frozenset(prefixes)
        self.onlink_nexthops = onlink_nexthops
        self.seen = 0
        self.interrupted = False
        covers: dict[int, dict[int, set[int]]] = {socket.AF_INET: {}, socket.AF_INET6: {}}
        for family, address, length in self.prefixes:
            covers[family].setdefault(length, set()).add(address >> _BITS[family] - length)
        # Shortest first.
        self._covers = {family: sorted(by_length.items()) for family, by_length in covers.items()}

    def covers(self, family: int, destination: int, length: int) -> bool:
        """Whether a prefix lies inside (or is) one of the on-link prefixes."""
        bits = _BITS[family]
        for outer, known in self._covers[family]:
            if outer > length:
                return False
            if destination >> bits - outer in known:
                return True
        return False

    def select(self, buffer: bytearray, size: int) -> Iterator[Message]:
        """The messages in the first size bytes that can matter; all that are not about routes are among them."""
        start = 0
        while start < size:
            length, type_, flags = HEADER.unpack_from(buffer, start)[:3]
            if flags & NLM_F_DUMP_INTR:
                self.interrupted = True
            self.seen += 1
            end = start + length
            if type_ not in _ABOUT_ROUTES or self._matters(buffer, start, end):
                yield Message(type_, flags, start, end)
            start = end + 3 & ~3

    def _matters(self, buffer: bytearray, start: int, end: int) -> bool:
        # The hot path, once for each of a million routes: no slices, no objects.
        _, _, _, family, length, type_, flags = _MESSAGE.unpack_from(buffer, start)
        if type_ == LOCAL:
            return True
        if (type_ != UNICAST and type_ not in BLOCKED) or flags & RTM_F_CLONED or family not in _BITS:
            return False
        elsewhere, destination_at = self._look(buffer, start + 28, end, type_ != UNICAST, length)
        if elsewhere and not self._covers[family]:
            return False
        destination = _address(buffer, destination_at, family) if destination_at else 0
        if elsewhere:
            return self.covers(family, destination, length)
        # The class of fe80::/10 is built in: thousands of interfaces must not keep thousands of equal routes.
        return not (family == socket.AF_INET6 and length and destination >> 118 == 0xFE80 >> 6)

    def _look(self, buffer: bytearray, at: int, end: int, elsewhere: bool, length: int) -> tuple[bool, int]:  # noqa: FBT001
        """Whether a route leads elsewhere than to a neighbour, and where its destination stands (0: nowhere)."""
        destination_at = 0
        while at < end and not (elsewhere and (destination_at or not length)):
            size, attribute = _ATTRIBUTE.unpack_from(buffer, at)
            if attribute == RTA_DST:
                destination_at = at + 4
            elif attribute in _VIA:
                elsewhere = True
            elif attribute == RTA_NH_ID:
                elsewhere |= _U32.unpack_from(buffer, at + 4)[0] not in self.onlink_nexthops
            elif attribute == RTA_MULTIPATH:
                elsewhere |= any(hop.gateway for hop in _hops(buffer, at + 4, at + size))
            at += size + 3 & ~3
        return elsewhere, destination_at


def _address(buffer: bytearray, at: int, family: int) -> int:
    words = _WORDS[family].unpack_from(buffer, at)
    return int(words[0]) if family == socket.AF_INET else int(words[0]) << 64 | int(words[1])


def _attributes(buffer: bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of each attribute's value."""
    while at < end:
        size, type_ = _ATTRIBUTE.unpack_from(buffer, at)
        yield type_, at + 4, at + size
        at += size + 3 & ~3


def attributes_of(buffer: bytearray, at: int, end: int) -> dict[int, bytes]:
    """Attributes by type; of one that is there twice the last."""
    return {type_: bytes(buffer[first:last]) for type_, first, last in _attributes(buffer, at, end)}


def _u32(value: bytes | None, default: int = 0) -> int:
    return default if value is None else int(_U32.unpack(value)[0])


def _gateway(values: dict[int, bytes]) -> bytes:
    # struct rtvia: a 16-bit family stands before the address.
    return values.get(RTA_GATEWAY) or values.get(RTA_VIA, b"")[2:]


def _hops(buffer: bytearray, at: int, end: int) -> tuple[Hop, ...]:
    """Hops of RTA_MULTIPATH, an array of struct rtnexthop (length, flags, weight, interface) with attributes."""
    hops = []
    while at + 8 <= end:
        size, _, _, link = struct.unpack_from("=HBBi", buffer, at)
        hops.append(Hop(link, _gateway(attributes_of(buffer, at + 8, at + size))))
        at += max(8, size + 3 & ~3)
    return tuple(hops)


def decode_route(buffer: bytearray, message: Message) -> RouteMessage:
    """The route of an RTM_NEWROUTE or RTM_DELROUTE message."""
    family, length, _, tos, table, protocol, _, type_, _ = RTMSG.unpack_from(buffer, message.start + 16)
    values = attributes_of(buffer, message.start + 28, message.end)
    nexthop = _u32(values.get(RTA_NH_ID))
    return RouteMessage(
        family,
        int.from_bytes(values.get(RTA_DST, b""), "big"),
        length,
        _u32(values.get(RTA_TABLE), table),
        tos,
        _u32(values.get(RTA_PRIORITY)),
        type_,
        protocol,
        values.get(RTA_PREFSRC, b""),
        nexthop,
        # The object says where its routes lead to, and may change without a message for each of them.
        () if nexthop else _route_hops(buffer, message, values),
    )


def _route_hops(buffer: bytearray, message: Message, values: dict[int, bytes]) -> tuple[Hop, ...]:
    for type_, first, last in _attributes(buffer, message.start + 28, message.end):
        if type_ == RTA_MULTIPATH:
            return _hops(buffer, first, last)
    return (Hop(_u32(values.get(RTA_OIF)), _gateway(values)),)


def decode_nexthop(buffer: bytearray, message: Message) -> tuple[int, Nexthop]:
    """Id and object of an RTM_NEWNEXTHOP or RTM_DELNEXTHOP message (struct nhmsg, 8 bytes, then attributes)."""
    values = attributes_of(buffer, message.start + 24, message.end)
    members = tuple(_U32.unpack_from(group)[0] for group in _chunks(values.get(NHA_GROUP, b""), 8))
    hop = Hop(_u32(values.get(NHA_OIF)), values.get(NHA_GATEWAY, b""))
    return _u32(values.get(NHA_ID)), Nexthop(hop, members, NHA_BLACKHOLE in values)


def _chunks(value: bytes, size: int) -> list[bytes]:
    return [value[at : at + size] for at in range(0, len(value), size)]


def decode_link(buffer: bytearray, message: Message) -> tuple[int, int, Link]:
    """(family, index, link) of an RTM_NEWLINK or RTM_DELLINK message (struct ifinfomsg).

    Only family AF_UNSPEC speaks of the link itself: an RTM_DELLINK of AF_BRIDGE is a port that left its bridge.
    """
    family, index, flags = struct.unpack_from("=BxxxiI", buffer, message.start + 16)
    name = attributes_of(buffer, message.start + 32, message.end).get(IFLA_IFNAME, b"")
    return family, index, Link(name.rstrip(b"\0").decode(), flags)


def route_request(family: int, protocol: int = 0) -> bytes:
    """Body of an RTM_GETROUTE dump: one family's routes in all tables, of one protocol or (0) of all."""
    return RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)


def match_request(address: Address) -> bytes:
    """Body of an RTM_GETROUTE question: the route in the table that decides for an address, not a copy of it."""
    family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
    packed = address.packed
    body = RTMSG.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    return body + _ATTRIBUTE.pack(4 + len(packed), RTA_DST) + packed


def link_request() -> bytes:
    """Body of an RTM_GETLINK dump, without the counters that make up most of an answer."""
    return struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


def nexthop_request() -> bytes:
    """Body of an RTM_GETNEXTHOP dump (struct nhmsg)."""
    return bytes(8)


def routes_of(sock: socket.socket, family: int, screen: Screen, protocol: int = 0) -> Iterator[RouteMessage]:
    """The routes of a family that can matter. A kernel without the family has none. Raises OSError."""
    for buffer, message in ask(sock, RTM_GETROUTE, route_request(family, protocol), screen.select):
        # Without IPv6 the kernel answers with the routes of all families (rtnetlink.c, rtnl_dump_all).
        if message.type == RTM_NEWROUTE and buffer[message.start + 16] == family:
            yield decode_route(buffer, message)
