"""Classes of addresses from routes and overrides: the rules one by one, then all of them against brute force."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from twctl.addresses import Address, Network
from twctl.classes import Class, Classifier, Kind, Route

LOOPBACK, LOCAL, REMOTE = Class.LOOPBACK, Class.LOCAL, Class.REMOTE
BUILT_IN = {"127.0.0.0/8": LOOPBACK, "::1/128": LOOPBACK, "fe80::/10": LOCAL}


def route(prefix: str, kind: Kind, table: int = 254, metric: int = 0, interface: str | None = "eth0") -> Route:
    """A route; one of kind gateway goes through the first address of 192.0.2.0/24."""
    gateway = ipaddress.ip_address("192.0.2.1") if kind == "gateway" else None
    return Route(ipaddress.ip_network(prefix), table, metric, kind, interface, gateway)


def classifier(*routes: Route, **overrides: Class) -> Classifier:
    """Classifier of routes, with no overrides."""
    return Classifier(routes, {ipaddress.ip_network(prefix): class_ for prefix, class_ in overrides.items()})


def entries(made: Classifier) -> dict[str, Class]:
    """The trie without the built-in prefixes, as text."""
    return {str(prefix): class_ for prefix, class_ in made.trie().items() if str(prefix) not in BUILT_IN}


def class_of(made: Classifier, address: str) -> Class:
    """Class by the trie alone, as the probe finds it; explain must agree."""
    peer = ipaddress.ip_address(address)
    found = longest(made.trie(), peer)
    assert made.explain(peer).class_ == found
    return found


def longest(trie: dict[Network, Class], address: Address) -> Class:
    """Longest-prefix match; no match is remote."""
    matches = [prefix for prefix in trie if address in prefix]
    return trie[max(matches, key=lambda prefix: prefix.prefixlen)] if matches else REMOTE


def test_labels_are_the_words_of_metrics_and_configuration() -> None:
    """The label of a class is its name in lower case, and its number is that of the BPF maps."""
    assert [(class_.value, class_.label) for class_ in Class] == [(0, "loopback"), (1, "local"), (2, "remote")]


def test_host_without_routes_knows_only_itself_and_link_local() -> None:
    """With no routes, 127.0.0.0/8 and ::1 are loopback, fe80::/10 is local, and the rest is remote."""
    made = classifier()
    assert {str(prefix): class_ for prefix, class_ in made.trie().items()} == BUILT_IN
    assert class_of(made, "198.51.100.1") == REMOTE
    assert class_of(made, "2001:db8::1") == REMOTE
    assert class_of(made, "febf::1") == LOCAL
    assert class_of(made, "fec0::1") == REMOTE


def test_subnet_is_local_and_own_address_in_it_is_loopback() -> None:
    """An on-link prefix is local, the host's address inside it is loopback, beside it all is remote."""
    made = classifier(route("10.1.0.0/16", "onlink"), route("10.1.2.3/32", "local", 255), route("0.0.0.0/0", "gateway"))
    assert entries(made) == {"10.1.0.0/16": LOCAL, "10.1.2.3/32": LOOPBACK}
    assert class_of(made, "10.2.0.0") == REMOTE


def test_gateway_route_inside_a_subnet_is_remote() -> None:
    """A more specific route through a gateway makes a remote hole in a local prefix."""
    made = classifier(route("10.0.0.0/8", "onlink"), route("10.1.0.0/16", "gateway"))
    assert entries(made) == {"10.0.0.0/8": LOCAL, "10.1.0.0/16": REMOTE}


def test_subnet_inside_a_gateway_route_is_local() -> None:
    """An on-link prefix inside a gateway route is local; the gateway route needs no entry."""
    made = classifier(route("10.0.0.0/8", "gateway"), route("10.1.0.0/16", "onlink"))
    assert entries(made) == {"10.1.0.0/16": LOCAL}


def test_point_to_point_prefixes_of_31_and_32_bits_are_local() -> None:
    """On-link prefixes may be as long as the address: /31 (RFC 3021), /32 and /128 peers are local."""
    made = classifier(route("10.1.0.0/31", "onlink"), route("10.2.0.1/32", "onlink"), route("fd00::2/128", "onlink"))
    assert entries(made) == {"10.1.0.0/31": LOCAL, "10.2.0.1/32": LOCAL, "fd00::2/128": LOCAL}


def test_default_route_without_gateway_is_remote() -> None:
    """`default dev wg0` does not make the whole Internet local, in either family and on any device."""
    made = classifier(route("0.0.0.0/0", "onlink"), route("::/0", "onlink"), route("0.0.0.0/1", "tunnel"))
    assert entries(made) == {}
    assert class_of(made, "203.0.113.9") == REMOTE


