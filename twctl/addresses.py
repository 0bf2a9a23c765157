"""IP addresses and endpoints: their types, their family, and the one way they are written."""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Endpoint = tuple[Address, int]  # address, port

FAMILIES = ("ipv4", "ipv6")  # labels of the address families, in the order of enum family (bpf/vestige.h)


def is_ipv4(address: Address | Network) -> bool:
    """Whether an address or prefix is IPv4."""
    return isinstance(address, ipaddress.IPv4Address | ipaddress.IPv4Network)


def family_of(address: Address | Network) -> str:
    """The label of an address's family (str): ipv4 or ipv6."""
    return FAMILIES[not is_ipv4(address)]


def socket_family(address: Address) -> socket.AddressFamily:
    """The family as the kernel's interfaces name it: AF_INET or AF_INET6."""
    return socket.AF_INET if is_ipv4(address) else socket.AF_INET6


def unmapped(address: Address) -> Address:
    """The IPv4 address inside ::ffff:0:0/96, else the address itself: on the wire such a session is IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def host_port(host: Address | str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    text = str(host)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
