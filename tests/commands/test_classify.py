"""What `twctl classify` prints."""

from ipaddress import ip_address, ip_network

from twctl.classes import Class, Explanation
from twctl.commands.classify import facts, text


def test_each_fact_is_a_line_and_what_there_is_not_a_dash() -> None:
    """A peer on the link has no gateway."""
    found = Explanation(Class.LOCAL, ip_network("10.0.0.0/8"), "route", "eth0")
    told = facts(ip_address("10.1.2.3"), found)
    assert {
        "address": "10.1.2.3",
        "class": "local",
        "prefix": "10.0.0.0/8",
        "source": "route",
        "interface": "eth0",
        "gateway": None,
    } == told
    assert ["interface", "eth0", "gateway", "-"] == text(told).split()[-4:]
