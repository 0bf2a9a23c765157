"""Nearness of a peer: which class its address belongs to, decided from routes, addresses and overrides.

Pure: routes and overrides go in, the smallest longest-prefix-match trie that gives the same answers comes out.
Four tiers decide, the strongest first; within a tier the longest prefix wins:

    own       the host's own addresses, 127.0.0.0/8 and ::1          loopback
    override  `[classes]` of the configuration                       as configured
    built-in  fe80::/10: link-local addresses are never routed       local
    route     a route without a gateway is local, all others remote  local or remote

An address that no tier covers is remote. A tier beats a longer prefix of a weaker tier: the kernel looks into table
`local` before all others, and an override holds for everything inside its prefix.

All routing tables are read as one, because policy rules depend on marks and sources, which a peer's address does not
show. Where tables disagree about the same prefix, local (255) comes before main (254), default (253), then the other
tables by number; inside a table the lowest metric wins, then the route that was given first.

A route without a gateway is local only if its prefix can be a set of neighbours. Not local are
  * a default route: it means "everything else", never a subnet, even on Ethernet (proxy ARP);
  * kind `tunnel`: a route that was added by hand to a device without broadcast (wireguard, tun, ppp, gre, ...). The
    far end of such a device is the gateway, whatever the length of the prefix. Routes that the kernel derives there
    from an address (the subnet, the /32 or /128 of a point-to-point peer) are on-link all the same;
  * blackhole, unreachable, prohibit: no session can be there, so a hole in a subnet is remote.
"""

import enum
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from twctl.addresses import Address, Network, unmapped

Kind = Literal["local", "onlink", "tunnel", "gateway", "blackhole", "unreachable", "prohibit"]
Source = Literal["address", "route", "override", "built-in", "no route"]

LOCAL_TABLE = 255
# include/uapi/linux/rtnetlink.h, enum rt_class_t: local, main, default.
_FIRST_TABLES = {LOCAL_TABLE: 0, 254: 1, 253: 2}


class Class(enum.IntEnum):
    """Nearness of a peer. The numbers are those of the BPF maps, nearest first."""

    LOOPBACK = 0
    LOCAL = 1
    REMOTE = 2

    @property
    def label(self) -> str:
        """The class as it is written in metrics, commands and configuration (str): loopback, local or remote."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the host, as far as nearness is concerned.

    prefix: destination. table: routing table number, 32 bits. metric: lower is preferred.
    interface: name, None where the route has none. gateway: first gateway, None where it has none.
    """

    prefix: Network
    table: int
    metric: int
    kind: Kind
    interface: str | None = None
    gateway: Address | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an address has its class: the deciding prefix and its source, and the way packets to it take.

    prefix is None where nothing covers the address. source `address` means one of the host's own.
    """

    class_: Class
    prefix: Network | None
    source: Source
    interface: str | None = None
    gateway: Address | None = None


class _Tier(enum.IntEnum):
    ROUTE = 0
    BUILT_IN = 1
    OVERRIDE = 2
    OWN = 3


@dataclass(frozen=True, slots=True)
class _Rule:
    """Class that one prefix gives, and its tier."""

    tier: _Tier
    prefix: Network
    class_: Class
    source: Source
    route: Route | None = None


_BUILT_IN = (
    _Rule(_Tier.OWN, ipaddress.ip_network("127.0.0.0/8"), Class.LOOPBACK, "built-in"),  # RFC 1122 section 3.2.1.3 (g)
    _Rule(_Tier.OWN, ipaddress.ip_network("::1/128"), Class.LOOPBACK, "built-in"),  # RFC 4291 section 2.5.3
    _Rule(_Tier.BUILT_IN, ipaddress.ip_network("fe80::/10"), Class.LOCAL, "built-in"),  # RFC 4291 section 2.5.6
)


class Classifier:
    """Gives every address its class, from one state of the routes.

    routes: any order, duplicates allowed. overrides: prefix to class.
    """

    def __init__(self, routes: Iterable[Route], overrides: Mapping[Network, Class]) -> None:
        self._rules: dict[Network, _Rule] = {}
        for route in sorted(routes, key=_preference):
            if rule := _rule_of(route):
                self._add(rule)
        for prefix, class_ in overrides.items():
            self._add(_Rule(_Tier.OVERRIDE, prefix, class_, "override"))
        for rule in _BUILT_IN:
            self._add(rule)

    def _add(self, rule: _Rule) -> None:
        known = self._rules.get(rule.prefix)
        if known is None or rule.tier > known.tier:
            self._rules[rule.prefix] = rule

    def trie(self) -> dict[Network, Class]:
        """The smallest set of prefixes whose longest match gives every address its class; no match is remote.

        A prefix is left out where the nearest prefix around it already gives the same class.
        """
        return {prefix: rule.class_ for prefix, rule, outer in self._nested() if rule.class_ != outer}

    def _nested(self) -> Iterator[tuple[Network, _Rule, Class]]:
        """Every prefix with the rule that decides inside of it, and the class of the prefix around it."""
        around: list[tuple[Network, _Rule]] = []
        for rule in sorted(self._rules.values(), key=_outside_in):
            while around and rule.prefix.network_address not in around[-1][0]:
                around.pop()
            outer = around[-1][1] if around else None
            winner = outer if outer and outer.tier > rule.tier else rule
            yield rule.prefix, winner, outer.class_ if outer else Class.REMOTE
            around.append((rule.prefix, winner))

    def explain(self, address: Address) -> Explanation:
        """Class of an address and what decided it. An IPv4-mapped IPv6 address is taken as the IPv4 address."""
        address = unmapped(address)
        rules = [rule for prefix, rule in self._rules.items() if address in prefix]
        if not rules:
            return Explanation(Class.REMOTE, None, "no route")
        rule = max(rules, key=lambda rule: (rule.tier, rule.prefix.prefixlen))
        if rule.route is None:
            return Explanation(rule.class_, rule.prefix, rule.source)
        return Explanation(rule.class_, rule.prefix, rule.source, rule.route.interface, rule.route.gateway)


def _preference(route: Route) -> tuple[int, int, int]:
    return _FIRST_TABLES.get(route.table, len(_FIRST_TABLES)), route.table, route.metric


def _outside_in(rule: _Rule) -> tuple[int, int, int]:
    return rule.prefix.version, int(rule.prefix.network_address), rule.prefix.prefixlen


def _rule_of(route: Route) -> _Rule | None:
    if route.kind == "local":
        return _Rule(_Tier.OWN, route.prefix, Class.LOOPBACK, "address", route) if _is_own(route) else None
    near = route.kind == "onlink" and route.prefix.prefixlen > 0
    return _Rule(_Tier.ROUTE, route.prefix, Class.LOCAL if near else Class.REMOTE, "route", route)


def _is_own(route: Route) -> bool:
    """Outside of table `local` only whole addresses are the host's own, those of VRFs.

    A shorter prefix, such as `local default` in table 100, catches forwarded packets for a proxy (TPROXY).
    """
    if route.table == LOCAL_TABLE:
        return route.prefix.prefixlen > 0
    return route.prefix.prefixlen == route.prefix.max_prefixlen
