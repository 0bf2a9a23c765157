"""RouteWatcher against the kernel: real routes, links and nexthop objects in a network namespace of its own."""

import ipaddress
import itertools
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import load
from twctl.addresses import Network
from twctl.classes import Class, Explanation
from twctl.errors import TwctlError
from twctl.routes.watcher import RouteWatcher

LOOPBACK, LOCAL, REMOTE = Class.LOOPBACK, Class.LOCAL, Class.REMOTE
SECONDS = 1.0  # a change must reach the trie within this time

_numbers = itertools.count()


class Host:
    """A network namespace with eth1 (10.1.0.1/24, fd01::1/64) and eth2 (10.2.0.1/24), both veth and up."""

    def __init__(self) -> None:
        self.name = f"twr-{os.getpid()}-{next(_numbers)}"

    def ip(self, *lines: str) -> None:
        """Run lines of `ip -batch` inside the namespace."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)


@pytest.fixture
def host() -> Iterator[Host]:
    """A fresh host; gone afterwards."""
    made = Host()
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.ip(
            "link set lo up",
            "link add eth1 type veth peer name far1",
            "link add eth2 type veth peer name far2",
            *(f"link set {link} up" for link in ("eth1", "eth2", "far1", "far2")),
            "addr add 10.1.0.1/24 dev eth1",
            "addr add 10.2.0.1/24 dev eth2",
            "addr add fd01::1/64 dev eth1 nodad",
        )
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=True)


@pytest.fixture
def watcher(host: Host) -> Iterator[RouteWatcher]:
    """A watcher of the host, without overrides."""
    with RouteWatcher({}, host.name) as made:
        yield made


def network(prefix: str) -> Network:
    """Text to network."""
    return ipaddress.ip_network(prefix)


def class_of(watcher: RouteWatcher, address: str) -> Class:
    """Longest match in the trie, as the probe finds it; explain must agree."""
    peer = ipaddress.ip_address(address)
    matches = [prefix for prefix in watcher.trie() if peer in prefix]
    found = watcher.trie()[max(matches, key=lambda prefix: prefix.prefixlen)] if matches else REMOTE
    assert watcher.explain(peer).class_ == found
    return found


def explain(watcher: RouteWatcher, address: str) -> Explanation:
    """Explanation of an address given as text."""
    return watcher.explain(ipaddress.ip_address(address))


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settle(watcher: RouteWatcher) -> bool:
    """What the daemon does: follow while the descriptor is readable. True if the trie may have changed."""
    changed = False
    while select.select([watcher], [], [], 0)[0]:
        changed |= watcher.follow()
    return changed


def wait_until(watcher: RouteWatcher, condition: Callable[[], bool]) -> None:
    """Follow whenever the watcher is readable until the condition holds; fails after SECONDS.

    It must hold still when nothing waits any more: a read that is due would hide what the next messages fail to tell.
    """
    deadline = time.monotonic() + SECONDS
    while not condition():
        left = deadline - time.monotonic()
        assert left > 0, f"not within {SECONDS} s: {watcher.trie()}"
        if select.select([watcher], [], [], left)[0]:
            watcher.follow()
    settle(watcher)
    assert condition()


def wait_for(watcher: RouteWatcher, address: str, class_: Class) -> None:
    """Until an address has a class."""
    wait_until(watcher, lambda: class_of(watcher, address) == class_)


def agree(watcher: RouteWatcher, fresh: RouteWatcher) -> bool:
    """Whether both have the same trie. Both follow: a device can get its link-local address at any moment."""
    settle(watcher)
    settle(fresh)
    return watcher.trie() == fresh.trie()


CHANGES = (
    "route add 10.0.0.0/8 via 10.1.0.9",
    "route add 10.3.0.0/16 dev eth1",
    "route add 10.3.7.0/24 via 10.1.0.9",
    "route replace 10.3.7.0/24 dev eth2",
    "route append 10.3.9.0/24 via 10.1.0.9",
    "route append 10.3.9.0/24 dev eth2",
    "route prepend 10.3.9.0/24 dev eth1",
    "route del 10.3.9.0/24 via 10.1.0.9",
    "route add blackhole 10.3.11.0/24",
    "route add unreachable fd01::7:0/112",
    "route add prohibit 10.1.0.128/25",
    "route add throw 10.1.0.64/26",
    "route add fd03::/64 dev eth2",
    "route append fd03::/64 dev eth1",
    "route add fd03::8:0/112 nexthop via fd01::8 nexthop via fd01::9",
    "route append fd03::8:0/112 nexthop via fd01::7",
    "route del fd03::8:0/112 via fd01::8",
    "route del fd03::8:0/112",
    "addr add 10.1.0.2/24 dev eth1",
    "addr add 10.4.0.1/24 dev eth1",
    "addr del 10.1.0.1/24 dev eth1",
    "nexthop add id 2 via 10.2.0.9 dev eth2",
    "nexthop add id 3 dev eth1",
    "nexthop add id 7 group 2/3",
    "route add 10.45.0.0/16 nhid 7",
    "nexthop del id 2",
    "route del 10.3.0.0/16",
    "link set eth2 down",
    "link set eth2 up",
    "link del eth1",
)


def test_each_change_leaves_what_a_fresh_read_finds(host: Host, watcher: RouteWatcher) -> None:
    """After each of a row of changes the followed trie equals the one that a new watcher reads."""
    for change in CHANGES:
        host.ip(change)
        with RouteWatcher({}, host.name) as fresh:
            load.wait_until(lambda: agree(watcher, fresh), what=change, timeout=SECONDS)
    assert watcher.resyncs == 0
    assert watcher.changes > len(CHANGES)


def test_addresses_and_subnets_are_there_from_the_start(watcher: RouteWatcher) -> None:
    """Own addresses are loopback and their subnets local in both families; nothing else has an entry."""
    assert [class_of(watcher, a) for a in ("10.1.0.1", "fd01::1", "::1")] == [LOOPBACK] * 3
    assert [class_of(watcher, a) for a in ("10.1.0.9", "10.2.0.9", "fd01::9", "fe80::9")] == [LOCAL] * 4
    assert [class_of(watcher, a) for a in ("10.3.0.1", "8.8.8.8", "2001:db8::1")] == [REMOTE] * 3
    assert watcher.trie().keys() >= {network("10.1.0.0/24"), network("10.1.0.1/32"), network("fd01::/64")}


def test_address_comes_and_goes(host: Host, watcher: RouteWatcher) -> None:
    """A new address is loopback and its subnet local; removed, both are remote again. Secondary ones count."""
    host.ip("addr add 10.5.0.1/24 dev eth1", "addr add 10.5.0.2/24 dev eth1")
    wait_for(watcher, "10.5.0.2", LOOPBACK)
    wait_for(watcher, "10.5.0.9", LOCAL)
    host.ip("addr del 10.5.0.2/24 dev eth1")
    wait_for(watcher, "10.5.0.2", LOCAL)
    host.ip("addr del 10.5.0.1/24 dev eth1")
    wait_for(watcher, "10.5.0.1", REMOTE)


def test_address_without_prefix_route_has_no_subnet(host: Host, watcher: RouteWatcher) -> None:
    """With `noprefixroute` the address is loopback and nothing around it is local, in both families."""
    host.ip("addr add 10.6.0.1/24 dev eth1 noprefixroute", "addr add fd06::1/64 dev eth1 nodad noprefixroute")
    wait_for(watcher, "10.6.0.1", LOOPBACK)
    wait_for(watcher, "fd06::1", LOOPBACK)
    assert [class_of(watcher, a) for a in ("10.6.0.2", "fd06::2")] == [REMOTE] * 2


def test_peer_of_a_point_to_point_address_is_local(host: Host, watcher: RouteWatcher) -> None:
    """`address peer address` makes the peer's /32 local, /31 both ends; beside them is remote."""
    host.ip("addr add 10.7.0.1 peer 10.8.0.1/32 dev eth1", "addr add 10.9.0.0/31 dev eth2")
    wait_for(watcher, "10.8.0.1", LOCAL)
    wait_for(watcher, "10.9.0.1", LOCAL)
    assert [class_of(watcher, a) for a in ("10.7.0.1", "10.9.0.0", "10.8.0.2")] == [LOOPBACK, LOOPBACK, REMOTE]


