"""What may keep the guard from seeing what the sockets see, in a namespace that has it."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.modes.obstacles import obstacles

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="network namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)

FILTER = ("protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace() as made:
        yield made


def run(ns: Namespace, *words: str) -> None:
    """Run a program inside."""
    subprocess.run(ns.command(*words), check=True)


def test_an_empty_namespace_has_none(ns: Namespace) -> None:
    """Nor one with filter rules, or with NAT that no rule uses."""
    assert list(obstacles(ns.name)) == []
    nat, other = "type nat hook prerouting priority 0;", "type filter hook input priority 0; tcp dport 1 drop;"
    run(ns, "nft", f"table ip t {{ chain c {{ {nat} }}; chain f {{ {other} }}; }}")
    assert list(obstacles(ns.name)) == []


def test_nat_of_each_table_is_one(ns: Namespace) -> None:
    """In both families and in inet, by the names of table and chain."""
    families, rule = ("inet", "ip", "ip6"), "type nat hook output priority 0; tcp dport 1 redirect to :2;"
    for family in families:
        run(ns, "nft", f"table {family} t{family} {{ chain c {{ {rule} }}; }}")
    assert sorted(obstacles(ns.name)) == [
        f"nftables has NAT in t{family} c: tuples on the wire may not be those of the sockets" for family in families
    ]


def test_ipsec_policies_are_one(ns: Namespace) -> None:
    """However many there are."""
    for direction in ("in", "out"):
        run(ns, "ip", "xfrm", "policy", "add", "src", "10.0.0.0/24", "dst", "10.1.0.0/24", "dir", direction)
    assert list(obstacles(ns.name)) == ["2 IPsec policies: the guard does not see inside ESP"]


def test_a_filter_before_the_guard_is_one(ns: Namespace) -> None:
    """One that comes after the guard's priority is none."""
    run(ns, "tc", "qdisc", "add", "dev", "lo", "clsact")
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "2", *FILTER)
    assert list(obstacles(ns.name)) == []
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "1", *FILTER)
    assert set(obstacles(ns.name)) == {"another TC filter on lo runs before the guard (pref 1)"}


def test_a_namespace_that_is_not_there_is_an_error() -> None:
    """It names it."""
    with pytest.raises(TwctlError, match="twl-nowhere"):
        list(obstacles("twl-nowhere"))
