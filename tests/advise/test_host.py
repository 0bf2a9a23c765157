"""Rules about the host, at their edges: recorded snapshots with other numbers."""

import dataclasses
from typing import Any

import pytest

from tests import ROOT
from tests.advise.test_rules import recorded
from tests.docs.pages import anchors
from twctl.advise.advice import PAGE
from twctl.advise.host import (
    buckets_overflow,
    conntrack_full,
    mode_fits,
    orphans_overflow,
    peer_closes_first,
    peers_have_closed,
    server_closes_first,
    translation_used_up,
)
from twctl.advise.snapshot import Orphaned, Snapshot, Unclosed
from twctl.modes.dry_run import Freed


def limited(snapshot: Snapshot, **limits: Any) -> Snapshot:  # noqa: ANN401 - of several types
    """With other limits of its namespace."""
    [one] = snapshot.namespaces
    other = dataclasses.replace(one, limits=dataclasses.replace(one.limits, **limits))
    return dataclasses.replace(snapshot, namespaces=(other,))


@pytest.mark.parametrize(("orphans", "fires"), [(0, False), (899, False), (900, True), (1000, True)])
def test_orphans_are_named_from_nine_tenths_on(orphans: int, fires: bool) -> None:  # noqa: FBT001 - a parameter
    """Of what the host allows; where that is not shown nothing is said."""
    said = orphans_overflow(limited(recorded("well"), orphans=orphans, max_orphans=1000))
    assert fires == (said is not None)
    assert orphans_overflow(limited(recorded("well"), orphans=orphans, max_orphans=None)) is None
    assert said is None or said.anchor in anchors(ROOT / PAGE)


def test_who_has_left_the_orphans_and_whom_they_wait_for_is_evidence() -> None:
    """The owner and the peer with most of them."""
    full = limited(recorded("well"), orphans=1000, max_orphans=1000)
    owners = Unclosed("cron.service", 101, 7), Unclosed("nginx.service", 0, 701)
    one = dataclasses.replace(full.namespaces[0], unclosed=owners, orphaned=(Orphaned("192.0.2.1", 443, 23),))
    said = orphans_overflow(dataclasses.replace(full, namespaces=(one,)))
    assert said
    assert said.evidence.endswith("; most are of nginx.service (701), and wait for 192.0.2.1:443 (23)")


@pytest.mark.parametrize(("told", "fires"), [(1, True), (2, False)])
def test_connections_that_leak_toward_a_destination_are_not_told_twice(told: int, fires: bool) -> None:  # noqa: FBT001
    """Of 201 in CLOSE_WAIT 101 are the server's, or 100 only; another owner's destination is no matter."""
    leak = recorded("close_wait")
    [here], [toward] = leak.namespaces, leak.destinations
    here = dataclasses.replace(here, unclosed=(Unclosed("nginx.service", 200 + (told == 1), 0),))
    mine = dataclasses.replace(toward, owner="nginx.service", close_wait=99 + told)
    other = dataclasses.replace(toward, owner="cron.service", close_wait=100)
    said = peers_have_closed(dataclasses.replace(leak, namespaces=(here,), destinations=(mine, other)))
    assert fires == (said is not None and "101 sockets" in said.evidence)


@pytest.mark.parametrize(("count", "urgency"), [(899, None), (900, "soon"), (979, "soon"), (980, "now")])
def test_conntrack_is_nearly_full_then_full(count: int, urgency: str | None) -> None:
    """By its own count; without conntrack nothing is said."""
    said = conntrack_full(limited(recorded("well"), conntrack=count, conntrack_max=1000))
    assert urgency == (said.urgency if said else None)
    assert conntrack_full(limited(recorded("well"), conntrack=None, conntrack_max=None)) is None


def test_a_shorter_time_of_conntrack_is_counted() -> None:
    """120 s down to 30 s, with 100 closed a second."""
    busy = dataclasses.replace(recorded("well"), entered=60.0, passive=40.0)
    said = conntrack_full(limited(busy, conntrack=990, conntrack_max=1000, conntrack_time_wait=120))
    assert said
    assert said.gain.startswith("9,000 ")


