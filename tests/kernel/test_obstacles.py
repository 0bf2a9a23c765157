"""What may keep the guard from seeing what the sockets see, in a namespace that has it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.linux.netfilter import RuleNotices
from twctl.modes.obstacles import KINDS, obstacles

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


def lines(ns: Namespace) -> list[str]:
    """What is said of each, whose kind is known."""
    found = list(obstacles(ns.name))
    assert {each.kind for each in found} <= set(KINDS)
    return [each.text for each in found]


def test_an_empty_namespace_has_none(ns: Namespace) -> None:
    """Nor one with filter rules, or with NAT that no rule uses."""
    assert lines(ns) == []
    nat, other = "type nat hook prerouting priority 0;", "type filter hook input priority 0; tcp dport 1 drop;"
    run(ns, "nft", f"table ip t {{ chain c {{ {nat} }}; chain f {{ {other} }}; }}")
    assert lines(ns) == []


def test_nat_of_each_table_is_one(ns: Namespace) -> None:
    """In both families and in inet, by the names of table and chain."""
    families, rule = ("inet", "ip", "ip6"), "type nat hook output priority 0; tcp dport 1 redirect to :2;"
    for family in families:
        run(ns, "nft", f"table {family} t{family} {{ chain c {{ {rule} }}; }}")
    assert sorted(lines(ns)) == [
        f"nftables has NAT in t{family} c: tuples on the wire may not be those of the sockets" for family in families
    ]


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_nat_of_the_old_iptables_is_one(ns: Namespace, program: str) -> None:
    """Its table alone, for what is in there is not looked at."""
    run(ns, program, "-t", "nat", "-N", "one")
    assert ["nat"] == [each.kind for each in obstacles(ns.name)]


MARKED = ("-p", "tcp", "--dport", "1", "-j", "TPROXY", "--on-port", "2")
PROXIES = {
    "nft": (
        "nft",
        "table ip t { chain c { type filter hook prerouting priority mangle; tcp dport 1 tproxy to :2; }; }",
    ),
    **{
        name: (name, "-t", "mangle", "-A", "PREROUTING", *MARKED)
        for name in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy")
    },
}


@pytest.mark.parametrize("name", PROXIES)
def test_a_transparent_proxy_is_one(ns: Namespace, name: str) -> None:
    """Of nftables, and of either iptables; other rules of these tables are none."""
    command = PROXIES[name]
    if name != "nft":
        run(ns, *command[: -len(MARKED)], "-p", "tcp", "--dport", "1", "-j", "ACCEPT")
        assert lines(ns) == []
    run(ns, *command)
    assert ["tproxy"] == [each.kind for each in obstacles(ns.name)]


def test_a_change_of_rules_is_told(ns: Namespace) -> None:
    """Once, however many there were."""
    with contextlib.closing(RuleNotices(ns.name)) as notices:
        assert not notices.take()
        run(ns, "nft", "table ip t { chain c { }; }")
        assert [True, False] == [notices.take(), notices.take()]


def test_ipsec_policies_are_one(ns: Namespace) -> None:
    """However many there are."""
    for direction in ("in", "out"):
        run(ns, "ip", "xfrm", "policy", "add", "src", "10.0.0.0/24", "dst", "10.1.0.0/24", "dir", direction)
    assert lines(ns) == ["2 IPsec policies: the guard does not see inside ESP"]


def test_a_filter_before_the_guard_is_one(ns: Namespace) -> None:
    """One that comes after the guard's priority is none."""
    run(ns, "tc", "qdisc", "add", "dev", "lo", "clsact")
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "2", *FILTER)
    assert lines(ns) == []
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "1", *FILTER)
    assert set(lines(ns)) == {"another TC filter on lo runs before the guard (pref 1)"}


def test_a_namespace_that_is_not_there_is_an_error() -> None:
    """It names it."""
    with pytest.raises(TwctlError, match="twl-nowhere"):
        list(obstacles("twl-nowhere"))
