"""Reading links and routes of a namespace, and the route to one address."""

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from tests.load.netns import Link, link
from twctl.linux.netlink import RouteNetlink
from twctl.routes.reader import read_objects, read_routes, route_to
from twctl.routes.screen import Screen

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture(scope="module")
def both() -> Iterator[Link]:
    """A client with one subnet, and a route through a gateway."""
    with link() as made:
        made.client.ip("route", "add", "192.0.2.0/24", "via", made.server_ipv4)
        yield made


@pytest.fixture
def netlink(both: Link) -> Iterator[RouteNetlink]:
    """The client's."""
    made = RouteNetlink(both.client.name)
    yield made
    made.close()


def test_routes_that_can_matter_are_read_and_others_are_screened(netlink: RouteNetlink) -> None:
    """The subnet is there; the route through the gateway covers no subnet."""
    sock = netlink.dumps()
    try:
        fib = read_objects(netlink, sock)
        routes = list(read_routes(sock, Screen()))
        prefixes = {route.prefix for route in routes}
        assert ip_network("10.77.0.0/24") in prefixes
        assert ip_network("192.0.2.0/24") not in prefixes
        fib.replace(routes)
        kinds = {route.prefix: route.kind for route in fib.routes()}
        assert "onlink" == kinds[ip_network("10.77.0.0/24")]
        assert "local" == kinds[ip_network("127.0.0.0/8")]
    finally:
        sock.close()


def test_the_kernel_names_the_route_to_an_address(netlink: RouteNetlink, both: Link) -> None:
    """With its gateway; None where there is no route."""
    found = route_to(netlink, ip_address("192.0.2.7"))
    assert found
    assert ip_network("192.0.2.0/24") == found.prefix
    assert [both.server_ipv4] == [hop.gateway for hop in found.hops]
    assert route_to(netlink, ip_address("198.51.100.1")) is None