def test_route_into_a_tunnel_is_a_hole_in_a_subnet() -> None:
    """What was put on a device without neighbours is remote, also inside an on-link prefix."""
    made = classifier(route("10.0.0.0/8", "onlink"), route("10.7.0.0/16", "tunnel", interface="wg0"))
    assert class_of(made, "10.7.1.1") == REMOTE
    assert class_of(made, "10.8.1.1") == LOCAL


def test_blackhole_inside_a_subnet_is_remote() -> None:
    """Prefixes that the host refuses to reach hold no sessions and are remote."""
    kinds: tuple[Kind, ...] = ("blackhole", "unreachable", "prohibit")
    made = classifier(route("10.0.0.0/8", "onlink"), *(route(f"10.{n}.0.0/16", k) for n, k in enumerate(kinds)))
    assert [class_of(made, f"10.{n}.0.1") for n in range(4)] == [REMOTE, REMOTE, REMOTE, LOCAL]


def test_table_order_decides_about_one_prefix() -> None:
    """The same prefix in several tables: main before default before the others by number."""
    near, far = route("10.0.0.0/8", "onlink", 254, 500), route("10.0.0.0/8", "gateway", 253)
    assert entries(classifier(far, near)) == {"10.0.0.0/8": LOCAL}
    assert entries(classifier(route("10.0.0.0/8", "onlink", 7), far)) == {}
    assert entries(classifier(route("10.0.0.0/8", "gateway", 300), route("10.0.0.0/8", "onlink", 7))) != {}


def test_lowest_metric_decides_inside_a_table() -> None:
    """The same prefix twice in a table: the lower metric counts, whatever the order they come in."""
    near, far = route("10.0.0.0/8", "onlink", metric=100), route("10.0.0.0/8", "gateway", metric=99)
    assert entries(classifier(near, far)) == entries(classifier(far, near)) == {}


def test_override_speaks_for_every_route_inside_it() -> None:
    """A configured class holds for the whole prefix, also where more specific routes say otherwise."""
    made = classifier(route("10.1.0.0/16", "gateway"), route("10.2.0.0/16", "onlink"), **{"10.0.0.0/8": LOCAL})
    assert entries(made) == {"10.0.0.0/8": LOCAL}
    assert made.explain(ipaddress.ip_address("10.1.0.1")).source == "override"


def test_more_specific_override_wins() -> None:
    """Of two overrides around an address the longer one counts."""
    made = classifier(**{"10.0.0.0/8": LOCAL, "10.1.0.0/16": REMOTE, "fe80::/16": REMOTE})
    assert class_of(made, "10.1.0.1") == REMOTE
    assert class_of(made, "10.2.0.1") == LOCAL
    assert class_of(made, "fe80::1") == REMOTE


def test_override_never_takes_an_own_address() -> None:
    """The host's own addresses and 127.0.0.0/8 stay loopback inside, under and at an override."""
    own = (route("10.1.2.3/32", "local", 255), route("10.9.0.0/24", "local", 255))
    overrides = {"0.0.0.0/0": REMOTE, "10.1.2.3/32": REMOTE, "10.9.0.7/32": LOCAL, "127.0.0.0/9": LOCAL}
    made = classifier(*own, **overrides)
    assert [class_of(made, a) for a in ("10.1.2.3", "10.9.0.7", "127.0.0.1")] == [LOOPBACK] * 3
    assert entries(made) == {"10.1.2.3/32": LOOPBACK, "10.9.0.0/24": LOOPBACK}


def test_own_range_beats_routes_inside_it() -> None:
    """The kernel asks table `local` first: a longer route in main does not reach into it."""
    made = classifier(route("10.9.0.0/24", "local", 255), route("10.9.0.128/25", "gateway"))
    assert class_of(made, "10.9.0.200") == LOOPBACK


def test_transparent_proxy_does_not_own_the_internet() -> None:
    """`local default dev lo table 100` catches forwarded packets; only whole addresses count outside of `local`."""
    made = classifier(route("0.0.0.0/0", "local", 100), route("10.0.0.0/8", "local", 100), route("::/0", "local", 255))
    assert entries(made) == {}


def test_own_address_in_a_vrf_is_loopback() -> None:
    """A VRF keeps its own addresses in its own table; they are loopback all the same."""
    assert entries(classifier(route("10.1.2.3/32", "local", 10))) == {"10.1.2.3/32": LOOPBACK}


def test_link_local_is_on_link_whatever_the_routes_say() -> None:
    """fe80::/10 is local, even where a route inside it looks like one through a tunnel; 169.254/16 needs a route."""
    made = classifier(route("fe80::/64", "tunnel"), route("fe80::1/128", "local", 255))
    assert class_of(made, "fe80::2") == LOCAL
    assert class_of(made, "fe80::1") == LOOPBACK
    assert class_of(made, "169.254.1.1") == REMOTE
    assert class_of(classifier(route("169.254.0.0/16", "onlink")), "169.254.1.1") == LOCAL


