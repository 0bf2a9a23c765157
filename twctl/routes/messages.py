"""What the kernel says about routes, links and nexthop objects, in the terms that the Fib compares."""

import ipaddress
import socket
from typing import NamedTuple

from pyroute2.netlink import nlmsg

from twctl.addresses import Network

_BYTES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Hop(NamedTuple):
    """A next hop: interface index (0: none) and the gateway's address (empty: none)."""

    link: int
    gateway: str


class RouteEntry(NamedTuple):
    """A route as the kernel identifies it: equal entries are the same route. source: preferred (empty: none)."""

    family: int
    destination: int
    length: int
    table: int
    tos: int
    metric: int
    type: int
    protocol: int
    source: str
    nexthop: int
    hops: tuple[Hop, ...]

    @property
    def slot(self) -> tuple[int, ...]:
        """What NLM_F_REPLACE replaces: everything but where the route leads to."""
        return self[:6]

    @property
    def prefix(self) -> Network:
        """Destination as a network."""
        return ipaddress.ip_network((self.destination.to_bytes(_BYTES[self.family], "big"), self.length))


class Nexthop(NamedTuple):
    """A nexthop object (ip-nexthop(8)); a group has members (their ids) instead of a hop."""

    hop: Hop
    members: tuple[int, ...]
    blackhole: bool


class Link(NamedTuple):
    """An interface: name and IFF_ flags."""

    name: str
    flags: int


def route_of(message: nlmsg) -> RouteEntry:
    """The route of an RTM_NEWROUTE or RTM_DELROUTE message."""
    nexthop = message.get_attr("RTA_NH_ID", 0)
    destination = message.get_attr("RTA_DST")
    return RouteEntry(
        message["family"],
        int(ipaddress.ip_address(destination)) if destination else 0,
        message["dst_len"],
        message.get_attr("RTA_TABLE", message["table"]),
        message["tos"],
        message.get_attr("RTA_PRIORITY", 0),
        message["type"],
        message["proto"],
        message.get_attr("RTA_PREFSRC", ""),
        nexthop,
        # The object says where its routes lead to, and may change without a message for each of them.
        () if nexthop else _hops(message),
    )


def _hops(message: nlmsg) -> tuple[Hop, ...]:
    paths = message.get_attr("RTA_MULTIPATH")
    if paths is None:
        return (Hop(message.get_attr("RTA_OIF", 0), _gateway(message)),)
    return tuple(Hop(path["oif"], _gateway(path)) for path in paths)


def _gateway(path: nlmsg) -> str:
    # RTA_VIA: of another family than the route's.
    return str(path.get_attr("RTA_GATEWAY") or path.get_attr("RTA_VIA", {}).get("addr", ""))


def nexthop_of(message: nlmsg) -> tuple[int, Nexthop]:
    """Id and object of an RTM_NEWNEXTHOP or RTM_DELNEXTHOP message."""
    hop = Hop(message.get_attr("NHA_OIF", 0), message.get_attr("NHA_GATEWAY", ""))
    members = tuple(message.get_attr("NHA_GROUP", ()))
    return message.get_attr("NHA_ID", 0), Nexthop(hop, members, message.get_attr("NHA_BLACKHOLE") is not None)


def link_of(message: nlmsg) -> tuple[int, Link]:
    """Index and link of an RTM_NEWLINK or RTM_DELLINK message of family AF_UNSPEC.

    An RTM_DELLINK of AF_BRIDGE is a port that left its bridge.
    """
    return message["index"], Link(message.get_attr("IFLA_IFNAME", ""), message["flags"])
