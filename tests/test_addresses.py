"""IP addresses and endpoints: families, and how they are written."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from twctl.addresses import family_of, host_port, is_ipv4, socket_family, unmapped


@pytest.mark.parametrize(
    ("address", "label", "number"),
    [("192.0.2.1", "ipv4", socket.AF_INET), ("2001:db8::1", "ipv6", socket.AF_INET6), ("::1", "ipv6", socket.AF_INET6)],
)
def test_an_address_has_one_family(address: str, label: str, number: int) -> None:
    """Label and number say the same."""
    assert (label, number) == (family_of(ip_address(address)), socket_family(ip_address(address)))


def test_a_prefix_has_the_family_of_its_addresses() -> None:
    """Also where it covers everything."""
    assert [True, False] == [is_ipv4(ip_network(prefix)) for prefix in ("0.0.0.0/0", "::/0")]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("192.0.2.1", "192.0.2.1:443"), ("2001:db8::1", "[2001:db8::1]:443"), ("metrics.example", "metrics.example:443")],
)
def test_an_endpoint_is_written_with_brackets_around_ipv6(host: str, expected: str) -> None:
    """Addresses as text, and names."""
    assert expected == host_port(host, 443)


def test_a_mapped_address_is_ipv4_on_the_wire() -> None:
    """Others stay as they are."""
    assert ip_address("192.0.2.1") == unmapped(ip_address("::ffff:192.0.2.1"))
    assert ip_address("2001:db8::1") == unmapped(ip_address("2001:db8::1"))
