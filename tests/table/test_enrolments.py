"""Indexes of network namespaces, over memory of the test in the place of pinned maps."""

import time

import pytest

from twctl.table.enrolments import NETNS_GUARDED, enrol, free_index, withdraw
from twctl.table.layout import NAMESPACES
from twctl.table.maps import Table


def test_an_index_is_free_again_when_its_vestiges_are_over(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was given back longest ago comes first; indexes that never were in use come before all."""
    for index in range(NAMESPACES):
        assert free_index(table) == index
        enrol(table, index, 1000 + index, f"ns{index}", NETNS_GUARDED * (index == 5))
    assert free_index(table) is None
    assert table.enrolments()[5] == (1005, "ns5")
    withdraw(table, 7, 1007)
    assert 7 not in table.enrolments()
    assert free_index(table) is None
    now = time.monotonic_ns() + 10**9 * 3600
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    assert free_index(table) == 7
