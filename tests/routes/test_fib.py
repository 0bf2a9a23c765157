"""The kept routes: what each message changes in them, and when messages alone do not tell what holds."""

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from twctl.routes.fib import Fib
from twctl.routes.messages import Hop, Link, Nexthop, RouteEntry
from twctl.routes.screen import LOCAL, UNICAST

DOWN = Link("eth1", 0x2)  # without IFF_UP (1); IFF_BROADCAST (2)
LINKS = {1: Link("eth1", 0x3), 2: Link("eth2", 0x3), 3: Link("tun0", 0x1)}
KERNEL, STATIC = 2, 4  # rtnetlink.h, RTPROT_*
GATEWAY = "10.1.0.9"


def fib(*routes: RouteEntry, nexthops: Mapping[int, Nexthop] | None = None) -> Fib:
    """Two Ethernet links and a tunnel, with these routes."""
    made = Fib(LINKS, nexthops or {})
    made.replace(routes)
    return made


def route(prefix: str, link: int = 1, gateway: str = "", **fields: Any) -> RouteEntry:  # noqa: ANN401 - of any field
    """A static route in table main over one hop."""
    network = ipaddress.ip_network(prefix)
    family = socket.AF_INET if isinstance(network, ipaddress.IPv4Network) else socket.AF_INET6
    entry = RouteEntry(
        family,
        int(network.network_address),
        network.prefixlen,
        254,
        0,
        0,
        UNICAST,
        STATIC,
        "",
        0,
        (Hop(link, gateway),),
    )
    return entry._replace(**fields)


def address(host: str, link: int = 1) -> RouteEntry:
    """The local route that an address of the host has."""
    return route(f"{host}/32", link, type=LOCAL, protocol=KERNEL, table=255)


def prefixes(found: Fib) -> list[str]:
    """Of all kept routes, with their kind."""
    return sorted(f"{each.prefix} {each.kind}" for each in found.routes())


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (route("10.1.0.0/24"), "onlink"),
        (route("10.1.0.0/24", gateway=GATEWAY), "gateway"),
        (route("10.1.0.0/24", link=3), "tunnel"),
        (route("10.1.0.0/24", link=3, protocol=KERNEL), "onlink"),
        (route("10.1.0.0/24", hops=(Hop(1, ""), Hop(2, GATEWAY))), "gateway"),
        (route("10.1.0.0/24", hops=(Hop(1, ""), Hop(2, ""))), "onlink"),
        (route("10.1.0.0/24", type=6), "blackhole"),
        (address("10.1.0.1"), "local"),
    ],
)
def test_kind_says_where_a_route_leads(entry: RouteEntry, kind: str) -> None:
    """By its hops, the type of its link, and who made it; broadcast routes are none."""
    assert [each.kind for each in fib(entry).routes()] == [kind]
    assert list(fib(entry._replace(type=3)).routes()) == []


def test_the_same_route_again_changes_nothing() -> None:
    """Only what is new may change a class."""
    kept = fib(route("10.1.0.0/24"))
    assert not kept.add(route("10.1.0.0/24"), replaces=False)
    assert kept.add(route("10.2.0.0/24"), replaces=False)
    assert not kept.remove(route("10.3.0.0/24"))
    assert not kept.stale


def test_replacing_one_of_several_needs_another_read() -> None:
    """Of one it is known which is replaced."""
    kept = fib(route("10.1.0.0/24"))
    assert kept.add(route("10.1.0.0/24", gateway=GATEWAY), replaces=True)
    assert (prefixes(kept), kept.stale) == (["10.1.0.0/24 gateway"], False)
    kept.add(route("10.1.0.0/24", link=2), replaces=False)
    assert kept.stale


def test_part_of_a_multipath_route_that_goes_needs_another_read() -> None:
    """Which hops are left is not told."""
    kept = fib(route("fd01::/64", hops=(Hop(1, ""), Hop(2, ""))))
    assert kept.remove(route("fd01::/64", link=1))
    assert kept.stale


def test_routes_go_with_their_preferred_source() -> None:
    """Silently, with the last local route of the address; those of other sources stay."""
    mine, other = route("10.3.0.0/16", source="10.1.0.1"), route("10.4.0.0/16", source="10.2.0.1")
    kept = fib(address("10.1.0.1"), address("10.2.0.1"), mine, other)
    kept.remove(address("10.1.0.1"))
    assert prefixes(kept) == ["10.2.0.1/32 local", "10.4.0.0/16 onlink"]


def test_routes_go_with_the_last_address_of_a_link() -> None:
    """IPv4 alone, and only those over that link."""
    over, beside, six = route("10.3.0.0/16", 2), route("10.4.0.0/16", 1), route("fd03::/64", 2)
    kept = fib(address("10.1.0.1", 1), address("10.2.0.1", 2), over, beside, six)
    kept.remove(address("10.2.0.1", 2))
    assert prefixes(kept) == ["10.1.0.1/32 local", "10.4.0.0/16 onlink", "fd03::/64 onlink"]


def test_a_link_that_is_down_keeps_its_addresses() -> None:
    """Routes over it go, unless another link is left to them; with the link itself the addresses go as well."""
    both = route("10.5.0.0/16", hops=(Hop(1, ""), Hop(2, "")))
    kept = fib(address("10.1.0.1"), route("10.3.0.0/16"), both, route("10.4.0.0/16", 2))
    assert kept.set_link(1, DOWN)
    assert prefixes(kept) == ["10.1.0.1/32 local", "10.4.0.0/16 onlink", "10.5.0.0/16 onlink"]
    assert kept.remove_link(1)
    assert prefixes(kept) == ["10.4.0.0/16 onlink", "10.5.0.0/16 onlink"]


def test_a_nexthop_object_says_where_its_routes_lead() -> None:
    """One that leads elsewhere than before may have routes that were not kept."""
    near, far = Nexthop(Hop(1, ""), (), blackhole=False), Nexthop(Hop(1, GATEWAY), (), blackhole=False)
    kept = fib(route("10.3.0.0/16", nexthop=7, hops=()), nexthops={7: near})
    assert (prefixes(kept), kept.screen().onlink_nexthops) == (["10.3.0.0/16 onlink"], frozenset({7}))
    assert kept.set_nexthop(7, far)
    assert (prefixes(kept), kept.stale) == (["10.3.0.0/16 gateway"], True)
    kept.remove_nexthop(7)
    assert prefixes(kept) == []


def test_a_group_that_loses_its_last_gateway_needs_another_read() -> None:
    """Routes through it that were not kept are on-link now."""
    objects = {
        2: Nexthop(Hop(2, GATEWAY), (), blackhole=False),
        3: Nexthop(Hop(1, ""), (), blackhole=False),
        7: Nexthop(Hop(0, ""), (2, 3), blackhole=False),
    }
    kept = fib(nexthops=objects)
    assert kept.screen().onlink_nexthops == {3}
    kept.set_link(2, DOWN)
    assert kept.stale


def test_gateway_routes_outside_of_every_subnet_are_forgotten() -> None:
    """What the screen would not let through is not kept either."""
    inside, outside = route("10.1.7.0/24", gateway=GATEWAY), route("10.9.0.0/24", gateway=GATEWAY)
    kept = fib(route("10.1.0.0/16"), inside, outside)
    kept.forget_outside(kept.screen())
    assert prefixes(kept) == ["10.1.0.0/16 onlink", "10.1.7.0/24 gateway"]
