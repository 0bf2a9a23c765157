"""Reads what is in force in a namespace: its links, nexthop objects and routes, or the route to one address."""

import errno
import socket
from collections.abc import Iterator
from functools import partial

from pyroute2 import IPRSocket
from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_NEWROUTE

from twctl.addresses import Address
from twctl.linux.devices import link_messages
from twctl.linux.netlink import RouteNetlink, complete, dump, refusals
from twctl.linux.rtnl import RTM_GETNEXTHOP, NexthopMessage, RouteMessage
from twctl.routes.fib import Fib
from twctl.routes.messages import RouteEntry, link_of, nexthop_of, route_of
from twctl.routes.screen import Screen

FAMILIES = (socket.AF_INET, socket.AF_INET6)
RTM_F_FIB_MATCH = 0x2000  # linux/rtnetlink.h: the route in the table, not a copy of it for the address
_NO_SUCH_FAMILY = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
_NO_SUCH_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


def read_objects(netlink: RouteNetlink, sock: IPRSocket) -> Fib:
    """Links and nexthop objects, without routes. Raises OSError."""
    with netlink.requests() as requests:
        links = dict(map(link_of, link_messages(requests)))
    nexthops = complete(partial(dump, sock, NexthopMessage(), RTM_GETNEXTHOP))
    return Fib(links, dict(map(nexthop_of, nexthops)))


def read_routes(sock: IPRSocket, screen: Screen, protocol: int = 0) -> Iterator[RouteEntry]:
    """The routes in all tables that a screen lets through, of one protocol or (0) of all. Raises OSError."""
    for family in FAMILIES:
        request = RouteMessage()
        request["family"], request["proto"] = family, protocol
        try:
            for message in dump(sock, request, RTM_GETROUTE, screen.select):
                # Without IPv6 the kernel answers with the routes of all families (rtnetlink.c, rtnl_dump_all).
                if message["header"]["type"] == RTM_NEWROUTE and message["family"] == family:
                    yield route_of(message)
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                raise


def route_to(netlink: RouteNetlink, address: Address) -> RouteEntry | None:
    """The route that the kernel takes to an address; None where it has none. Raises OSError."""
    try:
        with netlink.requests() as requests, refusals():
            found = requests.route("get", dst=str(address), flags=RTM_F_FIB_MATCH)
    except OSError as error:
        if error.errno in _NO_SUCH_ROUTE:
            return None
        raise
    return route_of(found[0]) if found else None