def test_routes_inside_each_other(host: Host, watcher: RouteWatcher) -> None:
    """On-link inside gateway inside on-link: the innermost counts, and deleting it restores the outer answer."""
    host.ip("route add 10.16.0.0/12 dev eth1", "route add 10.17.0.0/16 via 10.1.0.9", "route add 10.17.3.0/24 dev eth2")
    wait_for(watcher, "10.17.3.1", LOCAL)
    wait_for(watcher, "10.17.4.1", REMOTE)
    assert class_of(watcher, "10.18.0.1") == LOCAL
    host.ip("route del 10.17.3.0/24")
    wait_for(watcher, "10.17.3.1", REMOTE)
    host.ip("route del 10.17.0.0/16")
    wait_for(watcher, "10.17.3.1", LOCAL)
    host.ip("route del 10.16.0.0/12")
    wait_for(watcher, "10.17.3.1", REMOTE)


@pytest.mark.parametrize("route", ["10.32.7.0/24 via 10.1.0.9", "blackhole 10.32.7.0/24"])
def test_prefix_that_appears_later_covers_routes_not_kept(host: Host, watcher: RouteWatcher, route: str) -> None:
    """A gateway route is not kept while nothing covers it; when an on-link prefix does, it is read again."""
    host.ip(f"route add {route}")
    assert not settle(watcher)
    host.ip("route add 10.32.0.0/16 dev eth1")
    wait_for(watcher, "10.32.0.1", LOCAL)
    wait_for(watcher, "10.32.7.1", REMOTE)
    assert watcher.resyncs == 0


