"""Rules about twctl's own work, at their edges: recorded snapshots with other numbers."""

import dataclasses

import pytest

from tests import ROOT
from tests.advise.test_rules import recorded
from tests.docs.pages import anchors
from twctl.advise.advice import PAGE
from twctl.advise.host import buckets_overflow
from twctl.advise.own import entries_lost, guard_suspended, no_daemon, table_too_small
from twctl.advise.ports import ports_used_up
from twctl.advise.snapshot import Snapshot


def with_buckets(snapshot: Snapshot, buckets: int) -> Snapshot:
    """With another tcp_max_tw_buckets in its namespace."""
    [one] = snapshot.namespaces
    other = dataclasses.replace(one, limits=dataclasses.replace(one.limits, max_tw_buckets=buckets))
    return dataclasses.replace(snapshot, namespaces=(other,))


@pytest.mark.parametrize(
    ("mode", "buckets", "urgency"),
    [
        ("observe", 131072, None),
        ("truncate", 131072, "better"),
        ("vestigial", 131072, "better"),
        ("vestigial", 0, "now"),
    ],
)
def test_without_a_daemon_a_guard_that_is_alone_is_urgent(mode: str, buckets: int, urgency: str | None) -> None:
    """Where the kernel keeps its sockets the mode is not in force; who observes may look without a daemon."""
    left = with_buckets(dataclasses.replace(recorded("well"), mode=mode, daemon=False), buckets)
    said = no_daemon(left)
    assert urgency == (said.urgency if said else None)
    assert no_daemon(dataclasses.replace(left, daemon=True)) is None


@pytest.mark.parametrize("mode", ["truncate", "vestigial"])
def test_without_a_daemon_the_kernel_s_sockets_are_what_counts(mode: str) -> None:
    """They can be drained, and can be too many; but not where it keeps none."""
    used_up, full = (dataclasses.replace(recorded(name), mode=mode, daemon=False) for name in ("used_up", "buckets"))
    said = ports_used_up(used_up)
    assert said
    assert "twctl drain" in said.remedy
    assert buckets_overflow(full)
    if mode == "vestigial":
        said = ports_used_up(with_buckets(used_up, 0))
        assert said
        assert "drain" not in said.remedy
        assert buckets_overflow(with_buckets(full, 0)) is None


@pytest.mark.parametrize(
    ("mode", "full", "evicted", "urgency"),
    [
        ("observe", 0.85, 0.0, None),
        ("observe", 0.86, 0.0, "better"),
        ("vestigial", 0.86, 0.0, "soon"),
        ("truncate", 0.5, 7.0, "better"),
        ("vestigial", 0.5, 7.0, "now"),
    ],
)
def test_a_table_that_evicts_is_too_small_and_one_that_is_nearly_full(
    mode: str, full: float, evicted: float, urgency: str | None
) -> None:
    """Behind a guard what it forgets is lost. Of several classes the one that loses most is named."""
    shares = {"loopback": full, "local": 0.1, "remote": full}
    snapshot = dataclasses.replace(recorded("well"), mode=mode, full=shares)
    snapshot = dataclasses.replace(snapshot, evicted={"loopback": 1.0, "remote": evicted} if evicted else {})
    said = table_too_small(snapshot)
    assert urgency == (said.urgency if said else None)
    assert not evicted or (said and "the table evicts remote sessions" in said.what)


@pytest.mark.parametrize(("lost", "urgency"), [(1.0, None), (1.1, "better")])
def test_entries_that_are_lost_are_told_by_reason(lost: float, urgency: str | None) -> None:
    """From the landing page's bound on: one in a thousand of those that enter."""
    snapshot = dataclasses.replace(recorded("well"), entered=1000.0, dropped={"collision": lost - 0.5, "nested": 0.5})
    said = entries_lost(snapshot)
    assert urgency == (said.urgency if said else None)
    assert said is None or (said.anchor in anchors(ROOT / PAGE) and "0.6 collision, 0.5 nested" in said.evidence)
    assert entries_lost(dataclasses.replace(snapshot, entered=0.0, dropped={})) is None


def test_a_guard_is_suspended_where_the_kernel_keeps_sockets() -> None:
    """While a daemon of mode vestigial runs; what it is that has come is told where it is known."""
    snapshot = dataclasses.replace(recorded("well"), mode="vestigial")
    said = guard_suspended(snapshot)
    assert said
    assert "the daemon's log says why" in said.evidence
    assert "is between wire" not in said.what  # it may be a device that cannot be guarded
    truncates, left = dataclasses.replace(snapshot, mode="truncate"), dataclasses.replace(snapshot, daemon=False)
    for other in (with_buckets(snapshot, 0), truncates, left):
        assert guard_suspended(other) is None
