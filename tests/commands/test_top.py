"""What `twctl top` tells, without a kernel and without a terminal."""

import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from tests.commands.test_rankings import OWNERS, batch, peers
from tests.table.test_tallies import FakeTable as Tallies
from tests.table.test_tallies import owner
from twctl.classes import Class
from twctl.commands.rankings import Order, ranking
from twctl.commands.top import Reader
from twctl.table.maps import Table
from twctl.table.records import Batch
from twctl.table.tallies import By


class FakeTable(Tallies):
    """Three steps of one session each."""

    def steps(self, family: str) -> int:
        """Only IPv4."""
        return 3 if family == "ipv4" else 0

    def batches(self, family: str) -> Iterator[list[Batch]]:
        """One session a step, of the owners 0, 1 and 2."""
        return iter([[batch(Class.LOCAL, peers({i: 1}), owner=i)] for i in range(self.steps(family))])


def test_a_reading_goes_on_where_it_stopped() -> None:
    """A look without time reads one step; what is shown is the last reading that is whole."""
    reader = Reader(cast("Table", FakeTable()))
    seen = []
    for _ in range(8):
        reader.read(0.0, lambda: False)
        latest = reader.readings[0]
        seen.append((round(reader.progress, 2), latest.sessions.total() if latest else None))
    assert [(0.33, None), (0.67, None), (1.0, None), (0.0, 3), (0.33, 3), (0.67, 3), (1.0, 3), (0.0, 3)] == seen
    assert reader.readings[1] is not None
    reader.read(9.0, lambda: True)
    assert reader.progress == pytest.approx(1 / 3)
    reader.read(9.0, lambda: False)
    assert reader.progress == 0


def test_owners_have_names_when_a_reading_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit and user of those that have a place, and else what `twctl blame` calls them."""
    monkeypatch.setattr("twctl.table.names.cgroup_paths", lambda: {4711: "/system.slice/nginx.service"})
    table = FakeTable()
    table.put(By.OWNER, 0, owner(4711, 0), entered=23)
    reader = Reader(cast("Table", table))
    reader.read(9.0, lambda: False)
    now = reader.readings[0]
    assert now
    found = ranking(OWNERS, now, None, Class, Order.SESSIONS, 9).rows
    assert [("nginx root", 1), ("other", 1), ("unknown", 1)] == [(row.name, row.sessions) for row in found]


@pytest.mark.parametrize("module", ["commands.cli", "daemon.main", "commands.status"])
def test_nothing_else_loads_what_it_draws_with(module: str) -> None:
    """Neither the daemon nor another noun has rich in its memory."""
    program = f"import sys, twctl.{module}; print([each for each in sys.modules if each.split('.')[0] == 'rich'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