def test_replaced_route_has_the_new_class(host: Host, watcher: RouteWatcher) -> None:
    """`ip route replace` from on-link to gateway and back changes the class each time."""
    host.ip("route add 10.33.0.0/16 dev eth1")
    wait_for(watcher, "10.33.0.1", LOCAL)
    host.ip("route replace 10.33.0.0/16 via 10.1.0.9")
    wait_for(watcher, "10.33.0.1", REMOTE)
    host.ip("route replace 10.33.0.0/16 dev eth2")
    wait_for(watcher, "10.33.0.1", LOCAL)


def test_lower_metric_wins_while_it_is_there(host: Host, watcher: RouteWatcher) -> None:
    """Of two routes to one prefix the lower metric counts, until it is deleted."""
    host.ip("route add 10.34.0.0/16 dev eth1 metric 20")
    wait_for(watcher, "10.34.0.1", LOCAL)
    host.ip("route add 10.34.0.0/16 via 10.1.0.9 metric 10")
    wait_for(watcher, "10.34.0.1", REMOTE)
    host.ip("route del 10.34.0.0/16 metric 10")
    wait_for(watcher, "10.34.0.1", LOCAL)


def test_other_tables_count(host: Host, watcher: RouteWatcher) -> None:
    """An on-link prefix of a table of its own is local; main decides where both know the prefix."""
    host.ip("route add 10.35.0.0/16 dev eth1 table 1000")
    wait_for(watcher, "10.35.0.1", LOCAL)
    host.ip("route add 10.35.0.0/16 via 10.1.0.9")
    wait_for(watcher, "10.35.0.1", REMOTE)


def test_link_down_takes_its_routes_along(host: Host, watcher: RouteWatcher) -> None:
    """A link that goes down loses its routes, in IPv4 without a message for each; its address stays loopback."""
    host.ip("route add 10.36.0.0/16 dev eth1", "route add fd36::/64 dev eth1")
    wait_for(watcher, "10.36.0.1", LOCAL)
    wait_for(watcher, "fd36::1", LOCAL)
    host.ip("link set eth1 down")
    wait_for(watcher, "10.36.0.1", REMOTE)
    wait_for(watcher, "fd36::1", REMOTE)
    wait_for(watcher, "10.1.0.9", REMOTE)
    assert [class_of(watcher, a) for a in ("10.1.0.1", "10.2.0.9")] == [LOOPBACK, LOCAL]
    host.ip("link set eth1 up")
    wait_for(watcher, "10.1.0.9", LOCAL)
    assert class_of(watcher, "10.36.0.1") == REMOTE
    assert watcher.resyncs == 0


