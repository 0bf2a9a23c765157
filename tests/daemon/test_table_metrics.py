"""The metrics that the table alone tells: derived counters, and the series of parties."""

import re
from typing import cast

import pytest
from prometheus_client.registry import CollectorRegistry

from tests.daemon.test_metrics import LANE, LOCAL, BlamedTable, FakeTable, registry, series
from tests.table.test_tallies import local_port, owner, remote
from twctl.table.counters import Reason
from twctl.table.maps import Table
from twctl.table.sums import Sums
from twctl.table.tallies import By


def sums(table: FakeTable) -> Sums:
    """Read it."""
    return Sums.read(cast("Table", table))


def test_what_begins_or_ends_while_it_is_read_has_not_expired() -> None:
    """Entries and early ends between the counters and the cells are no expiries."""
    table = FakeTable()
    for _ in range(101):
        table.entry()
    for meanwhile in (table.reset, table.entry):
        table.meanwhile = meanwhile
        assert sums(table).ended(LOCAL, Reason.EXPIRED) <= 0
    table.meanwhile = lambda: None
    assert (0, 2) == (sums(table).ended(LOCAL, Reason.EXPIRED), sums(table).ended(LOCAL, Reason.RESET))


def test_a_derived_counter_never_falls() -> None:
    """A scrape in the middle of an entry does not take back an expiry that was told."""
    table = FakeTable()
    for _ in range(23):
        table.entry()
    table.alive[LOCAL, "ipv4", LANE] = 6
    made, row = registry(table), 'twctl_time_wait_ended_total{class="local",reason="expired"}'
    assert series(made)[row] == 17
    table.alive[LOCAL, "ipv4", LANE] = 7  # its cell is there, the rest is still to come
    assert series(made)[row] == 17


NGINX = "/system.slice/nginx.service"


def parties(made: CollectorRegistry) -> dict[str, float]:
    """The series that one party has."""
    return {name: count for name, count in series(made).items() if re.match(r"twctl_(owner|remote|local_port)_", name)}


@pytest.fixture
def blamed(monkeypatch: pytest.MonkeyPatch) -> BlamedTable:
    """Three parties of each kind; two owners have the same user, one cgroup is gone."""
    monkeypatch.setattr("twctl.table.names.cgroup_paths", lambda: {4711: NGINX, 4712: "/kubepods/ab"})
    table = BlamedTable()
    for place, (cgroup, entries) in enumerate(((4711, 1009), (4712, 101), (4713, 23))):
        table.put(By.OWNER, place, owner(cgroup, 33), entered=entries, error=10**6)
    for place, (address, entries) in enumerate((("192.0.2.1", 1000), ("2001:db8::1", 101), ("192.0.2.3", 23))):
        table.put(By.REMOTE, place, remote(address, 443, 3), entered=entries, error=place)
    for place, port in enumerate((443, 80, 22)):
        table.put(By.LOCAL_PORT, place, local_port(port), entered=23 + place)
    return table


def test_the_parties_with_the_most_entries_have_series_if_asked_for(blamed: BlamedTable) -> None:
    """So many of each kind; entries that are theirs for certain; none of any party by default."""
    assert {} == parties(registry(blamed))
    expected = {
        f'twctl_owner_time_wait_entered_total{{cgroup="{NGINX}",owner="nginx.service",uid="33"}}': 1009,
        'twctl_owner_time_wait_entered_total{cgroup="/kubepods/ab",owner="/kubepods/ab",uid="33"}': 101,
        'twctl_remote_time_wait_entered_total{netns="blue",remote="192.0.2.1",remote_port="443"}': 1000,
        'twctl_remote_time_wait_entered_total{netns="blue",remote="2001:db8::1",remote_port="443"}': 100,
        'twctl_local_port_time_wait_entered_total{local_port="22",netns=""}': 25,
        'twctl_local_port_time_wait_entered_total{local_port="80",netns=""}': 24,
    }
    assert expected == parties(registry(blamed, blamed=2))
    gone = 'twctl_owner_time_wait_entered_total{cgroup="",owner="cgroup 4713",uid="33"}'
    assert expected | {gone: 23} == {
        name: count for name, count in parties(registry(blamed, blamed=3)).items() if name in {*expected, gone}
    }


def test_ports_that_connect_chose_have_no_series(blamed: BlamedTable) -> None:
    """They have a session each; a reserved port, and one with far more entries than they, are services'."""
    for place in range(100):
        blamed.put(By.LOCAL_PORT, 10 + place, local_port(50000 + place), entered=1 + place % 5)
    blamed.put(By.LOCAL_PORT, 3, local_port(40000), entered=2)
    blamed.put(By.LOCAL_PORT, 4, local_port(50051), entered=20)
    found = {name for name in parties(registry(blamed, blamed=100)) if name.startswith("twctl_local_port_")}
    series = 'twctl_local_port_time_wait_entered_total{{local_port="{}",netns=""}}'
    assert {series.format(port) for port in (443, 80, 22, 40000, 50051)} == found


def test_a_party_that_loses_its_place_loses_its_series(blamed: BlamedTable) -> None:
    """The one who took it counts from 0, not from what it found there."""
    made = registry(blamed, blamed=100)
    blamed.put(By.REMOTE, 2, remote("192.0.2.4", 443), entered=25, error=23)
    found = {name: count for name, count in parties(made).items() if "192.0.2." in name}
    first, second = (
        'twctl_remote_time_wait_entered_total{netns="blue",remote="192.0.2.1",remote_port="443"}',
        ('twctl_remote_time_wait_entered_total{netns="",remote="192.0.2.4",remote_port="443"}'),
    )
    assert {first: 1000, second: 2} == found


def test_cgroups_are_looked_for_when_there_is_a_new_one_and_not_all_the_time(
    blamed: BlamedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape walks no hierarchy for the sake of a cgroup that is gone."""
    now, walks = [1000.0], []

    def paths() -> dict[int, str]:
        walks.append(now[0])
        return {4713: "/system.slice/new.service"}

    monkeypatch.setattr("twctl.table.names.time.monotonic", lambda: now[0])
    made = registry(blamed, blamed=100)
    parties(made)
    monkeypatch.setattr("twctl.table.names.cgroup_paths", paths)
    for now[0] in (1009.0, 1011.0, 1012.0):
        found = parties(made)
    assert [1011.0] == walks
    assert 23 == next(count for name, count in found.items() if 'owner="new.service"' in name)
