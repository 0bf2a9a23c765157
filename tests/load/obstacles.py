"""What hides packets from the guard, as tests put it into a namespace."""

from tests.load.netns import Namespace

POLICY = ("src", "192.0.2.0/24", "dst", "198.51.100.0/24", "dir", "out")
SAID = "1 IPsec policies"


def add_ipsec(ns: Namespace) -> None:
    """A policy of IPsec, which no packet of a test meets."""
    ns.ip("xfrm", "policy", "add", *POLICY)


def remove_ipsec(ns: Namespace) -> None:
    """Take it away."""
    ns.ip("xfrm", "policy", "delete", *POLICY)
