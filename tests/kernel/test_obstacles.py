"""What may keep the guard from seeing what the sockets see, in a namespace that has it."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.linux import tcx
from twctl.modes.obstacles import KINDS, PassedBy, obstacles

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


def test_nat_is_none(ns: Namespace) -> None:
    """The guard knows sessions by their tuples on the wire."""
    run(ns, "nft", "table ip t { chain c { type nat hook output priority 0; tcp dport 1 redirect to :2; }; }")
    run(ns, "iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    assert lines(ns) == []


def test_ipsec_policies_are_one(ns: Namespace) -> None:
    """However many there are."""
    for direction in ("in", "out"):
        run(ns, "ip", "xfrm", "policy", "add", "src", "10.0.0.0/24", "dst", "10.1.0.0/24", "dir", direction)
    assert lines(ns) == ["2 IPsec policies: the guard does not see inside ESP"]


def test_a_filter_before_the_guard_is_one_where_there_is_no_tcx(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes after the guard's priority is none."""
    monkeypatch.setattr(tcx, "is_available", lambda: False)
    run(ns, "tc", "qdisc", "add", "dev", "lo", "clsact")
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "2", *FILTER)
    assert lines(ns) == []
    run(ns, "tc", "filter", "add", "dev", "lo", "ingress", "pref", "1", *FILTER)
    assert set(lines(ns)) == {"another TC filter on lo runs before the guard (pref 1)"}
    monkeypatch.setattr(tcx, "is_available", lambda: True)
    assert lines(ns) == []


def test_sessions_that_leave_past_the_guard_are_one() -> None:
    """Until others do not; as long as there are none at all it stays as it was."""
    passed_by = PassedBy(5, 3, 0)
    looks = [(5, 3), (6, 3), (6, 4), (6, 4), (9, 5), (9, 5), (10, 5), (10, 5), (11, 5)]
    assert [False] * 2 + [True] * 6 + [False] == [bool([*passed_by.look(*each, 0)]) for each in looks]


def test_few_that_were_half_closed_before_are_none() -> None:
    """Some of one look only; some of two in a row are one, which two looks without any take back."""
    passed_by = PassedBy(0, 0, 0)
    looks = [(9, 1), (18, 1), (27, 2), (36, 3), (45, 3), (54, 4), (63, 4), (72, 4)]
    expected = [False, False, False, True, True, True, True, False]
    assert expected == [bool([*passed_by.look(*each, 0)]) for each in looks]


def test_those_that_had_no_memory_for_a_note_are_none() -> None:
    """Each is seen to leave twice, with its SYN and its FIN; what is missed beyond them counts, later too."""
    passed_by = PassedBy(0, 0, 0)
    looks = [(0, 3, 6), (1, 5, 10), (1, 9, 10)]
    assert [False, False, True] == [bool([*passed_by.look(*each)]) for each in looks]


def test_a_namespace_that_is_not_there_is_an_error() -> None:
    """It names it."""
    with pytest.raises(TwctlError, match="twl-nowhere"):
        list(obstacles("twl-nowhere"))