def test_nothing_is_promised_where_other_traffic_fills_conntrack() -> None:
    """And while there is room, nothing is said to be dropped."""
    said = conntrack_full(recorded("conntrack"))
    assert said
    assert ("nearly full" in said.what, "then it drops" in said.what) == (True, True)
    assert "brings nothing here" in said.gain


def test_mode_vestigial_has_no_buckets_on_purpose() -> None:
    """The same numbers mean nothing there."""
    full = recorded("buckets")
    assert buckets_overflow(full)
    assert buckets_overflow(dataclasses.replace(full, mode="vestigial")) is None


def freeing(truncate: int, vestigial: int) -> dict[str, Freed]:
    """A dry run."""
    return {"truncate": Freed(truncate, truncate, 2**20), "vestigial": Freed(vestigial, vestigial, 2**21)}


@pytest.mark.parametrize(
    ("truncate", "vestigial", "mode"),
    [(0, 9999, None), (0, 10_000, "vestigial"), (4999, 10_000, "vestigial"), (5000, 10_000, "truncate")],
)
def test_the_mode_that_fits_is_the_least_that_frees_half(truncate: int, vestigial: int, mode: str | None) -> None:
    """By the dry run; few sessions alone are worth none."""
    said = mode_fits(dataclasses.replace(recorded("well"), freed=freeing(truncate, vestigial)))
    assert mode == (said and said.what.split()[1])
    assert said is None or "fine" == said.urgency


def test_what_is_in_the_way_of_vestigial_is_said() -> None:
    """Then truncate is what is left, with shorter times where ports are scarce."""
    short = recorded("used_up")
    [one] = short.namespaces
    said = mode_fits(dataclasses.replace(short, namespaces=(dataclasses.replace(one, obstacles=("XDP on eth0",)),)))
    assert said
    assert "not vestigial: XDP on eth0" in said.what
    assert "port_headroom" in said.remedy


@pytest.mark.parametrize("mode", ["truncate", "vestigial"])
def test_no_lesser_mode_is_named(mode: str) -> None:
    """Than the one in force."""
    busy = dataclasses.replace(recorded("well"), freed=freeing(20_000, 20_000), mode=mode)
    assert mode_fits(busy) is None


@pytest.mark.parametrize(
    ("passive", "entered", "fires"), [(0.0, 0.0, False), (0.9, 0.0, False), (9.0, 1.0, True), (8.9, 1.0, False)]
)
def test_the_far_side_closes_first_where_it_mostly_does(passive: float, entered: float, *, fires: bool) -> None:
    """Nine times as often, and once a second at least."""
    snapshot = dataclasses.replace(recorded("well"), passive=passive, entered=entered)
    assert fires == (peer_closes_first(snapshot) is not None)


@pytest.mark.parametrize(("sessions", "fires"), [(999, False), (1000, True)])
def test_a_service_of_few_sessions_is_no_news(sessions: int, *, fires: bool) -> None:
    """A thousand are."""
    snapshot = recorded("server_closes")
    services = tuple(dataclasses.replace(each, sessions=sessions) for each in snapshot.services)
    assert fires == (server_closes_first(dataclasses.replace(snapshot, services=services)) is not None)


@pytest.mark.parametrize(("taken", "urgency"), [(32255, None), (32256, "soon"), (61286, "soon"), (61287, "now")])
def test_a_translation_is_named_from_half_of_its_ports_on(taken: int, urgency: str | None) -> None:
    """Of all of them the worst; what a shorter time brings is what holds ports for closed connections."""
    snapshot = recorded("translated")
    [one] = snapshot.namespaces
    worst = dataclasses.replace(one.translations[0], taken=taken, closed=20000)
    other = dataclasses.replace(worst, remote="10.0.0.9", taken=23)
    where = dataclasses.replace(one, translations=(other, worst))
    none = "ports, with other connections; a shorter time alone brings none"
    for seconds, gain in ((120, "15,000 ports"), (30, none)):
        busy = dataclasses.replace(snapshot, namespaces=(where,))
        said = translation_used_up(limited(busy, conntrack_time_wait=seconds))
        assert (urgency, gain if urgency else None) == ((said.urgency, said.gain) if said else (None, None))
