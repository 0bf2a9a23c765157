"""Ports that are left to the host's own translation, from samples of conntrack."""

import ipaddress

from twctl.linux.conntrack import Key, Sample
from twctl.modes.translation import PORTS, Translation, translations


def key(source: str, remote: str, port: int = 443) -> Key:
    """As it is on the wire."""
    return Key(ipaddress.ip_address(source).packed, ipaddress.ip_address(remote).packed, port.to_bytes(2, "big"))


BUSY, SIX, OWN, IDLE = (
    key("10.9.0.1", "10.9.0.2"),
    key("fd09::1", "fd09::2", 80),
    key("10.9.0.1", "10.9.0.3"),
    (key("10.9.0.1", "10.9.0.4")),
)


def test_ports_are_counted_by_source_and_destination() -> None:
    """Untranslated connections from the same address hold them, too, but make nothing of their own a translation."""
    counts = {BUSY: 40009, SIX: 5003, OWN: 60013, IDLE: 23}
    found = Sample(105048, True, counts, {BUSY: 39989, SIX: 1, IDLE: 23}, {BUSY: 30011})  # noqa: FBT003 - complete
    assert [
        Translation("blue", "10.9.0.1", "10.9.0.2", 443, 40009, 30011),
        Translation("blue", "fd09::1", "fd09::2", 80, 5003, 0),
    ] == translations("blue", found, 105048, 5)
    assert [40009] == [each.taken for each in translations("blue", found, 105048, 1)]


def test_a_sample_stands_for_the_whole() -> None:
    """Of a million entries 10,007 were read: each stands for a hundred, and no more ports are held than there are."""
    found = Sample(10007, False, {BUSY: 499, SIX: 701}, {BUSY: 499, SIX: 701}, {BUSY: 101})  # noqa: FBT003 - complete
    worst, second = translations("", found, 1_000_700, 5)
    assert (PORTS, 1.0) == (worst.taken, worst.used)
    assert (49900, 10100) == (second.taken, second.closed)
