"""What is read of netfilter's rules, in a namespace that has them."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.load.netns import Namespace, namespace
from twctl.linux.netfilter import RuleNotices, has_tproxy_rule
from twctl.linux.netns import inside

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="network namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace() as made:
        yield made


def run(ns: Namespace, *words: str) -> None:
    """Run a program inside."""
    subprocess.run(ns.command(*words), check=True)


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
def test_a_rule_for_a_transparent_proxy_is_found(ns: Namespace, name: str) -> None:
    """Of nftables, and of either iptables; other rules of these tables are none."""
    command = PROXIES[name]
    if name != "nft":
        run(ns, *command[: -len(MARKED)], "-p", "tcp", "--dport", "1", "-j", "ACCEPT")
        assert not inside(ns.name, has_tproxy_rule)
    run(ns, *command)
    assert inside(ns.name, has_tproxy_rule)


def test_a_change_of_rules_is_told(ns: Namespace) -> None:
    """Once, however many there were."""
    with contextlib.closing(RuleNotices(ns.name)) as notices:
        assert not notices.take()
        run(ns, "nft", "table ip t { chain c { }; }")
        assert [True, False] == [notices.take(), notices.take()]