def test_deleted_link_takes_its_addresses_along(host: Host, watcher: RouteWatcher) -> None:
    """With the link its addresses, subnets and routes are remote; other links keep theirs."""
    host.ip("route add 10.37.0.0/16 dev eth1")
    wait_for(watcher, "10.37.0.1", LOCAL)
    host.ip("link del eth1")
    for address in ("10.37.0.1", "10.1.0.1", "10.1.0.9", "fd01::1", "fd01::9"):
        wait_for(watcher, address, REMOTE)
    assert [class_of(watcher, a) for a in ("10.2.0.1", "10.2.0.9")] == [LOOPBACK, LOCAL]


def test_port_that_leaves_a_bridge_keeps_its_subnet(host: Host, watcher: RouteWatcher) -> None:
    """The bridge family's RTM_DELLINK is not the end of a link."""
    host.ip("link add br0 type bridge", "link set eth2 master br0", "link set eth2 nomaster")
    assert settle(watcher)
    assert [class_of(watcher, a) for a in ("10.2.0.9", "10.2.0.1")] == [LOCAL, LOOPBACK]


def test_route_goes_with_its_preferred_source(host: Host, watcher: RouteWatcher) -> None:
    """Deleting an address silently takes the routes of which it is the source; other routes stay."""
    host.ip(
        "addr add 10.39.0.1/32 dev eth1",
        "route add 10.40.0.0/16 dev eth1 src 10.39.0.1",
        "route add 10.41.0.0/16 dev eth1",
    )
    wait_for(watcher, "10.40.0.1", LOCAL)
    host.ip("addr del 10.39.0.1/32 dev eth1")
    wait_for(watcher, "10.40.0.1", REMOTE)
    assert class_of(watcher, "10.41.0.1") == LOCAL


def test_routes_go_with_the_last_address_of_a_link(host: Host, watcher: RouteWatcher) -> None:
    """Without any IPv4 address a link keeps no IPv4 route, and the kernel does not tell of each; IPv6 stays."""
    host.ip("addr add fd02::1/64 dev eth2 nodad", "route add 10.61.0.0/16 dev eth2", "route add 10.62.0.0/16 dev eth1")
    wait_for(watcher, "10.61.0.1", LOCAL)
    host.ip("addr del 10.2.0.1/24 dev eth2")
    wait_for(watcher, "10.61.0.1", REMOTE)
    assert [class_of(watcher, a) for a in ("10.62.0.1", "fd02::9")] == [LOCAL, LOCAL]


def test_hole_in_a_subnet_closes_with_its_nexthop_object(host: Host, watcher: RouteWatcher) -> None:
    """A deleted object silently takes its routes along: what they covered is local again."""
    host.ip("nexthop add id 31 via 10.2.0.9 dev eth2", "route add 10.1.0.128/25 nhid 31")
    wait_for(watcher, "10.1.0.129", REMOTE)
    host.ip("nexthop replace id 31 via 10.2.0.8 dev eth2")
    wait_until(watcher, lambda: str(explain(watcher, "10.1.0.129").gateway) == "10.2.0.8")
    host.ip("nexthop del id 31")
    wait_for(watcher, "10.1.0.129", LOCAL)


def test_group_that_loses_its_last_gateway_is_local(host: Host, watcher: RouteWatcher) -> None:
    """A group of a gateway and a link without one is remote; when the gateway's link goes down, it is local."""
    host.ip("nexthop add id 2 via 10.2.0.9 dev eth2", "nexthop add id 3 dev eth1", "nexthop add id 7 group 2/3")
    host.ip("route add 10.63.0.0/16 nhid 7")
    settle(watcher)
    assert class_of(watcher, "10.63.0.1") == REMOTE
    host.ip("link set eth2 down")
    wait_for(watcher, "10.63.0.1", LOCAL)


def test_nexthop_object_says_where_its_routes_lead(host: Host, watcher: RouteWatcher) -> None:
    """The class follows the object: without gateway local, replaced by one with a gateway remote, deleted remote."""
    host.ip("nexthop add id 23 dev eth1", "nexthop add id 29 via 10.1.0.9 dev eth1")
    host.ip("route add 10.42.0.0/16 nhid 23", "route add 10.43.0.0/16 nhid 29")
    wait_for(watcher, "10.42.0.1", LOCAL)
    assert class_of(watcher, "10.43.0.1") == REMOTE
    host.ip("nexthop replace id 29 dev eth2")
    wait_for(watcher, "10.43.0.1", LOCAL)
    host.ip("nexthop replace id 23 via 10.1.0.9 dev eth1")
    wait_for(watcher, "10.42.0.1", REMOTE)
    host.ip("nexthop del id 29")
    wait_for(watcher, "10.43.0.1", REMOTE)


