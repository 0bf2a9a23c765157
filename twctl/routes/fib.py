"""The part of the host's routing tables that can change a class, kept up to date message by message.

IPv4 drops routes without a message for each when a link, a nexthop object or an address goes away, and the message
about the cause comes *before* the routes are gone (net/core/dev.c, __dev_notify_flags): reading the table at that
moment would find them still there. So they are dropped here by the kernel's own rules. IPv6 tells of each, except with
net.ipv6.route.skip_notify_on_dev_down, and the same rules cover it.

Every address of the host has a route of type local with messages of its own, so address messages are not needed.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping

from pyroute2.netlink.rtnl import rt_proto, rt_type
from pyroute2.netlink.rtnl.ifinfmsg import IFF_BROADCAST, IFF_UP

from twctl.classes import Kind, Route
from twctl.routes.messages import Hop, Link, Nexthop, RouteEntry
from twctl.routes.screen import LOCAL, UNICAST, Screen

MAIN_TABLE = 254

_KINDS: dict[int, Kind] = {
    rt_type["local"]: "local",
    rt_type["blackhole"]: "blackhole",
    rt_type["unreachable"]: "unreachable",
    rt_type["prohibit"]: "prohibit",
}
_NOT_ELSEWHERE = (None, "local", "onlink", "tunnel")


class Fib:
    """Routes, links by index and nexthop objects by id, as the kernel last told.

    stale is set where messages alone cannot tell what holds now: the tables must be read again.
    """

    def __init__(self, links: Mapping[int, Link], nexthops: Mapping[int, Nexthop]) -> None:
        self.stale = False
        self._links = dict(links)
        self._nexthops = dict(nexthops)
        self._slots: dict[tuple[int, ...], list[RouteEntry]] = {}

    def replace(self, routes: Iterable[RouteEntry]) -> None:
        """Take these routes for all there are."""
        self._slots = {}
        for route in routes:
            self._slots.setdefault(route.slot, []).append(route)

    def routes(self) -> Iterator[Route]:
        """The kept routes in the terms of classes.py."""
        return (route for message in self._messages() if (route := self.route(message)))

    def screen(self) -> Screen:
        """What lets through all that can matter next to the kept routes."""
        onlink = {message[:3] for message in self._messages() if self._kind(message) == "onlink" and message.length}
        return Screen(onlink, frozenset(number for number in self._nexthops if _near(self._hops_of(number))))

    def forget_outside(self, screen: Screen) -> None:
        """Drop gateway routes that no on-link prefix covers."""
        self.replace(m for m in self._messages() if self._kind(m) in _NOT_ELSEWHERE or screen.covers(*m[:3]))

    # What messages change. Each returns whether a class may be another one now.

    def add(self, route: RouteEntry, *, replaces: bool) -> bool:
        """RTM_NEWROUTE; replaces says that it came with NLM_F_REPLACE."""
        slot = self._slots.setdefault(route.slot, [])
        if route in slot:
            return False
        if replaces and len(slot) == 1:
            slot.clear()
        elif any(self._kind(route) != self._kind(other) for other in slot):
            # Which of several it replaces, or stands before, only the kernel's own list tells.
            self.stale = True
        slot.append(route)
        return True

    def remove(self, route: RouteEntry) -> bool:
        """RTM_DELROUTE."""
        slot = self._slots.get(route.slot)
        if slot is None:
            return False
        if route in slot:
            slot.remove(route)
        else:  # part of a multipath route
            self.stale = True
        if not slot:
            del self._slots[route.slot]
        if (route.family, route.type, route.protocol) == (socket.AF_INET, LOCAL, rt_proto["kernel"]):
            self._remove_with_address(route)
        return True

    def _remove_with_address(self, address: RouteEntry) -> None:
        """IPv4 routes with this preferred source go (net/ipv4/fib_semantics.c, fib_sync_down_addr).

        With the last address of a link all routes over it go as well (net/ipv4/fib_frontend.c, fib_inetaddr_event).
        """
        owned = [m for m in self._messages() if m.type == LOCAL and m.family == socket.AF_INET]
        if not any(own[:3] == address[:3] for own in owned):
            source, tables = str(ipaddress.IPv4Address(address.destination)), (MAIN_TABLE, address.table)
            self._drop(lambda m: m.source == source and m.table in tables and m.type != LOCAL)
        link = address.hops[0].link
        if not any(own.protocol == address.protocol and own.hops[0].link == link for own in owned):
            self._drop(lambda m: m.family == socket.AF_INET and _over(m.hops, link) and not self._leads(m, link))

    def set_link(self, index: int, link: Link) -> bool:
        """RTM_NEWLINK."""
        old = self._links.get(index)
        self._links[index] = link
        if not link.flags & IFF_UP:
            self._remove_with_link(index)
        return old != link

    def remove_link(self, index: int) -> bool:
        """RTM_DELLINK."""
        self._links.pop(index, None)
        self._remove_with_link(index)
        return True

    def _remove_with_link(self, index: int) -> None:
        self._drop(lambda m: _over(self._hops(m), index) and not self._outlives_link(m, index))
        self._remove_nexthops({n for n, o in self._nexthops.items() if o.hop.link == index and not o.members})

    def _outlives_link(self, route: RouteEntry, index: int) -> bool:
        """The host's own IPv4 addresses stay while a link is only down (fib_semantics.c, fib_sync_down_dev).

        All others need a hop over another link.
        """
        down = index in self._links
        return (down and route.type == LOCAL and route.family == socket.AF_INET) or self._leads(route, index)

    def set_nexthop(self, number: int, nexthop: Nexthop) -> bool:
        """RTM_NEWNEXTHOP. All routes that use the object now lead elsewhere, those that were not kept as well."""
        before = _near(self._hops_of(number))
        self._nexthops[number] = nexthop
        if before != _near(self._hops_of(number)):
            self.stale = True
        return self.stale or self._uses_objects()

    def remove_nexthop(self, number: int) -> bool:
        """RTM_DELNEXTHOP. Its routes go silently (net/ipv4/nexthop.c, __remove_nexthop)."""
        used = self._uses_objects()
        self._remove_nexthops({number})
        return self.stale or used

    def _remove_nexthops(self, gone: set[int]) -> None:
        groups = [
            n for n, o in self._nexthops.items() if not gone.isdisjoint(o.members) and not _near(self._hops_of(n))
        ]
        self._nexthops = {n: o for n, o in self._nexthops.items() if n not in gone}
        self._drop(lambda m: m.nexthop in gone)
        # A group that has lost its last gateway: routes that were not kept are on-link now.
        self.stale |= any(_near(self._hops_of(n)) for n in groups)

    def _uses_objects(self) -> bool:
        return any(message.nexthop for message in self._messages())

    def _drop(self, gone: Callable[[RouteEntry], bool]) -> None:
        self.replace([message for message in self._messages() if not gone(message)])

    # What a route says

    def route(self, message: RouteEntry) -> Route | None:
        """A route in the terms of classes.py; None for types that carry no TCP (broadcast, multicast) and throw."""
        kind = self._kind(message)
        if kind is None:
            return None
        hops = self._hops(message)
        link = self._links.get(hops[0].link) if hops else None
        gateway = next((ipaddress.ip_address(hop.gateway) for hop in hops if hop.gateway), None)
        return Route(message.prefix, message.table, message.metric, kind, link.name if link else None, gateway)

    def _kind(self, message: RouteEntry) -> Kind | None:
        if message.type != UNICAST:
            return _KINDS.get(message.type)
        hops = self._hops(message)
        if not _near(hops):
            return "gateway"
        derived = message.protocol == rt_proto["kernel"]
        return "onlink" if derived or all(self._has_neighbours(hop.link) for hop in hops) else "tunnel"

    def _messages(self) -> Iterator[RouteEntry]:
        return (message for slot in self._slots.values() for message in slot)

    def _hops(self, message: RouteEntry) -> tuple[Hop, ...]:
        return self._hops_of(message.nexthop) if message.nexthop else message.hops

    def _hops_of(self, nexthop: int) -> tuple[Hop, ...]:
        found = self._nexthops.get(nexthop)
        if found is None or found.blackhole:
            return ()
        if found.members:
            return tuple(hop for member in found.members for hop in self._hops_of(member))
        return (found.hop,)

    def _leads(self, message: RouteEntry, without: int) -> bool:
        """Whether a hop over another link than this one is left."""
        return any(hop.link != without and self._is_up(hop.link) for hop in self._hops(message))

    def _is_up(self, index: int) -> bool:
        link = self._links.get(index)
        return link is not None and bool(link.flags & IFF_UP)

    def _has_neighbours(self, index: int) -> bool:
        link = self._links.get(index)
        return link is None or bool(link.flags & IFF_BROADCAST)


def _over(hops: tuple[Hop, ...], link: int) -> bool:
    return any(hop.link == link for hop in hops)


def _near(hops: tuple[Hop, ...]) -> bool:
    """Whether hops lead straight to the destination: all of them without a gateway, and at least one."""
    return bool(hops) and not any(hop.gateway for hop in hops)
