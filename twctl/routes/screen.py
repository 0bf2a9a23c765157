"""Drops route messages that cannot change a class, while they are raw bytes; pyroute2 decodes what is left.

This is the one place where route messages are read by hand. pyroute2 takes 80 us to decode one, which is more than a
minute for the 1,000,000 routes of a BGP host, and most of a core at 10,000 changes a second; the screen takes 1.5 us.
It reads headers, the destination, and whether there is a gateway: struct rtmsg and attributes of linux/rtnetlink.h.
"""

import socket
import struct
from collections.abc import Iterable, Iterator

from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_NEWROUTE, rt_type

RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_NH_ID = 1, 5, 9, 18, 30
RTM_F_CLONED = 0x200
UNICAST, LOCAL = rt_type["unicast"], rt_type["local"]
BLOCKED = frozenset(rt_type[name] for name in ("blackhole", "unreachable", "prohibit"))
_ABOUT_ROUTES = frozenset((RTM_NEWROUTE, RTM_DELROUTE))
_VIA = frozenset((RTA_GATEWAY, RTA_VIA))

_HEADER = struct.Struct("=IHH")  # struct nlmsghdr: length, type, flags
_ROUTE = struct.Struct("=16xBB5xBI")  # after it struct rtmsg: family, dst_len, type, flags
_ATTRIBUTES_AT = 28
_ATTRIBUTE = struct.Struct("=HH")
_HOP_BYTES = 8  # struct rtnexthop: length, flags, weight, interface; then attributes
_U32 = struct.Struct("=I")
_WORDS: dict[int, struct.Struct] = {socket.AF_INET: struct.Struct(">I"), socket.AF_INET6: struct.Struct(">QQ")}
_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}


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

    def select(self, data: bytes) -> Iterator[bytes]:
        """The messages in a buffer that can matter; all that are not about routes are among them."""
        start, size = 0, len(data)
        while start < size:
            length, type_, flags = _HEADER.unpack_from(data, start)
            if flags & NLM_F_DUMP_INTR:
                self.interrupted = True
            self.seen += 1
            end = start + length
            if type_ not in _ABOUT_ROUTES or self._matters(data, start, end):
                yield data[start:end]
            start = end + 3 & ~3

    def _matters(self, data: bytes, start: int, end: int) -> bool:
        # The hot path, once for each of a million routes: no slices, no objects.
        family, length, type_, flags = _ROUTE.unpack_from(data, start)
        if type_ == LOCAL:
            return True
        if (type_ != UNICAST and type_ not in BLOCKED) or flags & RTM_F_CLONED or family not in _BITS:
            return False
        elsewhere, destination_at = self._look(data, start + _ATTRIBUTES_AT, end, type_ != UNICAST, length)
        if elsewhere and not self._covers[family]:
            return False
        destination = _address(data, destination_at, family) if destination_at else 0
        if elsewhere:
            return self.covers(family, destination, length)
        # The class of fe80::/10 is built in: thousands of interfaces must not keep thousands of equal routes.
        return not (family == socket.AF_INET6 and length and destination >> 118 == 0xFE80 >> 6)

    def _look(self, data: bytes, at: int, end: int, elsewhere: bool, length: int) -> tuple[bool, int]:  # noqa: FBT001
        """Whether a route leads elsewhere than to a neighbour, and where its destination stands (0: nowhere)."""
        destination_at = 0
        while at < end and not (elsewhere and (destination_at or not length)):
            size, attribute = _ATTRIBUTE.unpack_from(data, at)
            if attribute == RTA_DST:
                destination_at = at + 4
            elif attribute in _VIA:
                elsewhere = True
            elif attribute == RTA_NH_ID:
                elsewhere |= _U32.unpack_from(data, at + 4)[0] not in self.onlink_nexthops
            elif attribute == RTA_MULTIPATH:
                elsewhere |= _has_gateway(data, at + 4, at + size)
            at += size + 3 & ~3
        return elsewhere, destination_at


def _address(data: bytes, at: int, family: int) -> int:
    words = _WORDS[family].unpack_from(data, at)
    return int(words[0]) if family == socket.AF_INET else int(words[0]) << 64 | int(words[1])


def _has_gateway(data: bytes, at: int, end: int) -> bool:
    """Whether a hop of RTA_MULTIPATH has a gateway."""
    while at + _HOP_BYTES <= end:
        size = max(_HOP_BYTES, _ATTRIBUTE.unpack_from(data, at)[0])
        if not _VIA.isdisjoint(_types(data, at + _HOP_BYTES, at + size)):
            return True
        at += size + 3 & ~3
    return False


def _types(data: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        size, type_ = _ATTRIBUTE.unpack_from(data, at)
        yield type_
        at += size + 3 & ~3
