"""Which sessions a selection takes, of those that the walk of a ring finds."""

import ipaddress
from itertools import product

import pytest

from twctl.modes.selection import Selection
from twctl.modes.truncate import DUE, Due
from twctl.table.shared import STRUCTS

SLOT = 23
PORTS = STRUCTS["diag_request"].slice("local_port")
REMOTE = STRUCTS["diag_request"].slice("remote")


def due(remote: str, local_port: int) -> Due:
    """A session in slot 23 that is due."""
    request, address = bytearray(STRUCTS["diag_request"].size), ipaddress.ip_address(remote).packed
    request[PORTS] = local_port.to_bytes(2, "big")
    request[REMOTE] = address.ljust(16, b"\0")
    zeros = Due._make(DUE.unpack(bytes(DUE.size)))
    return zeros._replace(request=bytes(request), word=1 << 60 | SLOT)


FOUND = {
    (remote, port): ("ipv6" if ":" in remote else "ipv4", due(remote, port))
    for remote, port in product(("10.0.0.1", "10.1.0.1", "fd00::1"), (80, 443))
}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), FOUND.keys()),
        (Selection(remote=ipaddress.ip_network("10.0.0.0/16")), {("10.0.0.1", 80), ("10.0.0.1", 443)}),
        (Selection(remote=ipaddress.ip_network("::/0")), {("fd00::1", 80), ("fd00::1", 443)}),
        (Selection(local_port=443), {("10.0.0.1", 443), ("10.1.0.1", 443), ("fd00::1", 443)}),
        (Selection(ipaddress.ip_network("10.1.0.1"), 80), {("10.1.0.1", 80)}),
        (Selection(owned=lambda family, slot: (family, slot) == ("ipv6", SLOT)), {("fd00::1", 80), ("fd00::1", 443)}),
    ],
    ids=["all", "IPv4 prefix", "IPv6 prefix", "port", "both", "owner"],
)
def test_it_takes_what_all_of_its_parts_take(selection: Selection, expected: set[tuple[str, int]]) -> None:
    """The owner is that of the slot, the rest stands in the request to the kernel."""
    assert set(expected) == {name for name, (family, one) in FOUND.items() if selection.takes(family, one)}