def test_nexthop_object_goes_with_its_link(host: Host, watcher: RouteWatcher) -> None:
    """A link that goes down takes objects and their routes, without a message for either; a group lives on."""
    host.ip("nexthop add id 3 dev eth1", "nexthop add id 5 dev eth2", "nexthop add id 7 group 3/5")
    host.ip("route add 10.44.0.0/16 nhid 3", "route add 10.45.0.0/16 nhid 7")
    wait_for(watcher, "10.44.0.1", LOCAL)
    wait_for(watcher, "10.45.0.1", LOCAL)
    host.ip("link set eth1 down")
    wait_for(watcher, "10.44.0.1", REMOTE)
    with RouteWatcher({}, host.name) as fresh:
        wait_until(watcher, lambda: watcher.trie() == fresh.trie())
    assert class_of(watcher, "10.45.0.1") == LOCAL


def test_blackhole_nexthop_is_remote(host: Host, watcher: RouteWatcher) -> None:
    """A route to a blackhole object inside a subnet is a hole in it."""
    host.ip("nexthop add id 11 blackhole", "route add 10.1.0.128/25 nhid 11")
    wait_for(watcher, "10.1.0.129", REMOTE)
    assert class_of(watcher, "10.1.0.9") == LOCAL


def test_multipath_is_local_only_without_any_gateway(host: Host, watcher: RouteWatcher) -> None:
    """All hops on-link: local. One hop through a gateway: remote."""
    host.ip("route add 10.46.0.0/16 nexthop dev eth1 nexthop dev eth2")
    host.ip("route add 10.2.0.128/25 nexthop dev eth1 nexthop via 10.1.0.9")
    host.ip("route add fd01::7:0/112 nexthop via fd01::8 nexthop via fd01::9")
    wait_for(watcher, "10.46.0.1", LOCAL)
    wait_for(watcher, "10.2.0.129", REMOTE)
    wait_for(watcher, "fd01::7:1", REMOTE)
    host.ip("link set eth1 down")
    wait_for(watcher, "10.1.0.9", REMOTE)
    assert class_of(watcher, "10.46.0.1") == LOCAL


def test_ipv6_gateway_of_an_ipv4_route_is_a_gateway(host: Host, watcher: RouteWatcher) -> None:
    """`via inet6` (RTA_VIA) inside an on-link prefix is remote, and explain names the gateway."""
    host.ip("route add 10.1.0.128/25 via inet6 fd01::9 dev eth1")
    wait_for(watcher, "10.1.0.129", REMOTE)
    assert str(explain(watcher, "10.1.0.129").gateway) == "fd01::9"


def test_tunnel_default_does_not_make_the_internet_local(host: Host, watcher: RouteWatcher) -> None:
    """On a tun device only what its address gives is local; default, half-defaults and subnets put there are not."""
    host.ip("tuntap add tun0 mode tun", "link set tun0 up", "addr add 10.50.0.1/24 dev tun0")
    host.ip("route add default dev tun0", "route add 0.0.0.0/1 dev tun0", "route add 10.51.0.0/16 dev tun0")
    wait_for(watcher, "10.50.0.9", LOCAL)
    settle(watcher)
    assert [class_of(watcher, a) for a in ("10.51.0.1", "8.8.8.8", "203.0.113.1")] == [REMOTE] * 3
    assert explain(watcher, "203.0.113.1").interface == "tun0"
    host.ip("route add 10.1.0.128/25 dev tun0")
    wait_for(watcher, "10.1.0.129", REMOTE)


def test_default_route_on_ethernet_is_remote(host: Host, watcher: RouteWatcher) -> None:
    """`default dev eth1`, without gateway, is still no subnet."""
    host.ip("route add default dev eth1", "route add ::/0 dev eth1")
    settle(watcher)
    assert [class_of(watcher, a) for a in ("8.8.8.8", "2001:db8::1")] == [REMOTE] * 2


