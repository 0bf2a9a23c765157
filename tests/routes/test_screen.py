"""The screen that keeps irrelevant route messages out, on messages made byte for byte as the kernel makes them."""

import ipaddress
import socket
import struct

from twctl.linux.rtnl import decode
from twctl.routes.messages import Hop, route_of
from twctl.routes.screen import (
    LOCAL,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_VIA,
    RTM_F_CLONED,
    UNICAST,
    Screen,
)

# include/uapi/linux/netlink.h, rtnetlink.h
NLM_F_DUMP_INTR = 0x10
RTM_NEWROUTE, RTM_NEWLINK = 24, 16
RTA_OIF, RTA_PRIORITY = 4, 6
GATEWAY = (RTA_GATEWAY, bytes((10, 0, 0, 9)))
LINK = (RTA_OIF, struct.pack("=I", 2))
SUBNET = (socket.AF_INET, 10 << 24, 8)


def attribute(type_: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    return struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)


def message(prefix: str, *values: tuple[int, bytes], type_: int = UNICAST, flags: int = 0, header: int = 0) -> bytes:
    """RTM_NEWROUTE of a prefix in table main."""
    network = ipaddress.ip_network(prefix)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = struct.pack("=8BI", family, network.prefixlen, 0, 0, 254, 186, 0, type_, flags)
    for value in ((RTA_DST, network.network_address.packed), *values):
        body += attribute(*value)
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, header, 0, 0) + body


def passes(screen: Screen, data: bytes) -> bool:
    """Whether a screen lets a message through, and unchanged."""
    found = list(screen.select(data))
    assert found in ([], [data])
    return bool(found)


def test_gateway_route_matters_only_inside_an_onlink_prefix() -> None:
    """A route through a gateway passes inside (or at) a covering prefix and nowhere else."""
    screen = Screen([SUBNET])
    inside = [passes(screen, message(p, GATEWAY)) for p in ("10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/7", "11.0.0.0/8")]
    assert inside == [True, True, False, False]
    assert not passes(Screen(), message("10.1.0.0/16", GATEWAY))


def test_route_without_gateway_always_matters() -> None:
    """On-link routes and own addresses pass an empty screen."""
    assert passes(Screen(), message("10.1.0.0/16", LINK))
    assert passes(Screen(), message("10.1.0.1/32", LINK, type_=LOCAL))


def test_every_form_of_gateway_is_seen() -> None:
    """RTA_VIA, a hop of RTA_MULTIPATH and a nexthop object are gateways like RTA_GATEWAY."""
    via = (RTA_VIA, struct.pack("=H", socket.AF_INET6) + bytes(16))
    hop = struct.pack("=HBBi", 16, 0, 0, 3) + attribute(*GATEWAY)
    paths = (RTA_MULTIPATH, struct.pack("=HBBi", 8, 0, 0, 2) + hop)
    known = (RTA_NH_ID, struct.pack("=I", 7))
    assert [passes(Screen(), message("10.1.0.0/16", way)) for way in (via, paths, known)] == [False] * 3
    assert passes(Screen(onlink_nexthops=frozenset({7})), message("10.1.0.0/16", known))
    (found,) = Screen([SUBNET]).select(message("10.1.0.0/16", (RTA_PRIORITY, struct.pack("=I", 23)), paths))
    (route,) = map(route_of, decode(found))
    assert (str(route.prefix), route.table, route.metric) == ("10.1.0.0/16", 254, 23)
    assert route.hops == (Hop(2, ""), Hop(3, "10.0.0.9"))


def test_cached_and_link_local_routes_never_matter() -> None:
    """A cloned IPv6 route is the cache's, and fe80::/10 has a class of its own."""
    assert not passes(Screen(), message("fd01::7/128", LINK, flags=RTM_F_CLONED))
    assert not passes(Screen(), message("fe80::/64", LINK))
    assert passes(Screen(), message("fec0::/64", LINK))


def test_interrupted_dump_is_noticed_on_any_message() -> None:
    """The kernel marks one message of an inconsistent dump; the screen notices it on one that does not pass."""
    screen = Screen()
    assert not passes(screen, message("11.0.0.0/8", GATEWAY))
    assert not screen.interrupted
    assert not passes(screen, message("11.0.0.0/8", GATEWAY, header=NLM_F_DUMP_INTR))
    assert screen.interrupted
    assert screen.seen == 2


def test_what_matters_is_picked_from_a_full_buffer() -> None:
    """Of many messages in one read those that matter come out, in order; what is not about routes is among them."""
    near, far = message("10.1.0.0/16", GATEWAY), message("11.0.0.0/8", GATEWAY)
    other = struct.pack("=IHHII", 16, RTM_NEWLINK, 0, 0, 0)
    screen = Screen([SUBNET])
    assert list(screen.select(far + near + far + other + far + near)) == [near, other, near]
    assert screen.seen == 6
