"""What pyroute2 decodes, on messages that pyroute2 encodes, becomes what the Fib compares."""

import socket
import struct

from pyroute2.netlink import nlmsg

from twctl.linux.rtnl import RTM_NEWNEXTHOP, NexthopMessage, RouteMessage, decode
from twctl.routes.messages import Hop, Link, Nexthop, RouteEntry, link_of, nexthop_of, route_of

# include/uapi/linux/rtnetlink.h, nexthop.h
RTM_NEWLINK, RTM_NEWROUTE = 16, 24
NHA_ID, NHA_GROUP, NHA_BLACKHOLE = 1, 2, 4


def decoded(message: nlmsg, type_: int) -> nlmsg:
    """A message as it comes back from the bytes it is sent as."""
    message["header"]["type"] = type_
    message.encode()
    (found,) = decode(bytes(message.data))
    return found


def route(family: int, **values: object) -> RouteEntry:
    """A unicast route in table main, of a BGP daemon."""
    message = RouteMessage()
    message.update(family=family, dst_len=24, table=254, proto=186, type=1)
    message["attrs"] = [(f"RTA_{name}", value) for name, value in values.items()]
    return route_of(decoded(message, RTM_NEWROUTE))


def test_route_through_a_gateway() -> None:
    """Addresses become numbers and text, what is not said is 0 or empty."""
    found = route(socket.AF_INET, DST="203.0.113.0", TABLE=1000, PRIORITY=20, GATEWAY="10.0.0.2", OIF=3)
    destination = int.from_bytes(bytes((203, 0, 113, 0)), "big")
    assert found == RouteEntry(socket.AF_INET, destination, 24, 1000, 0, 20, 1, 186, "", 0, (Hop(3, "10.0.0.2"),))
    assert str(found.prefix) == "203.0.113.0/24"


def test_table_is_the_headers_where_no_attribute_says_more() -> None:
    """The header has 8 bits of it."""
    assert route(socket.AF_INET6, DST="2001:db8::", OIF=3).table == 254


def test_preferred_source_is_text() -> None:
    """RTA_PREFSRC, in both families."""
    assert route(socket.AF_INET, PREFSRC="10.0.0.1").source == "10.0.0.1"
    assert route(socket.AF_INET6, PREFSRC="fd01::1").source == "fd01::1"


def test_gateway_of_another_family() -> None:
    """RTA_VIA is a gateway like RTA_GATEWAY."""
    assert route(socket.AF_INET, VIA={"family": socket.AF_INET6, "addr": "fd01::9"}, OIF=2).hops == (Hop(2, "fd01::9"),)


def test_route_of_a_nexthop_object_has_no_hops_of_its_own() -> None:
    """The object says where it leads."""
    found = route(socket.AF_INET, DST="10.0.0.0", OIF=3, NH_ID=31)
    assert (found.nexthop, found.hops) == (31, ())


def nexthop(*values: tuple[int, bytes]) -> tuple[int, Nexthop]:
    """A nexthop object from attributes as the kernel writes them."""
    body = bytes(8) + b"".join(struct.pack("=HH", 4 + len(value), type_) + value for type_, value in values)
    (found,) = decode(struct.pack("=IHHII", 16 + len(body), RTM_NEWNEXTHOP, 0, 0, 0) + body)
    return nexthop_of(found)


def test_nexthop_objects() -> None:
    """One with a gateway, a group (ids and weights), a blackhole."""
    message = NexthopMessage()
    message["family"] = socket.AF_INET
    message["attrs"] = [("NHA_ID", 29), ("NHA_OIF", 3), ("NHA_GATEWAY", "10.0.0.9")]
    single = nexthop_of(decoded(message, RTM_NEWNEXTHOP))
    assert single == (29, Nexthop(Hop(3, "10.0.0.9"), (), blackhole=False))
    number, members = (NHA_ID, struct.pack("=I", 7)), struct.pack("=IBxxxIBxxx", 2, 0, 3, 9)
    assert nexthop(number, (NHA_GROUP, members)) == (7, Nexthop(Hop(0, ""), (2, 3), blackhole=False))
    assert nexthop(number, (NHA_BLACKHOLE, b"")) == (7, Nexthop(Hop(0, ""), (), blackhole=True))


def test_link_has_its_name_and_flags() -> None:
    """The index is the key under which the Fib keeps it."""
    attribute = struct.pack("=HH8s", 12, 3, b"eth1\0\0\0\0")
    (found,) = decode(struct.pack("=IHHIIBxHiII", 44, RTM_NEWLINK, 0, 0, 0, 0, 1, 5, 0x1003, 0) + attribute)
    assert link_of(found) == (5, Link("eth1", 0x1003))