def test_own_range_is_loopback(host: Host, watcher: RouteWatcher) -> None:
    """An address with a prefix on lo makes the whole prefix the host's own, a proxy's `local default` nothing."""
    host.ip("addr add 10.60.0.1/24 dev lo", "route add local default dev lo table 100")
    wait_for(watcher, "10.60.0.77", LOOPBACK)
    assert class_of(watcher, "8.8.8.8") == REMOTE


def test_overrides_win_over_routes_but_not_over_own_addresses(host: Host) -> None:
    """What is said of them has the route all the same."""
    with RouteWatcher({network("10.1.0.0/16"): REMOTE, network("8.8.8.0/24"): LOCAL}, host.name) as watcher:
        host.ip("route add default via 10.2.0.9")
        settle(watcher)
        assert [class_of(watcher, a) for a in ("10.1.0.9", "10.1.0.1", "8.8.8.8")] == [REMOTE, LOOPBACK, LOCAL]
        override = explain(watcher, "8.8.8.8")
        assert (override.source, override.interface, str(override.gateway)) == ("override", "eth2", "10.2.0.9")


def test_explain_asks_the_kernel_for_routes_not_kept(host: Host, watcher: RouteWatcher) -> None:
    """A gateway route that is not in the trie is still explained: prefix, interface and gateway."""
    nothing = explain(watcher, "203.0.113.1")
    assert (nothing.source, nothing.prefix, nothing.class_) == ("no route", None, REMOTE)
    host.ip("route add 203.0.113.0/24 via 10.1.0.9", "route add fd99::/48 via fd01::9")
    for address, prefix, gateway in (
        ("203.0.113.1", "203.0.113.0/24", "10.1.0.9"),
        ("fd99::1", "fd99::/48", "fd01::9"),
    ):
        found = explain(watcher, address)
        assert (str(found.prefix), found.source, found.interface) == (prefix, "route", "eth1")
        assert str(found.gateway) == gateway
    own = explain(watcher, "10.1.0.1")
    assert (own.class_, own.source, own.interface) == (LOOPBACK, "address", "eth1")


def test_irrelevant_routes_change_nothing_and_are_counted(host: Host, watcher: RouteWatcher) -> None:
    """Gateway routes that no on-link prefix covers are dropped unread: 1009 notifications, no change, none kept."""
    settle(watcher)
    earlier, before = watcher.changes, watcher.trie()
    host.ip(*(f"route add 172.16.{n // 256}.{n % 256} via 10.1.0.9" for n in range(1007)))
    host.ip("route add 172.17.0.0/24 via inet6 fd01::9 dev eth1")
    host.ip("route add 172.17.1.0/24 nexthop dev eth1 nexthop via 10.1.0.9")
    assert not settle(watcher)
    assert watcher.changes - earlier == 1009
    assert watcher.trie() == before


def test_lost_notifications_are_made_good(host: Host) -> None:
    """A queue too small for a burst overflows (ENOBUFS); everything is read again, and that is counted."""
    host.ip(*(f"route add 10.70.{n}.0/24 dev eth1" for n in range(101)))
    with RouteWatcher({}, host.name, receive_bytes=4096) as watcher:
        assert class_of(watcher, "10.70.100.1") == LOCAL
        host.ip(*(f"route del 10.70.{n}.0/24" for n in range(1, 101)))
        wait_until(watcher, lambda: watcher.resyncs > 0)
        settle(watcher)
        assert [class_of(watcher, f"10.70.{n}.1") for n in range(101)] == [LOCAL] + [REMOTE] * 100
        host.ip("route del 10.70.0.0/24")
        wait_for(watcher, "10.70.0.1", REMOTE)


def test_unknown_namespace_is_an_error_with_a_hint() -> None:
    """A namespace that does not exist raises TwctlError that names it."""
    with pytest.raises(TwctlError, match="twr-nowhere"):
        RouteWatcher({}, "twr-nowhere")


def test_namespace_of_the_caller_stays(host: Host) -> None:
    """Watching another namespace does not move the calling thread."""
    before = Path("/proc/thread-self/ns/net").readlink()
    with RouteWatcher({}, host.name):
        assert Path("/proc/thread-self/ns/net").readlink() == before


def test_no_descriptor_is_left_open(host: Host) -> None:
    """A closed watcher leaves as many descriptors as there were."""
    before = descriptors()
    with RouteWatcher({}, host.name):
        assert descriptors() > before
    assert descriptors() == before