def test_explanation_names_the_way() -> None:
    """An explanation carries the deciding prefix, its source, interface and gateway."""
    made = classifier(route("10.0.0.0/8", "onlink", interface="eth1"), route("10.1.0.0/16", "gateway"))
    near, far = (made.explain(ipaddress.ip_address(address)) for address in ("10.2.0.1", "10.1.0.1"))
    assert (str(near.prefix), near.source, near.interface, near.gateway) == ("10.0.0.0/8", "route", "eth1", None)
    assert (str(far.prefix), str(far.gateway), far.class_) == ("10.1.0.0/16", "192.0.2.1", REMOTE)
    assert made.explain(ipaddress.ip_address("192.0.2.1")).source == "no route"
    assert made.explain(ipaddress.ip_address("127.0.0.9")).source == "built-in"


def test_mapped_address_is_the_ipv4_address() -> None:
    """A peer of a dual-stack socket, ::ffff:a.b.c.d, has the class of a.b.c.d."""
    mapped = ipaddress.ip_address("::ffff:10.1.0.1")
    explanation = classifier(route("10.0.0.0/8", "onlink")).explain(mapped)
    assert (explanation.class_, str(explanation.prefix)) == (LOCAL, "10.0.0.0/8")


# Two narrow ranges, one around loopback and one around link-local, so that random prefixes meet each other.
BASES = (("10.0.0.0", 32), ("127.0.0.0", 32), ("fe80::", 128), ("fec0::", 128))
NARROW_BITS = 6
KINDS: tuple[Kind, ...] = ("local", "onlink", "tunnel", "gateway", "blackhole")


@st.composite
def prefixes(draw: st.DrawFn) -> Network:
    """A prefix of 26 to 32 bits (122 to 128), or a default route, or one of 6 to 12 bits."""
    base, bits = draw(st.sampled_from(BASES))
    length = draw(st.one_of(st.integers(bits - NARROW_BITS, bits), st.integers(6, 12), st.just(0)))
    host = draw(st.integers(0, 2**NARROW_BITS - 1))
    address = ipaddress.ip_address(int(ipaddress.ip_address(base)) + host)
    if bits == 128:
        address = ipaddress.IPv6Address(int(address))
    return ipaddress.ip_network(f"{address}/{length}", strict=False)


ROUTES = st.builds(
    Route, prefixes(), st.sampled_from((255, 254, 253, 7, 300)), st.integers(0, 2), st.sampled_from(KINDS)
)


def answer(routes: list[Route], overrides: dict[Network, Class], address: Address) -> Class:
    """The class of one address by the rules as they are told, without any structure."""
    around = [route for route in routes if address in route.prefix]
    own = [r for r in around if r.kind == "local" and 0 < r.prefix.prefixlen]
    if any(r.table == 255 or r.prefix.prefixlen == r.prefix.max_prefixlen for r in own) or address.is_loopback:
        return LOOPBACK
    if configured := [prefix for prefix in overrides if address in prefix]:
        return overrides[max(configured, key=lambda prefix: prefix.prefixlen)]
    if address.version == 6 and address.is_link_local:
        return LOCAL
    order = {255: -3, 254: -2, 253: -1}
    ways = [r for r in around if r.kind != "local"]
    ways.sort(key=lambda r: (-r.prefix.prefixlen, order.get(r.table, r.table), r.metric))
    return LOCAL if ways and ways[0].kind == "onlink" and ways[0].prefix.prefixlen else REMOTE


def probes(networks: set[Network]) -> set[Address]:
    """First and last address of every prefix and their neighbours: where any answer can change."""
    found: set[Address] = set()
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        kind = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        found.update(kind(n) for n in (first - 1, first, last, last + 1) if 0 <= n < 2**network.max_prefixlen)
    return found


@given(st.lists(ROUTES, max_size=12), st.dictionaries(prefixes(), st.sampled_from(Class), max_size=4))
def test_trie_gives_the_answers_of_all_routes_and_repeats_none(
    routes: list[Route], overrides: dict[Network, Class]
) -> None:
    """Longest-prefix match over the trie equals the brute-force answer, and no entry repeats the one around it."""
    # Of equal prefix, table and metric the first given counts: here each stands once.
    routes = list({(r.prefix, r.table, r.metric, r.kind == "local"): r for r in routes}.values())
    made = Classifier(routes, overrides)
    trie = made.trie()
    built_in = {ipaddress.ip_network(prefix) for prefix in BUILT_IN}
    for address in probes({route.prefix for route in routes} | set(overrides) | built_in):
        assert longest(trie, address) == made.explain(address).class_ == answer(routes, overrides, address)
    for prefix, class_ in trie.items():
        shorter = {other: trie[other] for other in trie if other.prefixlen < prefix.prefixlen}
        assert longest(shorter, prefix.network_address) != class_
